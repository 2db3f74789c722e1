"""Bases of compressors that send a part of the elements."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY

from hvd_compress import schedules
from hvd_compress.codecs.sparse import SPARSE_WIRES
from hvd_compress.compressor import Compressor, compressor_dataclass
from hvd_compress.exchange import AllGather, Bucket
from hvd_compress.validation import require_bool, require_choice


@compressor_dataclass
class Selective(Compressor):
    """Base of compressors that send a part of the elements.

    Args:
        ratio: fraction to send, a number in (0, 1] or a schedule.
        error_feedback: remember what is not sent and add it to the next gradient.
    """

    ratio: float | schedules.Schedule = 0.01
    _: KW_ONLY
    error_feedback: bool = True  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ratio", schedules.check_ratio("ratio", self.ratio))
        require_bool("error_feedback", self.error_feedback)

    def target(self, bucket: Bucket, candidates: int | None = None) -> tuple[float, int]:
        """Return the ratio in this step, and k: the number of ``candidates`` (default: the bucket's elements) it means,
        at least 1."""
        ratio = schedules.value_at(self.ratio, bucket.step)
        if not (math.isfinite(ratio) and 0 < ratio <= 1):
            raise ValueError(f"the schedule {self.ratio!r} gave the ratio {ratio!r} at step {bucket.step}")
        return ratio, max(1, round(ratio * (bucket.size if candidates is None else candidates)))


@compressor_dataclass
class Sparsifier(Selective):
    """Base of compressors that choose the elements they send by the data, and all-gather payloads of fixed capacity.

    Args:
        wire: type of the values on the wire: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"range8"``: floats of
            8 bits, fitted to each payload. What the type rounds off stays in the memory.
    """

    schedule = (AllGather,)

    _: KW_ONLY
    wire: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("wire", self.wire, SPARSE_WIRES)
