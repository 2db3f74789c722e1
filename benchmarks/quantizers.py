"""Candidates of ``kernels.py``: unbiased max-norm quantizers whose codes an all-reduce adds up, and their peers.

The peers are the steps as one would write them in torch, and as the quantizers' author does: to int8, with a random
number for each element; nothing is packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from hvd_compress.codecs.lanes import LaneFormat, MaskFormat, levels_of
from hvd_compress.kernels import fraction_bits, get

BITS = (4, 8)
FINER = 8
"""The finer of two scales has so many times the levels."""

Row = tuple[str, Callable[[], Any], list[np.ndarray]]
"""A name, what to time, and the arrays that it uses, apart from the gradient."""


def rows(gradient: torch.Tensor, out: np.ndarray, workers: int) -> Iterator[Row]:
    """The kernels, for the sum of this many workers' codes."""
    kernels, n, pieces = get(), len(gradient), [gradient.numpy()]
    norm = kernels.norm(pieces, False)
    yield "norm", lambda: kernels.norm(pieces, False), []
    for bits in BITS:
        layout, mask = LaneFormat(n, levels_of(bits), workers), MaskFormat(n, workers)
        words, planes = (kernels.empty(f.nbytes // 4).view(f.dtype) for f in (layout, mask))
        scale = layout.levels * 2.0 ** fraction_bits(layout.levels) / norm
        one, two = np.array([scale], np.float32), np.array([scale, FINER * scale], np.float32)
        limit, step = np.array([norm / FINER], np.float32), np.array([norm / layout.levels], np.float32)

        def encode(layout=layout, one=one, words=words):
            layout.encode(kernels, pieces, one, None, 1, words)

        def decode(layout=layout, step=step, words=words):
            layout.decode(kernels, words, step, None, out)

        def encode_two(layout=layout, mask=mask, limit=limit, two=two, planes=planes, words=words):
            kernels.mask(pieces, limit, mask.width, planes)
            layout.encode(kernels, pieces, two, planes, 1, words)

        encode()
        yield f"quantize + pack, {bits} bits", encode, [words]
        yield f"unpack, {bits} bits", decode, [words, out]
        yield f"two-scale mask + quantize + pack, {bits} bits", encode_two, [words, planes]


def peers(gradient: torch.Tensor) -> Iterator[Row]:
    """The same in torch."""
    norm = gradient.abs().max()

    def codes(levels):
        level = gradient.abs() / norm * levels
        floor = level.to(torch.int32)
        floor += torch.bernoulli((level - floor).clamp_(0, 1)).to(torch.int32)
        return (gradient.sign() * floor).to(torch.int8)

    def two_scales(levels):
        low, high = codes(levels), codes(levels * FINER)
        return torch.where(gradient.abs() <= norm / FINER, high, low)

    yield "torch norm", lambda: gradient.abs().max(), []
    for bits in BITS:
        levels = levels_of(bits)
        quantized = codes(levels)
        yield f"torch quantizer, {bits} bits", lambda levels=levels: codes(levels), []
        yield (
            f"torch dequantizer, {bits} bits",
            lambda levels=levels, quantized=quantized: quantized * (norm / levels),
            [quantized.numpy()],
        )
        yield f"torch two-scale quantizer, {bits} bits", lambda levels=levels: two_scales(levels), []
