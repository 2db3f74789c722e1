"""The version of the package, in the one place from which the build and the documentation take it."""

__version__ = "0.1.0"
