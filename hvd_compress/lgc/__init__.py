"""Learned gradient compression. Importing this imports no torch; the autoencoder does, when there is one to run."""

from hvd_compress.lgc.compressor import LGC

__all__ = ["LGC"]
