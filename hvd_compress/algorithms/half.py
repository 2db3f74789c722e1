"""Sixteen bits an element: the mildest compression."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hvd_compress.codecs import header
from hvd_compress.compressor import Compressor, compressor_dataclass
from hvd_compress.exchange import AllGather, AllReduce, Bucket, Exchange
from hvd_compress.kernels import WIRES
from hvd_compress.validation import require_choice


@compressor_dataclass
class Half(Compressor):
    """Send every element in 16 bits.

    ``dtype="bfloat16"`` is all-gathered and summed in float32: Horovod has no bfloat16 all-reduce under PyTorch, and a
    sum carried in 8 bits of mantissa loses more with every worker. Each rank receives ``2 d (N-1)`` bytes, so it pays
    up to 4 workers. ``dtype="float16"`` is all-reduced in float16, ``2 d`` bytes a rank for any N: every worker
    divides by N first, so that the sum cannot overflow where the mean does not; each addition rounds to 11 bits.
    Values beyond 65,504 N become inf, which a ``GradScaler`` handles as usual.

    Args:
        dtype: ``"bfloat16"`` or ``"float16"``.

    Tuning: bfloat16 needs no loss scaling; float16 is the more exact for gradients within its range, and the one to
    take for more than 4 workers.

    >>> Half(dtype="float16")
    Half(dtype='float16')
    """

    name: ClassVar[str] = "half"

    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("dtype", self.dtype, WIRES[1:])

    @property
    def schedule(self) -> tuple[type[AllGather] | type[AllReduce], ...]:  # type: ignore[override]
        return (AllGather,) if self.dtype == "bfloat16" else (AllReduce,)

    def exchange(self, bucket: Bucket) -> Exchange:
        wire = WIRES.index(self.dtype)
        values, size = bucket.values, bucket.size
        if self.dtype == "bfloat16":
            payload = bucket.payload(header.NBYTES + 2 * size, codec=header.DENSE + wire)
            bucket.kernels.narrow(values, wire, payload[header.NBYTES :].view(np.uint16))
            gathered = yield AllGather(payload)
            header.check(gathered, codec=header.DENSE + wire, elements=size, capacity=0)
            words = np.ascontiguousarray(gathered[:, header.NBYTES :]).view(np.uint16)
            bucket.kernels.accumulate_dense(words, wire, 1 / bucket.workers, bucket.decoded)
        else:
            words = bucket.scratch("words", size, np.uint16)
            values *= np.float32(1 / bucket.workers)
            bucket.kernels.narrow(values, wire, words)
            mean = yield AllReduce(words.view(np.float16), op="sum")
            bucket.decoded[:] = mean
        return bucket.decoded
