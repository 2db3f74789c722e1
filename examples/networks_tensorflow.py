"""The examples' networks for 28 by 28 grey images and ten classes (TensorFlow); see ``networks`` for PyTorch's."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

STAGES = (16, 48, 160)
"""Channels at 14x14, 7x7 and 4x4 pixels: most parameters sit where they cost least time."""

layers = tf.keras.layers


def _convolution(x: Any, channels: int, size: int, stride: int) -> Any:
    x = layers.Conv2D(channels, size, stride, "same", use_bias=False)(x)
    return layers.BatchNormalization(momentum=0.9)(x)  # Keras weighs the old statistics, PyTorch the new


def _block(x: Any, channels: int, stride: int) -> Any:
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016)."""
    y = layers.ReLU()(_convolution(x, channels, 3, stride))
    y = _convolution(y, channels, 3, 1)
    if stride != 1 or x.shape[-1] != channels:
        x = _convolution(x, channels, 1, stride)
    return layers.ReLU()(layers.Add()([y, x]))


def resnet() -> Any:
    """A ResNet with BatchNorm, small enough for two CPU ranks."""
    inputs = tf.keras.Input((28, 28))
    x = layers.ReLU()(_convolution(layers.Reshape((28, 28, 1))(inputs), STAGES[0], 3, 2))
    for channels in STAGES:
        x = _block(x, channels, stride=1 if channels == x.shape[-1] else 2)
    return tf.keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def mlp(width: int) -> Any:
    """Three dense layers: many parameters for little computation, the case that communication hurts most."""
    hidden = [layers.Dense(width, "relu") for _ in range(2)]
    return tf.keras.Sequential([tf.keras.Input((28, 28)), layers.Flatten(), *hidden, layers.Dense(10)])


def vgg() -> Any:
    """Two convolutions and wide dense layers, as in VGG (Simonyan and Zisserman, ICLR 2015): 7.4 million parameters,
    nearly all of them in the layers that compute least."""
    inputs = tf.keras.Input((28, 28))
    x = layers.Reshape((28, 28, 1))(inputs)
    for channels in (16, 32):
        x = layers.MaxPooling2D()(layers.Conv2D(channels, 3, padding="same", activation="relu")(x))
    x = layers.Flatten()(x)
    for _ in range(2):
        x = layers.Dense(2048, "relu")(x)
    return tf.keras.Model(inputs, layers.Dense(10)(x))


def network(name: str, width: int) -> Any:
    """``resnet``, ``vgg``, or ``mlp`` of this width."""
    return mlp(width) if name == "mlp" else {"resnet": resnet, "vgg": vgg}[name]()
