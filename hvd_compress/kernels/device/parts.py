"""The gradients of a bucket, as kernels get them: one tensor after the other, not concatenated."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

LAYOUTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""How the elements of a piece are stored: the number that the programs know it by."""


class Part(NamedTuple):
    """A piece and where it is in its bucket: elements ``[begin, end)``, in the order of the tensor's indices.

    A piece of three or more dimensions may have its channels last in memory: ``channels`` and ``space`` (the elements
    of one channel) then say where an element is. Otherwise both are 1.
    """

    storage: torch.Tensor
    begin: int
    end: int
    channels: int
    space: int
    constants: dict[str, Any]
    """What a program is compiled for: ``KIND`` (see ``LAYOUTS``) and ``CHANNELS_LAST``."""

    @property
    def elements(self) -> int:
        return self.end - self.begin


NO_PIECE = {"KIND": -1, "CHANNELS_LAST": False}
"""The constants of a program that runs without a gradient."""


def parts_of(pieces: Sequence[torch.Tensor], device: torch.device) -> list[Part]:
    """Return the pieces of a bucket with their places in it; pieces without elements are left out.

    Raises:
        TypeError: a piece is no float32, float16 or bfloat16.
        ValueError: a piece is on another device, or is contiguous neither in the order of its indices nor with its
            channels last.
    """
    ends = list(itertools.accumulate((piece.numel() for piece in pieces), initial=0))
    return [
        _part(piece.detach(), begin, end, device)
        for piece, (begin, end) in zip(pieces, itertools.pairwise(ends), strict=True)
        if end > begin
    ]


def whole(tensor: torch.Tensor) -> Part:
    """Return the part of a bucket that has only this one, one-dimensional float32 tensor."""
    return Part(tensor, 0, len(tensor), 1, 1, {"KIND": 0, "CHANNELS_LAST": False})


def _part(piece: torch.Tensor, begin: int, end: int, device: torch.device) -> Part:
    if piece.dtype not in LAYOUTS:
        raise TypeError(f"pieces must be float32, float16 or bfloat16, not {piece.dtype}")
    if piece.device != device:
        raise ValueError(f"pieces must be on {device}, not on {piece.device}")
    kind = LAYOUTS[piece.dtype]
    storage = piece if kind == 0 else piece.view(torch.int16)  # as bits: the programs widen them exactly
    if piece.is_contiguous():
        return Part(storage, begin, end, 1, 1, {"KIND": kind, "CHANNELS_LAST": False})
    channels = piece.shape[1] if piece.dim() >= 3 else 1
    if piece.dim() < 3 or not piece.movedim(1, -1).is_contiguous():
        raise ValueError(f"pieces must be contiguous or have channels last, not strides {piece.stride()}")
    space = piece.numel() // (piece.shape[0] * channels)
    return Part(storage, begin, end, channels, space, {"KIND": kind, "CHANNELS_LAST": True})
