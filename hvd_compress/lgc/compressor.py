"""LGC: learned gradient compression (Abrahamyan, Chen, Bekoulis, Deligiannis; IEEE TNNLS 2021, arXiv 2103.08870)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Generator, Sequence
from dataclasses import KW_ONLY
from fnmatch import fnmatchcase
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hvd_compress import schedules
from hvd_compress.algorithms.selection import largest, send
from hvd_compress.codecs import header
from hvd_compress.codecs.index_set import IndexSetFormat
from hvd_compress.codecs.sparse import SparseFormat
from hvd_compress.compressor import Collectives, Selective, compressor_dataclass
from hvd_compress.exchange import AllGather, AllReduce, Array, Broadcast, Bucket, Collective, Exchange
from hvd_compress.kernels import WIRES, CorruptPayload, Float32, UInt32
from hvd_compress.lgc.architecture import DECODER, ENCODER, VARIANTS, Architecture
from hvd_compress.lgc.learning import CONTROL, Learning
from hvd_compress.lgc.route import ROUTES
from hvd_compress.phased import PhasedCompressor, Preparation
from hvd_compress.validation import require_bool, require_choice, require_int, require_number

TRAINERS = ("auto", "process", "inline")

DENSE, TOP_K, LEARNED = "dense", "topk", "learned"
"""Kinds of parameters."""

PLANS: dict[str, Collectives] = {
    "dense": (AllGather, AllReduce),
    "topk": (AllGather,),
    "train": (Broadcast, AllGather),
    "control": (Broadcast, AllGather, Broadcast),
    "train_mpi": (Broadcast, AllGather, AllReduce),
    "control_mpi": (Broadcast, AllGather, AllReduce, Broadcast),
    "allreduce": (Broadcast, AllGather, AllReduce),
    "gather": (Broadcast, AllGather),
}
"""What a bucket may do in a step, and the collectives of that."""

LARGEST = (np.inf, np.float32((2 - 2.0**-7) * 2.0**127), np.float32(65504))
"""Largest number of each of ``WIRES``; what is beyond it stays in the memory."""

ENERGIES = 8
"""Bytes in which a worker says what its round trip loses."""

CLIP = 2.0**14
"""Largest magnitude, after normalization, that the autoencoder gets to see."""

LEAST = 256
"""Values that top-k sends at least, about as many as a network packet holds: of a small last layer the ratio alone
would leave next to nothing, and that costs accuracy."""


class Shared(NamedTuple):
    """The values at the indices that all workers have in common in a step."""

    indices: UInt32
    signs: Float32
    values: Float32
    """This worker's; they have left the bucket's."""
    scale: float
    rest: Array
    """What the root sent besides."""


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
    reduce_dtypes = {  # noqa: RUF012 - as in the base, and never changed
        "dense": "float32",
        "train_mpi": "float32",
        "control_mpi": "float32",
        "allreduce": "float16",
    }

    rank_local = ("weights", "record")

    ratio: float | schedules.Schedule = 0.001
    variant: str = "allreduce"
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
    trainer: str = "auto"
    route: str = "auto"
    wire: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("variant", self.variant, VARIANTS)
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
        learning = Learning(
            architecture=made,
            leader=self.leader,
            dense_steps=self.dense_steps,
            train_steps=self.train_steps,
            similarity=self.similarity,
            seed=self.seed,
            floor=self.floor,
            inline=None if self.trainer == "auto" else self.trainer == "inline",
            weights=self.weights,
            record_to=self.record,
            route=self.route,
        )
        object.__setattr__(self, "_learning", learning)

    @property
    def schedule(self) -> Collectives:  # type: ignore[override]
        """Of the first step of what is encoded later."""
        phase = self.learning.phase(0)
        return PLANS[{"train": self._training(True), "learned": self.variant}.get(phase, phase)]

    @property
    def learning(self) -> Learning:
        """What the buckets of this compressor have in common: the phase, the autoencoder, the trainer."""
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
        kinds = self._kinds(list(work.parameters))
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
            return self._training(self.learning.control in bucket.members)
        return self.variant

    def plans(self, bucket: Bucket) -> dict[str, Collectives]:
        if not bucket.kind:
            return {TOP_K: PLANS[TOP_K]}
        if bucket.kind == DENSE:
            return {DENSE: PLANS[DENSE]}
        names = [DENSE, TOP_K]
        if bucket.kind == LEARNED:
            names += [self._training(self.learning.control in bucket.members), self.variant]
        return {name: PLANS[name] for name in names}

    def exchange(self, bucket: Bucket) -> Exchange:
        plan = bucket.plan or self.plan(bucket)
        if plan == DENSE:
            return self._dense(bucket)
        if plan == TOP_K:
            return self._top_k(bucket)
        if plan in ("train", "control"):
            return self._train(bucket)
        if plan in ("train_mpi", "control_mpi"):
            return self._train_over_mpi(bucket)
        return self._encoded(bucket) if plan == "allreduce" else self._innovations(bucket)

    def stats(self) -> dict[str, Any]:
        """As ``Compressor.stats``; ``lgc`` says which phase it is, why not another, how the autoencoder was trained,
        how vectors come to the trainer and how many did not, its error on held-out vectors beside that of top-k, and
        what it costs in seconds."""
        return {**super().stats(), "lgc": self.learning.report()}

    def on_agreement(self, step: int) -> None:
        self.learning.on_agreement(step)

    def shared_state(self) -> dict[str, Any]:
        return self.learning.save()

    def load_shared_state(self, state: dict[str, Any]) -> None:
        self.learning.load(state)

    def fingerprint(self) -> str:
        return self.learning.fingerprint

    def _kinds(self, names: list[str]) -> dict[str, str]:
        """First layer, last layer, and what is between."""
        layers = list(dict.fromkeys(map(_layer, names)))
        kinds = {}
        for name in names:
            first, last = (_layer(name) == layers[end] and len(layers) >= 3 for end in (0, -1))
            if _chosen(name, self.dense, first):
                kinds[name] = DENSE
            else:
                kinds[name] = TOP_K if _chosen(name, self.topk_only, last) else LEARNED
        return kinds

    def _training(self, control: bool) -> str:
        """The plan of phase 2."""
        return ("control" if control else "train") + ("_mpi" if self.learning.by == "mpi" else "")

    def _k(self, bucket: Bucket) -> int:
        return min(self.target(bucket)[1], bucket.size)

    def _dense(self, bucket: Bucket) -> Exchange:
        values = bucket.values
        yield AllGather(bucket.payload(header.NBYTES))  # nothing but the flags
        sent = bucket.scratch("dense", bucket.size, np.float32)
        np.copyto(sent, values)
        values[:] = 0
        bucket.target = bucket.sent = bucket.size
        total = yield AllReduce(sent)
        return np.multiply(total, np.float32(1 / bucket.workers), out=bucket.decoded)

    def _top_k(self, bucket: Bucket) -> Exchange:
        k = min(max(self._k(bucket), LEAST), bucket.size)
        indices, values = largest(bucket, k)
        layout = SparseFormat(bucket.size, -(-k // 8) * 8, self.wire)
        bucket.target, bucket.sent = k, len(indices)
        gathered = yield send(bucket, layout, indices, values, self.error_feedback)
        return layout.decode(bucket.kernels, gathered, 1 / bucket.workers, bucket.decoded)

    def _shared(self, bucket: Bucket, root: int, with_code: bool = False) -> Generator[Collective, Array, Shared]:
        """Take the values at the root's top-k indices out of the bucket's; with the root's code, if wanted."""
        k = self._k(bucket)
        layout = IndexSetFormat(bucket.size, k)
        codes = 2 * self.learning.architecture.numbers(k) if with_code else 0
        buffer = bucket.scratch("set", layout.nbytes + codes, np.uint8)
        buffer[:] = 0
        if bucket.rank == root:
            found, taken = largest(bucket, k)
            indices, values = found.copy(), taken.copy()
            scale = _scale(values)
            layout.encode(indices, values, scale, buffer[: layout.nbytes])
            if codes:
                signs = np.where(values < 0, np.float32(-1), np.float32(1))
                vector = self._normalized(Shared(indices, signs, values, scale, buffer), k)
                buffer[layout.nbytes :] = self.learning.encode(vector, 1).reshape(-1).view(np.uint8)
        else:
            _ = bucket.values  # the sum of memory and gradient, while the root is busy
        received = yield Broadcast(buffer, root)
        indices_sent, signs, scale = layout.decode(received[: layout.nbytes])
        if bucket.rank != root:
            indices = indices_sent
            values = np.empty(len(indices), np.float32)
            bucket.kernels.take(bucket.values, indices, values)
            bucket.kernels.restore(bucket.values, indices, np.zeros(len(indices), np.float32))
        bucket.target = bucket.sent = k
        return Shared(indices, signs, values, scale, received[layout.nbytes :])

    def _train(self, bucket: Bucket) -> Exchange:
        """Values at the common indices are gathered, and what everybody gets the trainer gets."""
        k, workers, learning = self._k(bucket), bucket.workers, self.learning
        root = bucket.step % workers
        shared = yield from self._shared(bucket, root)
        n, at, wire = len(shared.indices), header.NBYTES + CONTROL, WIRES.index(self.wire)
        control = learning.control in bucket.members
        payload = bucket.payload(at + k * (2 if wire else 4))
        if control:
            payload[header.NBYTES : at] = learning.record(bucket.step, k)
        if wire:
            words = payload[at:].view(np.uint16)
            bucket.kernels.narrow(np.clip(shared.values, -LARGEST[wire], LARGEST[wire]), wire, words[:n])
            if self.error_feedback:
                lost = shared.values - _widened(bucket, words[None, :n], wire)[0]
                bucket.kernels.restore(bucket.values, shared.indices, lost)
        else:
            payload[at:].view(np.float32)[:n] = shared.values
        gathered = yield AllGather(payload)
        header.check(gathered, codec=header.CUSTOM, elements=bucket.size, capacity=0)
        rows = np.ascontiguousarray(gathered[:, at:])
        vectors = rows.view(np.float32) if not wire else _widened(bucket, rows.view(np.uint16), wire)
        if learning.wants and not header.flags(gathered) & header.NONFINITE:
            given = np.zeros((workers, k), np.float32)
            factor = shared.signs if self.signs else np.float32(1)
            with np.errstate(over="ignore"):
                given[:, :n] = vectors[:, :n] * (factor / np.float32(shared.scale))
            given = np.roll(given, -root, axis=0)  # the root, whose indices and signs these are, comes first
            learning.feed(given, self._entries(bucket, k), f"{bucket.step:07d}-{bucket.name}")
        if control:
            size = learning.heard(gathered[:, header.NBYTES : at], bucket.step)
            learning.received((yield Broadcast(learning.chunk(size), self.leader)), size, k)
        mean = np.zeros(n, np.float32)
        for row in vectors:
            mean += row[:n] * np.float32(1 / workers)
        return _scattered(bucket, shared.indices, mean)

    def _train_over_mpi(self, bucket: Bucket) -> Exchange:
        """Values at the common indices are summed, and the rank that trains gets each worker's by itself."""
        k, learning = self._k(bucket), self.learning
        root = bucket.step % bucket.workers
        shared = yield from self._shared(bucket, root)
        n, control = len(shared.indices), learning.control in bucket.members
        payload = bucket.payload(header.NBYTES + (CONTROL if control else 0))
        if control:
            payload[header.NBYTES :] = learning.record(bucket.step, k)
        gathered = yield AllGather(payload)
        header.check(gathered, codec=header.CUSTOM, elements=bucket.size, capacity=0)
        size = learning.heard(gathered[:, header.NBYTES :], bucket.step) if control else 0
        if learning.passes(bucket.step) and not header.flags(gathered) & header.NONFINITE:
            vector = self._normalized(shared, k)[0]
            bucket.extra_sent_bytes += learning.pass_on(
                bucket.step, bucket.name, vector, self._entries(bucket, k), root
            )
        sent = bucket.scratch("train", k, np.float32)
        sent[n:] = 0
        np.multiply(shared.values, np.float32(1 / bucket.workers), out=sent[:n])  # so that the sum cannot overflow
        mean = yield AllReduce(sent)
        if control:
            mean = mean.copy()  # whoever delivered it may have other uses for it by the time of the next result
            learning.received((yield Broadcast(learning.chunk(size), self.leader)), size, k)
        return _scattered(bucket, shared.indices, mean[:n])

    def _encoded(self, bucket: Bucket) -> Exchange:
        """Codes are averaged, and the mean decoded."""
        k, learning = self._k(bucket), self.learning
        shared = yield from self._shared(bucket, bucket.step % bucket.workers)
        code = learning.encode(self._normalized(shared, k), bucket.workers)
        lost = shared.values - self._restored(shared, learning.decode(code, k)[0])
        payload = bucket.payload(header.NBYTES + ENERGIES)
        payload[header.NBYTES :].view(np.float32)[:] = _energies(lost, shared)
        gathered = yield AllGather(payload)
        error = _relative(gathered[:, header.NBYTES :])
        if learning.control in bucket.members:
            learning.watch(error, bucket.step)
        # a flush sends everything after this, a step that is abandoned nothing; and error feedback needs a round trip
        # that loses less than all
        nothing = bool(header.flags(gathered)) or error >= 1
        if nothing:
            code[:] = 0
            lost = shared.values
        if self.error_feedback:
            bucket.kernels.restore(bucket.values, shared.indices, lost)
        total = yield AllReduce(code[0])
        if nothing:
            return _scattered(bucket, shared.indices, np.zeros(len(shared.indices), np.float32))
        mean = total.astype(np.float32) / np.float32(bucket.workers)
        return _scattered(bucket, shared.indices, self._restored(shared, learning.decode(mean[None], k)[0]))

    def _innovations(self, bucket: Bucket) -> Exchange:
        """One worker's code for all, and every worker's largest values."""
        k, workers, learning = self._k(bucket), bucket.workers, self.learning
        shared = yield from self._shared(bucket, bucket.key(1) % workers, with_code=True)
        code = shared.rest.view(np.float16).reshape(1, -1)
        count = learning.architecture.innovations(k)
        vector = self._normalized(shared, k)[0]
        chosen = np.sort(np.argpartition(-np.abs(vector), count - 1)[:count])
        begin = header.NBYTES + ENERGIES
        at = begin + places_nbytes(count, k)
        payload = bucket.payload(at + 2 * count)
        _put_places(chosen, k, payload[begin:at])
        payload[at:].view(np.float16)[:] = vector[chosen]
        mine = _innovation(payload[None, begin:], at - begin, count, k)
        lost = shared.values - self._restored(shared, learning.decode(code, k, mine)[0])
        energies = _energies(lost, shared)
        if energies[0] >= energies[1]:  # then the innovation is all that is taken from this worker
            lost = shared.values - self._restored(shared, mine[0])
        payload[header.NBYTES : begin].view(np.float32)[:] = energies
        if self.error_feedback:
            bucket.kernels.restore(bucket.values, shared.indices, lost)
        gathered = yield AllGather(payload)
        header.check(gathered, codec=header.CUSTOM, elements=bucket.size, capacity=0)
        told = gathered[:, header.NBYTES : begin]
        if learning.control in bucket.members:
            learning.watch(_relative(told), bucket.step)
        useless = np.greater_equal(*told.copy().view(np.float32).T)
        innovations = _innovation(gathered[:, begin:], at - begin, count, k)
        vectors = learning.decode(np.repeat(code, workers, 0), k, innovations)
        mean = np.zeros(len(shared.indices), np.float32)
        for vector, innovation, alone in zip(vectors, innovations, useless, strict=True):
            mean += self._restored(shared, innovation if alone else vector) * np.float32(1 / workers)
        return _scattered(bucket, shared.indices, mean)

    def _normalized(self, shared: Shared, k: int) -> Float32:
        """This worker's values as the autoencoder gets them: float32 ``(1, k)``."""
        vector = np.zeros((1, k), np.float32)
        n = len(shared.values)
        with np.errstate(over="ignore"):
            vector[0, :n] = shared.values * np.float32(1 / shared.scale)
        if self.signs:
            vector[0, :n] *= shared.signs
        return np.clip(vector, -CLIP, CLIP, out=vector)

    def _restored(self, shared: Shared, vector: Float32) -> Float32:
        """Inverse of ``_normalized``: float32, as many as there are indices."""
        decoded = np.clip(vector[: len(shared.indices)], -CLIP, CLIP)
        if self.signs:
            decoded *= shared.signs
        most = np.finfo(np.float32).max
        with np.errstate(over="ignore"):
            return np.clip(decoded * np.float32(shared.scale), -most, most)

    def _entries(self, bucket: Bucket, k: int) -> int:
        """Entries that float16 top-k could send for the bytes that a rank sends in phase 3, at most k."""
        made, workers = self.learning.architecture, bucket.workers
        root, code = IndexSetFormat(bucket.size, k).nbytes, 2 * made.numbers(k)
        if self.variant == "allreduce":
            sent = root / workers + code + header.NBYTES
        else:
            count = made.innovations(k)
            sent = (root + code) / workers + places_nbytes(count, k) + 2 * count + header.NBYTES
        return min(k, int(sent / 4))


def architecture(variant: str, encoder: Any, decoder: Any, innovation: Any) -> Architecture:
    """The autoencoder of these widths.

    Raises:
        TypeError, ValueError: they are no widths, or do not fit each other.
    """
    for name, widths, least in (("encoder", encoder, 2), ("decoder", decoder, 1)):
        if not isinstance(widths, (tuple, list)) or any(isinstance(w, bool) or not isinstance(w, int) for w in widths):
            raise TypeError(f"{name} must be a sequence of ints, got {widths!r}")
        if len(widths) < least or min(widths) < 1:
            raise ValueError(f"{name} must have {least} or more widths of at least 1, got {tuple(widths)!r}")
    if len(decoder) != len(encoder) - 1:
        raise ValueError(
            f"decoder must have one width less than the encoder, so that lengths fit: the encoder has {len(encoder)}, "
            f"got {tuple(decoder)!r}"
        )
    require_number("innovation", innovation, "in (0, 1]", lambda share: 0 < share <= 1)
    return Architecture(variant, tuple(encoder), tuple(decoder), float(innovation) if variant == "gather" else 0.0)


def _patterns(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or any(not isinstance(pattern, str) for pattern in value):
        raise TypeError(f"{name} must be patterns of parameters' names, such as ['stem.*'], got {value!r}")
    return tuple(value)


def _path(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) and not hasattr(value, "__fspath__"):
        raise TypeError(f"{name} must be a path, got {value!r}")
    return str(value)


def _layer(name: str) -> str:
    """What a parameter's name says of its layer: ``conv1`` of ``conv1.weight``, ``dense`` of ``dense/kernel``."""
    return name.rpartition("/" if "/" in name else ".")[0] or name


def _chosen(name: str, patterns: Sequence[str] | None, default: bool) -> bool:
    return default if patterns is None else any(fnmatchcase(name, pattern) for pattern in patterns)


def _scale(values: Float32) -> float:
    """The power of two next to the root mean square: dividing by it is exact."""
    mean = float(np.square(values, dtype=np.float64).mean()) if len(values) else 0.0
    return 2.0 ** min(max(round(math.log2(mean) / 2), -126), 126) if mean > 0 else 1.0


def _energies(lost: Float32, shared: Shared) -> Float32:
    """Of what a round trip loses, and of the values: float32, in units of the scale."""
    squares = [float(np.square(part / shared.scale, dtype=np.float64).sum()) for part in (lost, shared.values)]
    return np.minimum(squares, 1e30).astype(np.float32)


def _relative(told: Array) -> float:
    """What all workers' round trips lose, relative to the energy of all their values."""
    lost, total = told.copy().view(np.float32).sum(0, dtype=np.float64)
    return float(lost / total) if total else 0.0


def _widened(bucket: Bucket, words: Array, wire: int) -> Float32:
    """Rows of 16-bit values as float32."""
    rows = np.empty(words.shape, np.float32)
    for row, out in zip(words, rows, strict=True):
        bucket.kernels.accumulate_dense(row[None], wire, 1.0, out)
    return rows


def places_nbytes(count: int, k: int) -> int:
    """Bytes for ``count`` of ``k`` places: a bit for each of the k, or the places one by one, whichever is less."""
    return -(-min(-(-k // 8), count * _place(k).itemsize) // 4) * 4


def _place(k: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if k <= 65536 else np.uint32)


def _put_places(chosen: NDArray[np.int64], k: int, out: Array) -> None:
    """Write ascending places."""
    if -(-k // 8) <= len(chosen) * _place(k).itemsize:
        marked = np.zeros(8 * len(out), bool)
        marked[chosen] = True
        out[:] = np.packbits(marked, bitorder="little")
    else:
        out.view(_place(k))[: len(chosen)] = chosen


def _innovation(payloads: Array, at: int, count: int, k: int) -> Float32:
    """The innovations in gathered payloads, whose values begin ``at``: float32 ``(workers, k)``."""
    if -(-k // 8) <= count * _place(k).itemsize:
        marked = np.unpackbits(payloads[:, :at], axis=1, bitorder="little")
        if (marked.sum(1) != count).any() or marked[:, k:].any():
            raise CorruptPayload(f"an innovation's bitmap does not mark {count} of the vector's {k} entries")
        positions = np.nonzero(marked)[1].reshape(len(payloads), count)
    else:
        positions = np.ascontiguousarray(payloads[:, :at]).view(_place(k))[:, :count].astype(np.int64)
        if (positions >= k).any():
            raise CorruptPayload(f"an innovation's position exceeds the vector's {k} entries")
    dense = np.zeros((len(payloads), k), np.float32)
    np.put_along_axis(dense, positions, np.ascontiguousarray(payloads[:, at:]).view(np.float16).astype(np.float32), 1)
    return dense


def _scattered(bucket: Bucket, indices: UInt32, values: Float32) -> Float32:
    mean = bucket.decoded
    mean[:] = 0
    bucket.kernels.restore(mean, indices, values)
    return mean
