"""Auto: the fastest of several compressors, uncompressed among them, found by timing real steps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY
from typing import Any, ClassVar, Literal

import numpy as np

from hvd_compress.algorithms.dense import Dense
from hvd_compress.auto.candidates import ACCURACIES, by_accuracy, checked
from hvd_compress.auto.choosing import REPORT_BYTES, Choosing
from hvd_compress.auto.trials import FLUSH, Trials
from hvd_compress.codecs import header
from hvd_compress.compressor import Collectives, Compressor, compressor_dataclass
from hvd_compress.exchange import AllGather, AllReduce, Array, Bucket, Exchange
from hvd_compress.kernels import Float32, Kernels
from hvd_compress.memory import Memory, PausableResidual
from hvd_compress.phased import PhasedCompressor, Preparation
from hvd_compress.statistics import Report
from hvd_compress.validation import require_choice, require_int

UNCOMPRESSED = "uncompressed"
"""The plan of a tensor outside an optimizer."""


@compressor_dataclass
class Auto(PhasedCompressor):
    """Use whichever of several compressors was fastest in a few timed steps, or none.

    It trains with each candidate in turn for a few steps, and times these: a step takes as long as on the slowest
    worker. It keeps the fastest, or a milder one that is no more than 1 % slower, and says so in one line of the
    log. The trial of the defaults takes at most 100 steps. All workers see the same numbers, and change over in the
    same step. Every 50 steps they compare; a new trial follows when step times have changed by more than they vary,
    and every ``look_again`` steps, if it costs no more than 5 % and 1 % of the time since the last one.

    Nothing is lost when one compressor follows another: before one that keeps no memory, a step is sent as it is
    together with everything that is held back. Where uncompressed wins, Horovod reduces the gradients itself.

    Args:
        candidates: compressors, their configurations or names, from the mildest to the strongest; what is the same for
            all of them (``min_numel``, ``bucket_mb``, ``seed``, ``process_set``, ``nonfinite``) is given to ``Auto``.
            ``Dense()`` stands for uncompressed. None: those of ``accuracy``.
        accuracy: which candidates there are by default. ``"strict"``: uncompressed, and 16 bits an element.
            ``"safe"``: these, and what alone was within 0.2 percentage points of uncompressed in our own trainings:
            8 bits an element, and SIDCo's hundredth of the elements. ``"fast"``: these, and what was within 0.6: 4
            bits, and a thousandth (there with a warm-up, here without). It is no measurement: a few steps do not
            tell what accuracy a training will end with. Without effect on ``candidates`` that are given.
        look_again: steps from one trial to the next, if nothing changes; at least 100.

    Tuning: leave it as it is. If the accuracy of a run matters more than its time, give ``accuracy="strict"``.

    >>> Auto(["dense", "sidco"], look_again=5000)
    Auto(candidates=(Dense(), SIDCo()), look_again=5000)
    """

    name: ClassVar[str] = "auto"
    schedule = (AllGather, AllReduce)

    candidates: Sequence[Compressor | Mapping[str, Any] | str] | None = None
    _: KW_ONLY
    accuracy: Literal["strict", "safe", "fast"] = "safe"
    look_again: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("accuracy", self.accuracy, ACCURACIES)
        require_int("look_again", self.look_again, 100)
        if self.candidates is not None:
            object.__setattr__(self, "candidates", checked(self.candidates))
        object.__setattr__(self, "_choosing", Choosing())

    @property
    def error_feedback(self) -> bool:  # type: ignore[override]
        """Whether some candidate remembers what it does not send."""
        return any(candidate.error_feedback for candidate in self._algorithms)

    @property
    def decoding_arrays(self) -> int:  # type: ignore[override]
        """The most that a candidate needs."""
        return max(candidate.decoding_arrays for candidate in self._algorithms)

    @property
    def runs_on_devices(self) -> bool:  # type: ignore[override]
        """Whether all candidates do."""
        return all(candidate.runs_on_devices for candidate in self._algorithms)

    @property
    def rounds_by_device(self) -> bool:  # type: ignore[override]
        """Whether some candidate does."""
        return any(candidate.rounds_by_device for candidate in self._algorithms)

    @property
    def can_flush(self) -> bool:
        return self.error_feedback

    def new_memory(self, kernels: Kernels, size: int) -> Memory:
        if not self.error_feedback:
            return Memory(kernels, size)
        memory = PausableResidual(kernels, size)
        self.choosing.memories.add(memory)
        return memory

    def prepare(self, work: Preparation) -> dict[str, str]:
        choosing = self.choosing
        compressed = {name: size for name, size in work.parameters.items() if size}
        if choosing.workers == work.workers:
            if compressed and choosing.control not in compressed:
                raise ValueError(
                    "Auto times the steps of one set of parameters, and these are others: give every optimizer or tape "
                    "an Auto of its own"
                )
            return {}
        choosing.workers, choosing.rank = work.workers, work.rank
        choosing.control = max(compressed, key=lambda name: compressed[name], default="")
        choosing.algorithms = self._candidates(work.workers)
        remembers = [bool(candidate.error_feedback) for candidate in choosing.algorithms]
        choosing.trials = Trials(remembers, self.look_again)
        choosing.restored = ""
        return {}

    def plan(self, bucket: Bucket) -> str:
        if not bucket.members:
            return UNCOMPRESSED
        trials = self.choosing.trials
        segment = trials.at(bucket.step)
        if segment.kind == FLUSH:
            return FLUSH
        reports = bucket.step >= segment.last and self.choosing.control in bucket.members
        return _plan_name(segment.candidate, reports)

    def plans(self, bucket: Bucket) -> dict[str, Collectives]:
        if not bucket.members:
            return {UNCOMPRESSED: (AllReduce,)}
        found: dict[str, Collectives] = {FLUSH: (AllGather, AllReduce)}
        for number, candidate in enumerate(self.choosing.algorithms):
            found[_plan_name(number, False)] = candidate.schedule
            if self.choosing.control in bucket.members:
                found[_plan_name(number, True)] = (AllGather, *candidate.schedule)
        return found

    def exchange(self, bucket: Bucket) -> Exchange:
        if bucket.plan == FLUSH:
            return self._flush(bucket)
        if not bucket.members:
            return Dense().exchange(bucket)
        number, _, reports = bucket.plan.partition("_")
        candidate = self._candidate(bucket.plan)
        memory = bucket.memory
        if isinstance(memory, PausableResidual) and not candidate.error_feedback:
            memory.pause()
        if bucket.state.get("candidate") != number:  # the state is of what the bucket followed before
            bucket.state.clear()
            bucket.state["candidate"] = number
        return self._reported(bucket, candidate) if reports else candidate.exchange(bucket)

    def tells(self, plan: str, collectives: Collectives) -> bool:
        if plan in (FLUSH, UNCOMPRESSED):
            return plan == FLUSH
        candidate = self._candidate(plan)
        return candidate.signals or AllGather in candidate.schedule

    @property
    def may_be_plain(self) -> bool:
        return any(type(candidate) is Dense for candidate in self._algorithms)

    def plain_steps(self, step: int) -> int:
        choosing = self.choosing
        segment = choosing.trials.at(step)
        plain = segment.kind != FLUSH and type(choosing.algorithms[segment.candidate]) is Dense
        return max(0, segment.last - step) if plain else 0

    def step_done(self, step: int, count: int = 1) -> None:
        choosing = self.choosing
        choosing.stopwatch.done(step, count, counts=choosing.trials.at(step).times(step))

    def stats(self) -> Report:
        """Return what ``Compressor.stats`` does; ``auto`` has the ``choice`` (None while the first trial is under way),
        ``why``, and a ``table`` with a row for every candidate: the median ``seconds`` of its steps (None if there were
        none), their ``variation``, and how many ``steps`` that is."""
        return super().stats().with_more({"auto": self.choosing.report()})

    def shared_state(self) -> dict[str, Any]:
        choosing = self.choosing
        return {"workers": choosing.workers, "times": list(choosing.stopwatch.times), "trials": choosing.trials.state()}

    def load_shared_state(self, state: dict[str, Any]) -> None:
        choosing = self.choosing
        trials = Trials.from_state(state["trials"])
        if state["workers"] != choosing.workers or trials.remembers != choosing.trials.remembers:
            return  # what was measured is not what will be: a new trial
        trials.look_again = self.look_again
        choosing.trials = trials
        choosing.stopwatch.times = list(state["times"])
        choosing.restored = hashlib.sha256(json.dumps(trials.state()).encode()).hexdigest()[:16]

    def fingerprint(self) -> str:
        return "".join(candidate.fingerprint() for candidate in self._algorithms)

    def restored(self) -> str:
        return self.choosing.restored

    def check_bucket_state(self, state: Mapping[str, Any], size: int) -> None:
        own = dict(state)
        number = own.pop("candidate", None)
        if not self.choosing.restored:
            return  # a new trial begins, with a flush that clears it
        if number is not None:
            require_choice("the saved candidate", number, [_plan_name(n, False) for n in range(len(self._algorithms))])
            self._candidate(number).check_bucket_state(own, size)
        else:
            super().check_bucket_state(own, size)

    def _config(self, written: Callable[[Any], Any]) -> dict[str, Any]:
        config = super()._config(written)
        if "candidates" in config:
            named = (one for one in self.candidates or () if isinstance(one, Compressor))
            config["candidates"] = [candidate._config(written) for candidate in named]
        return config

    @property
    def choosing(self) -> Choosing:
        """What changes: the trials, and what this worker has measured."""
        choosing: Choosing = self.__dict__["_choosing"]
        return choosing

    @property
    def _algorithms(self) -> tuple[Compressor, ...]:
        """The candidates; all that may be, before the number of workers is known."""
        return self.choosing.algorithms or self._candidates(1)

    def _candidates(self, workers: int) -> tuple[Compressor, ...]:
        named = tuple(one for one in self.candidates or () if isinstance(one, Compressor))
        return named or tuple(by_accuracy(self.accuracy, workers))

    def _candidate(self, plan: str) -> Compressor:
        return self.choosing.algorithms[int(plan.partition("_")[0].removeprefix("candidate"))]

    def _flush(self, bucket: Bucket) -> Exchange:
        """Send everything, and leave the memory empty."""
        values = bucket.values
        payload = bucket.payload(header.NBYTES + REPORT_BYTES)
        payload[header.NBYTES :] = self.choosing.said()
        gathered = yield AllGather(payload)
        self._hear(bucket, gathered)
        sent = bucket.device_scratch("flush", bucket.size, np.float32)
        sent[:] = values
        values[:] = 0
        bucket.state.clear()
        total = yield AllReduce(sent)
        return bucket.kernels.scaled(total, 1 / bucket.workers, bucket.decoded)

    def _reported(self, bucket: Bucket, candidate: Compressor) -> Exchange:
        """Report, then run the candidate's exchange."""
        payload = bucket.payload(header.NBYTES + REPORT_BYTES)
        payload[header.NBYTES :] = self.choosing.said()
        gathered = yield AllGather(payload)
        self._hear(bucket, gathered)
        mean: Float32 = yield from candidate.exchange(bucket)
        return mean

    def _hear(self, bucket: Bucket, gathered: Array) -> None:
        """Take the workers' reports, unless these are another bucket's business."""
        if bucket.tentative or self.choosing.control not in bucket.members:
            return
        header.check(gathered, codec=header.CUSTOM, elements=bucket.size, capacity=0)
        self.choosing.hear(bucket.step, gathered[:, header.NBYTES :])


def _plan_name(candidate: int, reports: bool) -> str:
    return f"candidate{candidate}" + ("_reports" if reports else "")
