"""Horovod under TensorFlow 2."""
