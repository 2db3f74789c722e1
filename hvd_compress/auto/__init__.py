"""Choosing a compressor, or none, by the time that steps take with each."""
