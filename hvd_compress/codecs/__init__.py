"""Bytes on the wire. Every format is little-endian, versioned and pinned by golden files in the tests."""
