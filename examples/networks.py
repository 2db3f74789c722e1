"""The examples' networks for 28 by 28 grey images and ten classes (PyTorch)."""

from __future__ import annotations

import torch
from torch import nn

STAGES = (16, 48, 160)
"""Channels at 14x14, 7x7 and 4x4 pixels: most parameters sit where they cost least time."""


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet() -> nn.Module:
    """A ResNet with BatchNorm, small enough for two CPU ranks."""
    layers: list[nn.Module] = [nn.Conv2d(1, STAGES[0], 3, 2, 1, bias=False), nn.BatchNorm2d(STAGES[0])]
    layers.append(nn.ReLU())
    channels_in = STAGES[0]
    for channels in STAGES:
        layers.append(Block(channels_in, channels, stride=1 if channels == channels_in else 2))
        channels_in = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels_in, 10))


def mlp(width: int) -> nn.Module:
    """Three dense layers: many parameters for little computation, the case that communication hurts most."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(28 * 28, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, 10),
    )


def vgg() -> nn.Module:
    """Two convolutions and wide dense layers, as in VGG (Simonyan and Zisserman, ICLR 2015): 7.4 million parameters,
    nearly all of them in the layers that compute least."""
    layers: list[nn.Module] = []
    for channels_in, channels in ((1, 16), (16, 32)):
        layers += [nn.Conv2d(channels_in, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(32 * 7 * 7, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(2048, 10))


def network(name: str, width: int) -> nn.Module:
    """``resnet``, ``vgg``, or ``mlp`` of this width."""
    return mlp(width) if name == "mlp" else {"resnet": resnet, "vgg": vgg}[name]()
