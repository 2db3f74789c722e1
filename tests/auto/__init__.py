"""Choosing a compressor by step times: no test reads a clock."""
