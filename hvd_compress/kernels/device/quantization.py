"""Quantizers on the device: ``QuantizationKernels`` for tensors, but for ternary codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hvd_compress.kernels.device.checks import require_tensor
from hvd_compress.kernels.device.launch import Launcher
from hvd_compress.kernels.device.parts import Part, parts_of
from hvd_compress.kernels.device.programs import lanes as programs
from hvd_compress.kernels.hashing import hash64
from hvd_compress.kernels.protocol import (
    FEISTEL_ROUNDS,
    LANES,
    MAX_SCALES,
    Float32,
    check_lanes,
    fraction_bits,
)

Pieces = Sequence[torch.Tensor]
WORDS_TO_ELEMENTS = 4
"""A program that makes words has a tile of so many times fewer of them: each is of several elements, and takes as many
registers as they do."""


class QuantizationDevice:
    """Quantize to words, votes for scales, and back; the gradients, words, planes and sums are on the device. The host
    waits for nothing here."""

    _launcher: Launcher
    _tile: int

    def quantize(
        self,
        pieces: Pieces,
        scales: Float32,
        planes: torch.Tensor | None,
        workers: int,
        levels: int,
        width: int,
        key: int,
        words: torch.Tensor,
    ) -> None:
        """See ``QuantizationKernels.quantize``; ``scales`` are on the host."""
        parts = parts_of(pieces, self._launcher.device)
        d = sum(part.elements for part in parts)
        lanes = self._check_words(words, workers, levels, width, d)
        if not ((scales >= 0) & np.isfinite(scales)).all():
            raise ValueError(f"scales must be finite and >= 0, not {scales}")
        choice, constants = self._scales(scales, planes, workers, d)
        mixed = int(hash64(key, np.zeros(1, np.uint64))[0])
        fraction = fraction_bits(levels)
        arguments = *choice, float(levels << fraction), fraction, mixed & 0xFFFFFFFF, mixed >> 32, words
        self._pack(programs.quantize, parts, lanes, words, arguments, constants | {"WIDTH": width})

    def dequantize(
        self,
        words: torch.Tensor,
        planes: torch.Tensor | None,
        workers: int,
        levels: int,
        width: int,
        scales: Float32,
        out: torch.Tensor,
    ) -> None:
        """See ``QuantizationKernels.dequantize``; ``scales`` are on the host."""
        require_tensor("out", out, torch.float32, self._launcher.device, None)
        lanes = self._check_words(words, workers, levels, width, len(out))
        choice, constants = self._scales(scales, planes, workers, len(out))
        bias = sum(levels * workers << width * j for j in range(lanes))
        self._launcher.launch(
            programs.dequantize,
            -(-len(out) // self._tile),
            words,
            len(out),
            *choice,
            bias,
            levels * workers,
            out,
            WIDTH=width,
            LANES=lanes,
            TILE=self._tile,
            **constants,
        )

    def mask(self, pieces: Pieces, limits: Float32, width: int, planes: torch.Tensor) -> None:
        """See ``QuantizationKernels.mask``; ``limits`` are on the host."""
        parts = parts_of(pieces, self._launcher.device)
        if not 1 <= width <= 32:
            raise ValueError(f"width must be in [1, 32], not {width}")
        if len(limits) >= MAX_SCALES or not (limits >= 0).all() or (limits[1:] > limits[:-1]).any():
            raise ValueError(f"limits must be up to {MAX_SCALES - 1} numbers >= 0 that do not ascend, not {limits}")
        lanes = self._check_planes(planes, len(limits), width, sum(part.elements for part in parts))
        length = len(planes) // max(len(limits), 1)
        for j, limit in enumerate(np.abs(limits).view(np.uint32).tolist()):
            plane = planes[j * length : (j + 1) * length]
            self._pack(programs.vote, parts, lanes, plane, (limit, plane), {"WIDTH": width})

    def permutation(self, key: int, start: int, size: int, out: torch.Tensor) -> None:
        """See ``QuantizationKernels.permutation``; ``out`` is a tensor of int32, for uint32 of the same bits."""
        require_tensor("out", out, torch.int32, self._launcher.device, None)
        if not 1 <= size < 2**32:
            raise ValueError(f"size must be in [1, 2**32), not {size}")
        if start < 0 or start + len(out) > size:
            raise ValueError(f"start = {start} and the length of out, {len(out)}, exceed the size {size}")
        a = math.isqrt(size - 1) + 1
        tiles = -(-len(out) // self._tile)
        arguments = key & 0xFFFFFFFFFFFFFFFF, start, size, a, -(-size // a), len(out), out
        self._launcher.launch(programs.permutation, tiles, *arguments, ROUNDS=FEISTEL_ROUNDS, TILE=self._tile)

    def _pack(
        self,
        program: Any,
        parts: Sequence[Part],
        lanes: int,
        words: torch.Tensor,
        arguments: tuple[Any, ...],
        constants: dict[str, Any],
    ) -> None:
        """Run a program that makes words, for every part on the words that it has a lane in."""
        several, tile = len(parts) > 1, max(LANES, self._tile // WORDS_TO_ELEMENTS)
        if several:
            words.zero_()
        for part in parts:
            first = part.begin // (LANES * lanes) * LANES
            past = (-(-part.end // (LANES * lanes))) * LANES
            place = part.storage, part.begin, part.elements, part.channels, part.space, first, past
            self._launcher.launch(
                program,
                -(-(past - first) // tile),
                *place,
                *arguments,
                LANES=lanes,
                ADD=several,
                TILE=tile,
                **constants,
                **part.constants,
            )

    def _check_words(self, words: torch.Tensor, workers: int, levels: int, width: int, d: int) -> int:
        """Return the lanes of a word; raise TypeError or ValueError unless everything fits."""
        check_lanes(workers, levels, width)
        if words.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"words must be int32 or int64, not {words.dtype}")
        lanes = 8 * words.itemsize // width
        require_tensor("words", words, words.dtype, self._launcher.device, LANES * _blocks(d, lanes))
        return lanes

    def _check_planes(self, planes: torch.Tensor, count: int, width: int, d: int) -> int:
        lanes = 63 // width
        require_tensor("planes", planes, torch.int64, self._launcher.device, count * LANES * _blocks(d, lanes))
        return lanes

    def _scales(
        self, scales: Float32, planes: torch.Tensor | None, workers: int, d: int
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments and constants by which programs find the scale of an element."""
        if not 1 <= len(scales) <= MAX_SCALES:
            raise ValueError(f"scales must have 1 to {MAX_SCALES} elements, not {len(scales)}")
        if (planes is None) != (len(scales) == 1):
            raise ValueError("planes must be None if and only if there is one scale")
        uploaded = self._launcher.upload(scales)
        if planes is None:
            # A program without planes reads none.
            return (uploaded, uploaded, 0), {"PLANES": 0, "PLANE_WIDTH": 1, "PLANE_LANES": 1}
        count, width = len(scales) - 1, workers.bit_length()
        lanes = self._check_planes(planes, count, width, d)
        constants = {"PLANES": count, "PLANE_WIDTH": width, "PLANE_LANES": lanes}
        return (uploaded, planes, len(planes) // count), constants


def _blocks(d: int, lanes: int) -> int:
    """Return how many times 16 words there are."""
    lines = -(-d // LANES)
    return -(-lines // lanes)
