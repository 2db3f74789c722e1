"""Bases of compressors that send a part of the elements."""

from __future__ import annotations

import logging
import math
from dataclasses import KW_ONLY
from typing import Any, ClassVar, Final, Literal

from hvd_compress import schedules
from hvd_compress.codecs import header
from hvd_compress.codecs.regions import RegionFormat
from hvd_compress.codecs.sparse import SPARSE_WIRES, SparseFormat
from hvd_compress.compressor import Collectives, Compressor, compressor_dataclass
from hvd_compress.exchange import AllGather, AllToAll, Bucket
from hvd_compress.phased import PhasedCompressor
from hvd_compress.statistics import Report
from hvd_compress.validation import require_bool, require_choice, require_number

ROOM = 1.25
"""Capacity of a row of entries on the way to the owner of their region, in units of k/N."""
CYCLE = 0.001
"""Seconds that another collective takes under Horovod, whatever it carries: its cycle, and the agreement."""

_log = logging.getLogger(__name__)


@compressor_dataclass
class Selective(Compressor):
    """Base of compressors that send a part of the elements.

    Args:
        ratio: fraction to send, a number in (0, 1] or a schedule.
        error_feedback: remember what is not sent and add it to the next gradient.
        memory_unit: what the memory keeps when the learning rate changes. ``"gradient"``: gradients, which are applied
            at the rate of the step in which they are sent, as in most papers. ``"update"``: gradients times the rate
            that they came at (Vogels et al., NeurIPS 2019, algorithm 2): a rate that drops to a tenth makes what is
            held back count ten times. The rates are the optimizer's, by parameter; under PyTorch only.
    """

    selects: ClassVar[bool] = True

    ratio: float | schedules.Schedule = 0.01
    _: KW_ONLY
    error_feedback: bool = True  # type: ignore[misc]
    memory_unit: Literal["gradient", "update"] = "gradient"  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ratio", schedules.check_ratio("ratio", self.ratio))
        require_bool("error_feedback", self.error_feedback)
        require_choice("memory_unit", self.memory_unit, ("gradient", "update"))
        if self.memory_unit == "update" and not self.error_feedback:
            raise ValueError("memory_unit='update' needs a memory, got error_feedback=False")

    def target(self, bucket: Bucket, candidates: int | None = None) -> tuple[float, int]:
        """Return the ratio in this step, and k: the number of ``candidates`` (default: the bucket's elements) it means,
        at least 1."""
        ratio = schedules.value_at(self.ratio, bucket.step)
        if not (math.isfinite(ratio) and 0 < ratio <= 1):
            raise ValueError(f"the schedule {self.ratio!r} gave the ratio {ratio!r} at step {bucket.step}")
        return ratio, max(1, round(ratio * (bucket.size if candidates is None else candidates)))


ALL_GATHER: Final = "all-gather"
REDUCE_SCATTER: Final = "reduce-scatter"
AUTO: Final = "auto"
AGGREGATES = (ALL_GATHER, REDUCE_SCATTER, AUTO)
"""How the workers' entries come together; see ``algorithms.aggregation``."""

PLANS: dict[str, Collectives] = {ALL_GATHER: (AllGather,), REDUCE_SCATTER: (AllToAll, AllGather)}
"""The collectives of each way."""


@compressor_dataclass
class Sparsifier(Selective, PhasedCompressor):
    """Base of compressors that choose the elements they send by the data, and send payloads of fixed capacity.

    Args:
        wire: type of the values on the wire: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"range8"``: floats of
            8 bits, fitted to each payload. What the type rounds off stays in the memory.
        aggregate: how the workers' entries come together. ``"all-gather"``: every worker gets all of them, N times k.
            ``"reduce-scatter"``: each goes to the worker that owns its region, which sums, keeps the largest k/N, and
            all-gathers those; about 2 k entries to send and to receive, whatever N. What an owner drops goes to its
            memory, and what finds no room on the way to it stays in the sender's, so that nothing is lost. ``"auto"``:
            what takes less time by an alpha-beta model, for this number of workers, ratio and ``link``; ``stats()`` and
            the log say which.
        link: for ``"auto"``: what the network between two workers can do, in bits a second, and seconds a message.
    """

    _: KW_ONLY
    wire: Literal["float32", "bfloat16", "float16", "range8"] = "float32"
    aggregate: Literal["all-gather", "reduce-scatter", "auto"] = "all-gather"
    link: tuple[float, float] = (1e10, 5e-5)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("wire", self.wire, SPARSE_WIRES)
        require_choice("aggregate", self.aggregate, AGGREGATES)
        object.__setattr__(self, "link", check_link(self.link))
        object.__setattr__(self, "_ways", {})

    @property
    def schedule(self) -> Collectives:  # type: ignore[override]
        """The collectives of a step; with ``"auto"``, of one that all-gathers."""
        return PLANS[REDUCE_SCATTER if self.aggregate == REDUCE_SCATTER else ALL_GATHER]

    def capacity(self, k: int) -> int:
        """Return the room of a payload that is all-gathered and is meant to hold k entries: a multiple of 8."""
        return -(-k // 8) * 8

    def way(self, bucket: Bucket) -> str:
        """Return how the workers' entries come together in this step, the same on every worker."""
        if self.aggregate != AUTO:
            return self.aggregate
        _, k = self.target(bucket)
        gathered = SparseFormat(bucket.size, self.capacity(k), self.wire).nbytes
        there, back = scattered(bucket.size, k, bucket.workers, self.wire)
        seconds = {
            ALL_GATHER: _ring(bucket.workers, gathered, self.link),
            REDUCE_SCATTER: _ring(bucket.workers, there.nbytes, self.link)
            + _ring(bucket.workers, header.NBYTES + back.nbytes, self.link)
            + CYCLE,
        }
        return min(seconds, key=lambda way: seconds[way])

    @property
    def steady(self) -> bool:
        return not (self.aggregate == AUTO and callable(self.ratio))

    def plans(self, bucket: Bucket) -> dict[str, Collectives]:
        if self.aggregate == AUTO and callable(self.ratio):
            return PLANS
        way = self.way(bucket)
        return {way: PLANS[way]}

    def plan(self, bucket: Bucket) -> str:
        way = self.way(bucket)
        if self.aggregate == AUTO:
            ways: dict[str, tuple[int, str]] = self.__dict__["_ways"]
            _, before = ways.get(bucket.name, (0, ""))
            if way != before:
                _log.info("%s: %s among %d workers, by the model of %r", bucket.name, way, bucket.workers, self)
            ways[bucket.name] = bucket.step, way
        return way

    def stats(self) -> Report:
        """Return what ``Compressor.stats`` does; with ``aggregate="auto"`` also how the entries of each bucket came
        together in the last step, under the key ``aggregate``."""
        report = super().stats()
        if self.aggregate == AUTO:
            ways: dict[str, tuple[int, str]] = self.__dict__["_ways"]
            last = max((step for step, _ in ways.values()), default=0)
            report["aggregate"] = {name: way for name, (step, way) in ways.items() if step == last}
        return report


def scattered(size: int, k: int, workers: int, wire: str) -> tuple[RegionFormat, RegionFormat]:
    """Return the layouts of the rows that a worker sends to the owners, and of the row that an owner all-gathers."""
    span = RegionFormat(size, workers, 1, wire).span
    share = k * span / max(size, 1)  # k/N, or where regions are of different sizes, that of the largest
    return (
        RegionFormat(size, workers, max(1, min(span, math.ceil(ROOM * share))), wire),
        RegionFormat(size, workers, max(1, min(span, math.ceil(share))), wire),
    )


def check_link(value: Any) -> tuple[float, float]:
    """Return a link as bits a second and seconds a message.

    Raises:
        TypeError, ValueError: it is not two numbers of that kind.
    """
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"link must be bits a second and seconds of latency, such as (1e10, 5e-5), got {value!r}")
    require_number("link's bits a second", value[0], "above 0", lambda rate: 0 < rate < math.inf)
    require_number("link's latency", value[1], "of seconds, at least 0", lambda seconds: 0 <= seconds < math.inf)
    return float(value[0]), float(value[1])


def _ring(workers: int, nbytes: int, link: tuple[float, float]) -> float:
    """Return the seconds in which every worker passes so many bytes to each of the others, one after the other."""
    rate, latency = link
    return (workers - 1) * (latency + 8 * nbytes / rate)
