"""LGC: learned gradient compression (Abrahamyan, Chen, Bekoulis, Deligiannis; IEEE TNNLS 2021, arXiv 2103.08870)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY
from typing import Any, ClassVar, Literal

from hvd_compress import schedules
from hvd_compress.compressor import Collectives, compressor_dataclass
from hvd_compress.exchange import Bucket, Exchange
from hvd_compress.kernels import WIRES
from hvd_compress.lgc import encoded, untrained
from hvd_compress.lgc.architecture import DECODER, ENCODER, architecture
from hvd_compress.lgc.common_values import Settings
from hvd_compress.lgc.learning import Learning
from hvd_compress.lgc.plans import DENSE, LEARNED, PLANS, REDUCE_DTYPES, TOP_K, kinds_of, training_plan
from hvd_compress.lgc.route import ROUTES
from hvd_compress.lgc.supervisor import Supervisor
from hvd_compress.phased import PhasedCompressor, Preparation
from hvd_compress.sparsifier import Selective
from hvd_compress.statistics import Report
from hvd_compress.validation import reject_unknown, require_bool, require_choice, require_int, require_number, shown

TRAINERS = ("auto", "process", "inline")


@compressor_dataclass
class LGC(Selective, PhasedCompressor):
    """Send what an autoencoder makes of the values at a leader's top-k indices.

    1. For ``dense_steps`` steps everything is sent.
    2. For ``train_steps`` steps a leader, a different one in each step, broadcasts the indices of its k largest
       elements; all workers send their values there. From these an autoencoder learns what the workers have in
       common, on the rank ``leader``: over MPI the values are all-reduced (float32), and the single vectors go to that
       rank in messages of mpi4py; otherwise they are all-gathered. Its weights are then broadcast, and all ranks change
       over in the same step.
    3. From then on only codes are sent, a quarter of the values, as float16. ``variant="allreduce"``: codes are
       averaged on their way, and one decoder makes the mean of it. ``variant="gather"``: one worker's code, chosen at
       random in each step, stands for all; every worker adds its innovation, the few values that are largest.

    The first layer is sent as it is, and the last one's largest elements without the autoencoder. The memory keeps
    what a worker's own round trip through the autoencoder loses. If the autoencoder is worse than top-k in float16 for
    the same bytes, or its trainer dies, LGC says so once and stays with top-k.

    Our own step beyond the paper: the signs of the leader's values travel with the indices (one bit each), and all
    workers' values are multiplied by them, which is what makes them alike; ``signs=False`` is the paper's.

    Args:
        variant: ``"allreduce"`` or ``"gather"``.
        leader: the rank that trains.
        dense_steps: steps in which everything is sent.
        train_steps: steps of top-k after that, in which the autoencoder is trained; fewer if it stops to improve.
        dense: patterns (``fnmatch``) of the names of parameters to send as they are; None: the first layer's, if there
            are three or more.
        topk_only: patterns of those to send without the autoencoder; None: the last layer's, as above.
        encoder: channels of the encoder's convolutions, the last are the code's.
        decoder: channels of the decoder's, one less.
        innovation: gather variant: the fraction of the k values that every worker sends as they are.
        similarity: gather variant: weight of the loss that makes the workers' codes alike.
        signs: multiply by the signs of the leader's values.
        floor: stay with top-k if that is better; False: use the autoencoder whatever it is worth.
        weights: file of weights to start with, without phases 1 and 2: the same content on every rank.
        record: folder to which the leader writes what it trains on, for ``hvd-compress lgc-train``.
        trainer: ``"process"``: beside the training; ``"inline"``: between its steps, which takes longer and can be
            repeated bit for bit; ``"auto"``: inline in the simulation, otherwise a process.
        route: how vectors come to the trainer: ``"mpi"``: in messages of mpi4py, to the rank ``leader`` only;
            ``"allgather"``: with the update, to all; ``"auto"``: over MPI if the job runs over MPI, mpi4py is
            installed, and the trainer is a process: what comes when, is not the same in every run.
        wire: type of values that are not encoded: ``"float32"``, ``"bfloat16"`` or ``"float16"``. Over MPI, phase 2's
            are float32 whatever this says.

    Tuning: it pays where workers see similar data and k is a few hundred to some ten thousand: the convolutions cost
    more than all else in this library. Train weights once, offline, and give them as ``weights=`` from then on.

    >>> LGC(0.01, "gather", train_steps=500)
    LGC(ratio=0.01, variant='gather', train_steps=500)
    """

    name: ClassVar[str] = "lgc"
    runs_on_devices: ClassVar[bool] = True
    decoding_arrays: ClassVar[int] = 1
    """A mean as the autoencoder has it."""
    reduce_dtypes = REDUCE_DTYPES
    rank_local = ("weights", "record")

    ratio: float | schedules.Schedule = 0.001
    variant: Literal["allreduce", "gather"] = "allreduce"
    _: KW_ONLY
    leader: int = 0
    dense_steps: int = 200
    train_steps: int = 300
    dense: tuple[str, ...] | None = None
    topk_only: tuple[str, ...] | None = None
    encoder: tuple[int, ...] = ENCODER
    decoder: tuple[int, ...] = DECODER
    innovation: float = 0.1
    similarity: float = 0.1
    signs: bool = True
    floor: bool = True
    weights: str | None = None
    record: str | None = None
    trainer: Literal["auto", "process", "inline"] = "auto"
    route: Literal["auto", "mpi", "allgather"] = "auto"
    wire: Literal["float32", "bfloat16", "float16"] = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("trainer", self.trainer, TRAINERS)
        require_choice("route", self.route, ROUTES)
        require_choice("wire", self.wire, WIRES)
        for name in ("leader", "dense_steps", "train_steps"):
            require_int(name, getattr(self, name), 0)
        for name in ("dense", "topk_only"):
            object.__setattr__(self, name, _patterns(name, getattr(self, name)))
        for name in ("signs", "floor"):
            require_bool(name, getattr(self, name))
        for name in ("weights", "record"):
            object.__setattr__(self, name, _path(name, getattr(self, name)))
        require_number("similarity", self.similarity, "finite and at least 0", lambda x: 0 <= x < math.inf)
        made = architecture(self.variant, self.encoder, self.decoder, self.innovation)
        object.__setattr__(self, "encoder", made.encoder)
        object.__setattr__(self, "decoder", made.decoder)
        for module in ("torch", "safetensors"):
            if importlib.util.find_spec(module) is None:
                raise ImportError(f"LGC needs {module}, under TensorFlow as well: pip install 'hvd-compress[lgc]'")
        supervisor = Supervisor(
            architecture=made,
            seed=self.seed,
            similarity=self.similarity,
            floor=self.floor,
            record_to=self.record,
        )
        learning = Learning(
            architecture=made,
            leader=self.leader,
            dense_steps=self.dense_steps,
            train_steps=self.train_steps,
            seed=self.seed,
            inline=None if self.trainer == "auto" else self.trainer == "inline",
            weights=self.weights,
            supervisor=supervisor,
            route=self.route,
        )
        object.__setattr__(self, "_learning", learning)

    @property
    def schedule(self) -> Collectives:  # type: ignore[override]
        """Return the collectives of the first step of what is encoded later."""
        phase = self.learning.phase(0)
        return PLANS[
            {"train": training_plan(self.learning.by, control=True), "learned": self.variant}.get(phase, phase)
        ]

    @property
    def learning(self) -> Learning:
        """Return what the buckets of this compressor have in common: the phase, the autoencoder, the trainer."""
        learning: Learning = self.__dict__["_learning"]
        return learning

    @property
    def can_flush(self) -> bool:
        return self.error_feedback

    def prepare(self, work: Preparation) -> dict[str, str]:
        if self.leader >= work.workers:
            raise ValueError(
                f"leader must be one of the {work.workers} ranks, 0 to {work.workers - 1}, got {self.leader}"
            )
        kinds = kinds_of(list(work.parameters), self.dense, self.topk_only)
        learned = {name: size for name, size in work.parameters.items() if size and kinds[name] == LEARNED}
        self.learning.begin(work, max(learned, key=lambda name: learned[name], default=""))
        return kinds

    def plan(self, bucket: Bucket) -> str:
        phase = self.learning.phase(bucket.step)
        if not bucket.kind or bucket.size == 0:
            return TOP_K  # outside an optimizer
        if bucket.kind == DENSE or phase == DENSE:
            if self.learning.control in bucket.members:
                self.learning.warm_up(bucket.step)
            return DENSE
        if bucket.kind == TOP_K or phase == TOP_K:
            return TOP_K
        if self._k(bucket) < self.learning.architecture.receptive_field:
            if bucket.step and self.learning.control in bucket.members:
                self.learning.too_short(self._k(bucket))
            return TOP_K
        if phase == "train":
            self.learning.warm_up(bucket.step)
            return self._training_plan(bucket)
        return self.variant if self.learning.fits(bucket) else TOP_K

    def plans(self, bucket: Bucket) -> dict[str, Collectives]:
        if not bucket.kind:
            return {TOP_K: PLANS[TOP_K]}
        if bucket.kind == DENSE:
            return {DENSE: PLANS[DENSE]}
        names = [DENSE, TOP_K]
        if bucket.kind == LEARNED:
            names += [self._training_plan(bucket), self.variant]
        return {name: PLANS[name] for name in names}

    def exchange(self, bucket: Bucket) -> Exchange:
        plan = bucket.plan or self.plan(bucket)
        if plan == DENSE:
            return untrained.dense(bucket)
        settings = Settings(self.learning, self._k(bucket), self.signs, self.wire, self.error_feedback)
        if plan == TOP_K:
            return untrained.top_k(bucket, settings)
        if plan in ("train", "control"):
            return untrained.train_by_all_gather(bucket, settings)
        if plan in ("train_mpi", "control_mpi"):
            return untrained.train_over_mpi(bucket, settings)
        if plan == "allreduce":
            return encoded.mean_of_codes(bucket, settings)
        return encoded.one_code_and_innovations(bucket, settings)

    def stats(self) -> Report:
        """Return what ``Compressor.stats`` does; ``lgc`` says which phase it is, why not another, how the autoencoder
        was trained, how vectors come to the trainer and how many did not, its error on held-out vectors beside that of
        top-k, and what it costs in seconds."""
        return super().stats().with_more({"lgc": self.learning.report()})

    def on_agreement(self, step: int) -> None:
        self.learning.on_agreement(step)

    def shared_state(self) -> dict[str, Any]:
        return self.learning.save()

    def load_shared_state(self, state: dict[str, Any]) -> None:
        self.learning.load(state)

    def restored(self) -> str:
        return self.learning.restored

    def follow(self, state: dict[str, Any], step: int) -> None:
        self.learning.follow(state, step)

    def fingerprint(self) -> str:
        return self.learning.fingerprint

    def check_bucket_state(self, state: Mapping[str, Any], size: int) -> None:
        reject_unknown(state, ("debt", "top_k_from"), "the saved state of LGC's buckets")
        for key, value in state.items():
            require_int(f"the saved {key}", value, 0)

    def _training_plan(self, bucket: Bucket) -> str:
        return training_plan(self.learning.by, control=self.learning.control in bucket.members)

    def _k(self, bucket: Bucket) -> int:
        return min(self.target(bucket)[1], bucket.size)


def _patterns(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or any(not isinstance(pattern, str) for pattern in value):
        raise TypeError(f"{name} must be patterns of parameters' names, such as ['stem.*'], got {shown(value)}")
    return tuple(value)


def _path(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) and not hasattr(value, "__fspath__"):
        raise TypeError(f"{name} must be a path, got {shown(value)}")
    return str(value)
