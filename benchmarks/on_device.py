"""Candidates of ``kernels.py --device``: compressors and kernels on a GPU, what they should cost, and their peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from quantizers import BITS

import hvd_compress
from hvd_compress.advisor.benchmark import PEER, Candidate, compressor, decode, select, unit
from hvd_compress.advisor.exchange_timing import Inputs
from hvd_compress.codecs.lanes import LaneFormat, levels_of
from hvd_compress.kernels import fraction_bits
from hvd_compress.kernels.fourier import Transform

SIZES = (262_144, 4_000_000, 25_600_000, 100_000_000)
RATIO = 0.01
PAYLOADS = 8
GOAL_SIZE = 25_600_000
GOALS = {
    "SIDCo": 1.6,
    "TopK": 2.0,
    "select, threshold given": 1.15,
    "quantize + pack": 0.9,
    "unpack": 0.7,
    f"decode of {PAYLOADS} payloads": 0.5,
    "FFT both ways": 6,
}
"""The project's goals at ``GOAL_SIZE`` on an H100 or H200, by the first word(s) of a candidate's name. At the smallest
size SIDCo should take less than 150 microseconds."""


def goal(name: str, n: int) -> float | None:
    return next((wanted for start, wanted in GOALS.items() if name.startswith(start) and n == GOAL_SIZE), None)


def top_k(inputs: Inputs) -> Candidate:
    gradient, k = inputs.gradient, max(1, round(RATIO * inputs.n))
    residual = inputs.kernels.copy(gradient)

    def run() -> tuple[Any, Any]:
        residual.add_(gradient)
        indices = residual.abs().topk(k, sorted=False).indices
        values = residual[indices]
        residual.index_fill_(0, indices, 0)
        return indices, values

    return Candidate(f"torch.topk with error feedback, {RATIO}", run, residual, kind=PEER)


def sampled_threshold(inputs: Inputs) -> Candidate:
    """What DGC's authors do, in torch: a threshold from a sample of one in a hundred, and what is above it."""
    gradient, n = inputs.gradient, inputs.n
    residual, some = inputs.kernels.copy(gradient), max(16, n // 100)

    def run() -> tuple[Any, Any]:
        residual.add_(gradient)
        sample = residual[torch.randint(0, n, (some,), device=residual.device)].abs()
        threshold = sample.topk(max(1, round(RATIO * some)), sorted=False).values.min()
        indices = (residual.abs() >= threshold).nonzero().view(-1)  # the host waits, to know how many there are
        values = residual[indices]
        residual.index_fill_(0, indices, 0)
        return indices, values

    return Candidate(f"torch sampled threshold with error feedback, {RATIO}", run, residual, kind=PEER)


def codes(gradient: Any, norm: Any, levels: int) -> Any:
    """Unbiased codes as one would write them in torch, one to a byte; nothing is packed."""
    level = gradient / norm * levels
    return torch.floor(level + torch.rand_like(level)).to(torch.int8)


def quantizers(inputs: Inputs, *, compiled: bool) -> Iterator[Candidate]:
    gradient, levels = inputs.gradient, levels_of(8)
    ways: dict[str, Callable[..., Any]] = {"torch": codes}
    if compiled:
        ways["torch.compile"] = torch.compile(codes, dynamic=False)
    for name, way in ways.items():
        yield Candidate(
            f"{name} max-norm quantizer, 8 bits", lambda way=way: way(gradient, gradient.abs().max(), levels), None,
            kind=PEER,
        )  # fmt: skip


def lanes(inputs: Inputs) -> Iterator[Candidate]:
    """The kernels of quantizers, for the sum over ``PAYLOADS`` workers."""
    kernels, pieces = inputs.kernels, [inputs.gradient]
    norm = kernels.norm(pieces, False)
    yield Candidate("norm", lambda: kernels.norm(pieces, False), None)
    for bits in BITS:
        layout = LaneFormat(inputs.n, levels_of(bits), PAYLOADS)
        words = kernels.view(kernels.empty(layout.nbytes // 4), layout.dtype)
        scale = np.array([layout.levels * 2.0 ** fraction_bits(layout.levels) / norm], np.float32)
        step = np.array([norm / layout.levels], np.float32)

        def encode(layout=layout, scale=scale, words=words):
            layout.encode(kernels, pieces, scale, None, 1, words)

        def decoded(layout=layout, step=step, words=words):
            layout.decode(kernels, words, step, None, inputs.out)

        encode()
        yield Candidate(f"quantize + pack, {bits} bits", encode, None, [words])
        yield Candidate(f"unpack, {bits} bits", decoded, None, [words, inputs.out])


def transforms(inputs: Inputs) -> Candidate:
    transform = Transform(inputs.kernels, inputs.n, 4096)
    spectrum = inputs.kernels.empty(2 * transform.pairs)

    def run() -> None:
        transform.forward(inputs.gradient, spectrum)
        transform.inverse(spectrum, 1.0, None, inputs.out)

    return Candidate("FFT both ways, blocks of 4,096", run, None, [spectrum, inputs.out])


def candidates(inputs: Inputs, *, compiled: bool = True) -> list[Candidate]:
    algorithms = {
        f"SIDCo {RATIO}": hvd_compress.SIDCo(RATIO),
        f"TopK {RATIO}": hvd_compress.TopK(RATIO),
        f"DGC {RATIO}": hvd_compress.DGC(RATIO),
        "QSGDMaxNorm, 8 bits": hvd_compress.QSGDMaxNorm(bits=8),
        "FFT compress, 0.1, 8 bits": hvd_compress.FFT(),
    }
    return [
        unit(inputs, with_torch=True),
        top_k(inputs),
        sampled_threshold(inputs),
        *quantizers(inputs, compiled=compiled),
        *(compressor(inputs, name, algorithm) for name, algorithm in algorithms.items()),
        select(inputs, RATIO),
        decode(inputs, RATIO, PAYLOADS),
        *lanes(inputs),
        transforms(inputs),
    ]
