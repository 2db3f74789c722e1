"""Compressor: Horovod's two methods, configuration, statistics and state. Algorithms subclass it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, TypeVar, dataclass_transform

from hvd_compress import schedules
from hvd_compress.exchange import AllGather, Bucket, Collective, Exchange
from hvd_compress.horovod_interface import Driver, HorovodMethod, check_hashed, constructed, driver_for
from hvd_compress.kernels import Kernels
from hvd_compress.memory import Memory, Residual
from hvd_compress.momentum import MeanMomentum
from hvd_compress.state_format import check_state, empty_state, on_host, seal
from hvd_compress.statistics import Report, Statistics
from hvd_compress.validation import require_choice, require_int, require_number, shown

T = TypeVar("T")

Collectives = tuple[type[Collective], ...]
"""The types of the collectives that an exchange yields, in order."""


@dataclass_transform(frozen_default=True, eq_default=False, field_specifiers=(dataclasses.field,))
def compressor_dataclass(cls: type[T]) -> type[T]:
    """Decorate every subclass of ``Compressor`` with this: a frozen dataclass, equal to nothing but itself."""
    return dataclass(frozen=True, eq=False, repr=False)(cls)


@dataclass(eq=False)
class Runtime:
    """The mutable part of a compressor: everything else about it is frozen."""

    driver: Driver | None = None
    pending_state: dict[str, Any] | None = None
    state_source: str = "the saved state"
    state_problem: str = ""
    survivor: bool = False
    """Whether the state comes from steps of this process among other workers than there are now, or before a restore.
    """
    trained_among: int = 0
    """The number of workers that this one has agreed with, or begun together with in an elastic state, last; 0: with
    none yet."""
    owner: Callable[[], Any] | None = None
    flush_requested: bool = False
    discard_requested: bool = False
    loss_scale: Callable[[], float] | None = None
    loss_scale_refusal: str = ""
    """Why there cannot be one, if the driver is told of none."""
    statistics: Statistics = dataclasses.field(default_factory=Statistics)
    simulated: Statistics | None = None
    """What a simulation has done with a copy."""

    def refuse_loss_scale(self, driver: str) -> None:
        """Say that this driver is told of no loss scale. Raise ValueError, now or when one is given."""
        self.loss_scale_refusal = (
            f"use_grad_scaler is for PyTorch: {driver} does not get to know the loss scale. Leave the call out; "
            "'Mixed precision' in docs/tensorflow.md says what that means"
        )
        if self.loss_scale is not None:
            raise ValueError(self.loss_scale_refusal)

    @property
    def reported(self) -> Statistics:
        """What the compressor reports: what a simulation has done with a copy, as long as no driver has it."""
        return self.simulated if self.simulated is not None and self.driver is None else self.statistics


@compressor_dataclass
class Compressor:
    """Base of all compressors: pass an instance to Horovod as ``compression=``.

    A subclass is a frozen dataclass whose fields are its parameters; it declares ``schedule`` (and ``name``, if it is
    to be registered) and writes ``exchange``. One instance serves one optimizer; its parameters cannot be changed, its
    state is its own.

    Args:
        min_numel: parameters with fewer elements, or with one dimension (biases, norms), are left to Horovod as they
            are.
        bucket_mb: gradients are fused to flat buckets of up to this many MiB (float32). Smaller buckets overlap
            better with the backward pass, larger ones cost less overhead. A parameter is never split. The last bucket
            is cut in two if it is more than half full, for it overlaps with nothing.
        seed: key of all randomness; any run can be repeated.
        process_set: Horovod process set to work in; the optimizer's own is found without being told.
        nonfinite: what becomes of a step in which a gradient is infinite or NaN on some worker. The memories stay as
            they were, whatever is chosen. ``"skip"``: under PyTorch the optimizer's step changes nothing on any rank;
            elsewhere as ``"nan"``. ``"nan"``: the means of compressed gradients are NaN. ``"zero"``: they are zeros.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the message names it.
    """

    name: ClassVar[str]
    """Name in configurations and in the registry. A class that declares none is called by its place,
    ``package.module:Class``, which is a name in configurations too."""

    schedule: ClassVar[Collectives]
    """The types of the collectives that ``exchange`` yields, in order."""

    error_feedback: ClassVar[bool] = False
    """Whether what is not sent is remembered. Biased compressors make this a parameter."""

    memory_unit: ClassVar[str] = "gradient"
    """What is remembered: gradients, or updates, which are gradients times the learning rate (``"update"``)."""

    selects: ClassVar[bool] = False
    """Whether only some of the elements are sent in a step."""

    signals: ClassVar[bool] = False
    """Whether the exchange begins with ``exchange.maximum``, and so tells the workers what else only the flags of an
    all-gathered payload would: that one of them asks for a flush, or has a gradient that is not finite."""

    decoding_arrays: ClassVar[int] = 0
    """How many temporary arrays of a bucket's size are made on a device to decode, besides a copy of what was received:
    whether there is room for them is found out before anything of a step is decided."""
    runs_on_devices: ClassVar[bool] = False
    """Whether the exchange also works where gradients are tensors on a GPU: it makes what has about as many elements by
    ``Bucket.device_scratch``, and does to it only what ``kernels.protocol.arrays`` says."""

    rounds_by_device: ClassVar[bool] = False
    """Whether what it decodes may differ in its last bits between the host and a GPU, or between two types of GPU: all
    ranks must then have the same."""

    joinable: ClassVar[bool] = False
    """Whether a rank may be absent after ``hvd.join()``: all that the exchange does is to all-reduce, zeros count for
    nothing in it, and it makes no use of the step being the same on all ranks."""

    _: KW_ONLY
    min_numel: int = 1024
    bucket_mb: float = 25.0
    seed: int = 0
    process_set: Any = None
    nonfinite: Literal["skip", "nan", "zero"] = "skip"

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "name" not in vars(cls):  # a base's is another compressor's
            cls.name = f"{cls.__module__}:{cls.__qualname__}"

    def __post_init__(self) -> None:
        if type(self).__eq__ is not object.__eq__ or type(self).__hash__ is not Compressor.__hash__:
            raise TypeError(
                f"two compressors are never the same, for each has a state of its own: declare {type(self).__name__} "
                "with @hvd_compress.compressor_dataclass"
            )
        if not hasattr(type(self), "schedule"):
            raise TypeError(
                f"{type(self).__name__} needs a schedule, the types of the collectives that its exchange yields, in "
                "order: schedule = (hvd_compress.AllGather,), say"
            )
        object.__setattr__(self, "_runtime", Runtime())
        require_int("min_numel", self.min_numel, 1)
        require_int("seed", self.seed, 0)
        require_number("bucket_mb", self.bucket_mb, "of MiB in (0, 8192]", lambda mb: 0 < mb <= 8192)
        require_choice("nonfinite", self.nonfinite, ("skip", "nan", "zero"))
        if self.process_set is not None and not hasattr(self.process_set, "process_set_id"):
            raise TypeError(f"process_set must be one of Horovod's process sets, got {shown(self.process_set)}")
        constructed()

    def exchange(self, bucket: Bucket) -> Exchange:
        """Run the algorithm on one worker's bucket: a generator that yields collectives and is sent their results.

        It returns the mean over the workers (float32, ``bucket.size``), bit-identical on every worker, and leaves in
        ``bucket.values`` exactly what the receivers will not get. Every worker must yield the same collectives in the
        same order with arrays of the same size and dtype, whatever its data.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define exchange")

    def fingerprint(self) -> str:
        """Return what tells apart what is not in the configuration and must be the same on all ranks: the content of
        a file that was read, say."""
        return ""

    def new_memory(self, kernels: Kernels, size: int) -> Memory:
        """Return a new error-feedback memory for a bucket of ``size`` elements."""
        return Residual(kernels, size) if self.error_feedback else Memory(kernels, size)

    def mean_momentum(self) -> MeanMomentum | None:
        """Return the momentum that the means of parameters left to Horovod get, new; None for none, and no weight decay
        either."""
        return None

    def gradient_limit(self, workers: int) -> float | None:
        """Return the Euclidean norm that every worker's gradient of a parameter, as it is without a loss scale, is
        scaled down to before anything else is done with it; None for any."""
        return None

    def limit_gradients(self, bucket: Bucket) -> None:
        """Scale down the gradients that a bucket's memory has just been given, by parameter, to ``gradient_limit``."""
        limit = self.gradient_limit(bucket.workers)
        if limit is not None:
            bucket.memory.clip(limit * bucket.loss_scale)

    @HorovodMethod
    def compress(self, tensor: Any) -> tuple[Any, Any]:
        """Return a token for Horovod to all-reduce, and a context, for a new gradient: Horovod's first method."""
        driver = self.runtime.driver
        if driver is None:
            driver = self.runtime.driver = driver_for(tensor)(self)
        return driver.compress(tensor)

    @HorovodMethod
    def decompress(self, tensor: Any, ctx: Any) -> Any:
        """Return the mean (times what the reduced token says) for the context. This is Horovod's second method."""
        if ctx is None:
            return tensor
        if self.runtime.driver is None:
            raise RuntimeError("decompress was called before compress")
        return self.runtime.driver.decompress(tensor, ctx)

    def bind(self, optimizer: Any) -> None:
        """Say which optimizer this compressor serves. Not needed where Horovod calls it: it is found then.

        Raises:
            TypeError: not an optimizer made by ``hvd.DistributedOptimizer`` with this compressor.
            ValueError: it reduces with Adasum, or in another process set.
        """
        if self.runtime.driver is None:
            self.runtime.driver = driver_for(optimizer)(self)
        self.runtime.driver.bind(optimizer)

    def flush(self) -> None:
        """Make the next step send, after the usual exchange, everything that is held back, and leave memories empty.

        Any one rank may ask; all take part. Call it before the backward pass of the last step ahead of a checkpoint
        that rank 0 writes alone: afterwards the state of all ranks is the same. Nothing to do for compressors without
        memory.

        Raises:
            NotImplementedError: the compressor has a memory, but nothing that could carry the request.
        """
        if self.error_feedback and not self.can_flush:
            raise NotImplementedError(
                f"{type(self).__name__} cannot flush: the request travels in all-gathered payloads or in "
                "exchange.maximum, and it has neither"
            )
        self.runtime.flush_requested = True

    def discard(self) -> None:
        """Make the next step leave memories and the algorithm's state as they are, whatever its gradients.

        For gradients that are looked at and thrown away: a probe, a batch that may turn out bad. The step's mean is
        given as usual. Any one rank may ask; all take part. Call it before the backward pass. Nothing to do for
        compressors without memory.

        Raises:
            NotImplementedError: the compressor has a memory, but nothing that could carry the request.
        """
        if self.error_feedback and not self.can_flush:
            raise NotImplementedError(
                f"{type(self).__name__} cannot discard a step: the request travels in all-gathered payloads or in "
                "exchange.maximum, and it has neither"
            )
        self.runtime.discard_requested = True

    def use_grad_scaler(self, scaler: Any) -> None:
        """Keep the memory in step with the loss scale of ``scaler``, anything with ``get_scale()``.

        A memory is in units of the scaled gradient: without this, what is held back counts double or half after each
        change of the scale, unless a ``GradScaler`` makes the optimizer's steps. Nor do DGC's ``clip`` and
        ``weight_decay``, and saved states, know the unit of the gradients without it. Under PyTorch; call it before the
        first step, on every rank.

        Raises:
            ValueError: the compressor works under TensorFlow, or on arrays, where no loss scale is known. If that is
                not known yet, the first step raises it.
        """
        if self.runtime.loss_scale_refusal:
            raise ValueError(self.runtime.loss_scale_refusal)
        self.runtime.loss_scale = scaler.get_scale

    def stats(self) -> Report:
        """Return what was sent and where the time went; keys ``recent`` (since the last call) and ``total``.

        Each holds ``steps``, ``sent_bytes`` and ``dense_bytes`` (by this rank, handed to collectives: compressed and
        uncompressed parameters together, and what plain Horovod would have handed over), ``ratio`` (dense / sent),
        ``achieved`` (elements sent / elements meant to be sent; None for compressors that do not select),
        ``skipped_steps`` (not finite), and ``seconds`` by phase: ``compress``, ``wait``, ``decompress``.
        ``sent_bytes_by_scope`` says of the bytes sent how many went to collectives among ``all`` workers, those of this
        ``node``, and this worker's ``peers`` on other nodes.

        Where gradients are on a GPU, ``transport`` says how what is sent gets to Horovod: ``"nccl"``, as tensors there,
        or ``"host"``, by way of pinned memory.

        The dict is printed, and shown in a notebook, as a table.
        """
        return self.runtime.reported.report()

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's state: step, buckets, memories (as the framework's tensors), to be saved by each rank.

        Call it between steps. The result is a copy; ``state_format`` says what is in it.

        Raises:
            ValueError: a state was loaded that cannot be used: there is nothing to be saved.
        """
        if self.runtime.state_problem:
            raise ValueError(self.runtime.state_problem)
        driver = self.runtime.driver
        state = driver.state_dict() if driver is not None else {}
        return seal(state or copy.deepcopy(self.runtime.pending_state or empty_state(self.name)))

    def load_state_dict(self, state: Any, *, source: str = "the saved state") -> None:
        """Restore what ``state_dict`` returned. Before the first step of a new compressor with the same parameters.

        What is wrong with a state on one rank concerns all: it is told to the others when they agree on the first
        step, which then raises the same ValueError on every rank. It names ``source``, such as the path of the file
        that the state was read from.

        Raises:
            RuntimeError: training with this compressor has already begun.
        """
        if self.runtime.driver is not None:
            raise RuntimeError(
                f"load_state_dict must come before the first step of {self!r}; make a new compressor to resume"
            )
        state = on_host(state)
        try:
            check_state(self.name, state)
        except (TypeError, ValueError) as error:
            self.refuse_state(f"{source}: {error}")
            return
        used = state["step"] or state["memory"]
        self.runtime.pending_state = copy.deepcopy(state) if used else None
        self.runtime.state_source = source
        self.runtime.state_problem = ""

    def refuse_state(self, problem: str) -> None:
        """Have the first step raise ValueError with this message, on every rank: this rank has no state to go on with.

        For those who read a state and find on one rank that they cannot.
        """
        self.runtime.pending_state = None
        self.runtime.state_problem = problem

    def check_bucket_state(self, state: Mapping[str, Any], size: int) -> None:
        """Raise TypeError or ValueError unless ``state`` can have been ``Bucket.state`` of ``size`` elements after a
        step. It is asked of a saved state before that is taken over; by default whatever was saved is."""

    def to_config(self) -> dict[str, Any]:
        """Return a JSON-able configuration: ``name`` and the parameters that differ from their defaults.

        Raises:
            TypeError: there is a schedule of the user's own, which cannot be written down.
        """
        return self._config(schedules.to_config)

    def comparable_config(self) -> dict[str, Any]:
        """Return what ``to_config`` does, with values at some steps in place of a schedule of the user's own: what
        workers compare, and records show. Nothing can be made of it again."""
        return self._config(schedules.comparable)

    def _config(self, written: Callable[[Any], Any]) -> dict[str, Any]:
        """Return the configuration, each number or schedule as it is ``written``."""
        config: dict[str, Any] = {"name": self.name}
        for key, value in self._changed().items():
            if key != "process_set":  # belongs to a run, not to a configuration
                config[key] = list(value) if isinstance(value, tuple) else written(value)
        return config

    @classmethod
    def parameters(cls) -> dict[str, Any]:
        """Return the parameters' names and defaults (``dataclasses.MISSING`` where there is none)."""
        return {field.name: field.default for field in dataclasses.fields(cls)}

    @property
    def can_flush(self) -> bool:
        """Whether there is a memory, and the workers can agree to empty it."""
        return self.error_feedback and (self.signals or AllGather in self.schedule)

    @property
    def runtime(self) -> Runtime:
        """The mutable state; for drivers."""
        runtime: Runtime = self.__dict__["_runtime"]
        return runtime

    def __hash__(self) -> int:
        check_hashed(self)
        return object.__hash__(self)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={value!r}" for key, value in self._changed().items())
        return f"{type(self).__name__}({arguments})"

    def __copy__(self) -> Compressor:
        return dataclasses.replace(self)  # the parameters are immutable; state stays with its owner

    def __deepcopy__(self, memo: Any) -> Compressor:
        return copy.copy(self)

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _remake, (type(self), arguments)

    def _changed(self) -> dict[str, Any]:
        positional = [f for f in dataclasses.fields(self) if not f.kw_only]
        rest = [f for f in dataclasses.fields(self) if f.kw_only]
        pairs = ((f.name, getattr(self, f.name), f.default) for f in positional + rest)
        return {name: value for name, value, default in pairs if value != default}


def _remake(cls: type[Compressor], arguments: dict[str, Any]) -> Compressor:
    """Make a compressor of another's parameters; pickling and copying leave the state with its owner."""
    return cls(**arguments)
