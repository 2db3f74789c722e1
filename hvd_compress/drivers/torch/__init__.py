"""Horovod under PyTorch."""
