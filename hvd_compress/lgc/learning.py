"""What all buckets of an LGC compressor have in common: the phase of training, and the autoencoder.

Ranks agree through what they exchange anyway. In phase 2 every rank's payload of one bucket, the control bucket, has a
record of its own; the leader's says how training stands, and whether it still wants vectors. When it is over, the
weights follow in chunks, one broadcast a step. In the step after the last chunk every rank's record has a checksum of
what it decodes from a made-up code: if they are all the same, all ranks change over two steps later; if not, means
would drift apart, and LGC stays with top-k.
"""

from __future__ import annotations

import hashlib
import logging
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hvd_compress.exchange import Array, Bucket
from hvd_compress.kernels import CorruptPayload, Float32, UInt8
from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.records import REASONS, Record, read_records
from hvd_compress.lgc.route import SAID, Route, choose, open_route
from hvd_compress.lgc.saved import SharedState, read
from hvd_compress.lgc.supervisor import Supervisor
from hvd_compress.lgc.training import Sample
from hvd_compress.phased import MPIJob, Preparation

if TYPE_CHECKING:
    from hvd_compress.lgc.autoencoder import Codec

log = logging.getLogger(__name__)

CHUNK = 1 << 18
"""Bytes of weights in a broadcast."""
TOLERATED = 8
"""Steps in a row in which the autoencoder may be of no use to a bucket."""
RECOVERY = 3
"""Steps in which it is of use that make up for one in which it is not."""
EARLY = 40
"""Steps before phase 2 at which the process that trains is started; it takes seconds to import torch."""
MARGIN = 2
"""Steps between the agreement and the change: a graph may already be about to begin the next."""
DIFFERENT = "the ranks' processors decode differently"


@dataclass(eq=False)
class Learning:
    """One rank's view; see the module's docstring. The arguments are LGC's."""

    architecture: Architecture
    leader: int
    dense_steps: int
    train_steps: int
    seed: int
    inline: bool | None
    weights: str | None
    supervisor: Supervisor
    route: str = "auto"
    control: str = ""
    """A parameter of the bucket that carries the records."""
    fingerprint: str = ""
    """What must be the same on all ranks: the weights that it starts with, and how vectors come to the trainer."""
    restored: str = ""
    """What must be the same on all ranks of what they restored."""
    by: str = "allgather"
    """The route that vectors take."""
    stays: str = ""
    """Why it stays with top-k, if it does."""
    stays_from: int = 0
    """The step from which on it does."""
    switch: int | None = None
    """The first step of phase 3."""
    codec: Codec | None = None
    _step: int = 0
    _rank: int = 0
    _began: bool = False
    _workers: int = 1
    _since: int = 0
    """The step in which this rank has begun to train, if that is after the beginning of phase 2."""
    _mpi: MPIJob | None = None
    _route: Route | None = None
    _wanted: bool = True
    _expected: int = 0
    _weights: bytes = b""
    _incoming: bytearray = field(default_factory=bytearray)
    _checksum: int = 0
    _short: bool = False
    _unfit: set[str] = field(default_factory=set)
    _seconds: dict[str, float] = field(default_factory=lambda: {"encode": 0.0, "decode": 0.0})

    def begin(self, work: Preparation, control: str) -> None:
        """Get ready for the first step. Raise OSError or ValueError if there are weights that cannot be used, or a
        route that cannot be taken."""
        self._rank = work.rank
        self._workers = work.workers
        if self._began:
            return
        self._began = True
        self.control = control
        self._mpi = work.mpi
        self.supervisor.inline = work.simulated if self.inline is None else self.inline
        if self.weights is not None and self.codec is None:
            content = Path(self.weights).read_bytes()
            self._load_codec(content, self.weights)
            self.fingerprint = f"; weights {hashlib.sha256(content).hexdigest()[:16]}"
            self.switch = 0
        self.by, problem = choose(self.route, work.mpi, work.rank, work.workers, self.supervisor.inline)
        said = f"{SAID[self.by]} ({problem})" if problem else SAID[self.by]
        self.fingerprint = f"{self.fingerprint}; vectors travel by {said}"

    def on_agreement(self, step: int) -> None:
        """Open the route that needs all ranks: they are about to finish ``step``, the first, at about the same time."""
        if self.by == "mpi" and self.control and self.weights is None and self.switch is None and not self.stays:
            assert self._mpi is not None
            self._route = open_route(self._mpi, self._rank, self._workers, self.leader, step)

    def phase(self, step: int) -> str:
        """Return ``"dense"``, ``"train"``, ``"learned"``; or ``"topk"`` if the autoencoder is given up."""
        self._step = max(self._step, step)
        if self.stays and step >= self.stays_from:
            return "topk"
        if self.weights is not None or (self.switch is not None and step >= self.switch):
            return "learned"
        return "dense" if step < self.dense_steps else "train"

    def warm_up(self, step: int) -> None:
        """Start the process that trains, on the leader, some steps before it gets its first sample."""
        if self.wants and not self.supervisor.inline and step >= self.dense_steps - EARLY:
            self.supervisor.start()

    @property
    def wants(self) -> bool:
        """Whether this rank trains, and is not done."""
        return self._rank == self.leader and self.weights is None and not self.stays and self.supervisor.wants

    def passes(self, step: int) -> bool:
        """Return whether this rank's vectors of a step go to the leader by messages."""
        if self._route is None or step <= self._route.since:
            return False
        return self.wants if self._rank == self.leader else self._wanted

    def pass_on(self, step: int, name: str, vector: Float32, entries: int, root: int) -> int:
        """Send this rank's vector to the leader, or keep the leader's own for the others to join; return the bytes
        that were sent."""
        assert self._route is not None
        if self._rank != self.leader:
            return self._route.send(step, name, vector)
        self._route.keep(step, name, vector, entries, root)
        return 0

    def take(self, step: int, name: str, vectors: Float32, entries: int) -> None:
        """Take what the workers sent of a bucket, for the trainer."""
        self.supervisor.take(Sample(step, name, vectors, entries))

    def record(self, step: int, k: int) -> UInt8:
        """Return this rank's record for the payload of the control bucket."""
        size = 0
        outgoing = self.supervisor.weights
        if self._rank == self.leader:
            self._supervise(step)
            outgoing = self.supervisor.weights
            if outgoing is not None and self.codec is None:
                size = min(CHUNK, len(outgoing) - len(self._incoming))
        if self.codec is not None and not self._checksum:
            self._checksum = self._probe(k)
        return Record(self.supervisor.status, self.wants, size, len(outgoing or b""), self._checksum).pack()

    def heard(self, rows: Array, step: int) -> int:
        """Take note of all ranks' records (uint8, ``(workers, RECORD_NBYTES)``), and return the size of the chunk to
        come.

        Raises:
            CorruptPayload: a record says what no rank says.
        """
        records = read_records(rows)
        told = records[self.leader]
        most = self.architecture.most_nbytes
        if told.total > most or told.chunk > min(CHUNK, max(told.total - len(self._incoming), 0)):
            raise CorruptPayload(
                f"payload of worker {self.leader}: a chunk of {told.chunk} bytes after {len(self._incoming)} of "
                f"{told.total} bytes of weights; there are no more than {most}, {CHUNK} at once"
            )
        self._wanted = bool(told.wanted)
        if told.status in REASONS and not self.stays:
            self._stay(REASONS[told.status], step)
        checksums = {record.checksum for record in records}
        if 0 not in checksums and self.switch is None and not self.stays:
            if len(checksums) == 1:
                self.switch = step + MARGIN
            else:
                self._stay(DIFFERENT, step)
                if self._rank == self.leader:
                    log.warning(
                        "LGC stays with top-k: the ranks decode the same code to different bits, because their "
                        "processors or their versions of torch differ, and would drift apart"
                    )
        self._expected = told.total
        return told.chunk

    def chunk(self, size: int) -> UInt8:
        """Return what this rank puts into the broadcast: ``size`` bytes of the weights, or a byte of nothing."""
        piece: UInt8 = np.zeros(max(size, 1), np.uint8)
        weights = self.supervisor.weights
        if size and self._rank == self.leader and weights is not None:
            at = len(self._incoming)
            piece[:] = np.frombuffer(weights[at : at + size], np.uint8)
        return piece

    def received(self, piece: Array, size: int, k: int) -> None:
        """Take a chunk; with the last one, the autoencoder is there."""
        if not size:
            return
        self._incoming += piece.tobytes()
        if len(self._incoming) >= self._expected:
            content = bytes(self._incoming)
            self._incoming.clear()
            try:
                self._load_codec(content, "what the leader sent")
            except ValueError as error:
                raise CorruptPayload(str(error)) from error
            self._checksum = self._probe(k)

    def watch(self, bucket: Bucket, error: float) -> None:
        """Take note of what a bucket's round trips lose in phase 3, of all workers, relative and squared; the same on
        all ranks. What loses more than it sends must not go on: the memories would grow. If that happens too often, the
        bucket stays with top-k; if it is the control bucket, which is the largest, all do."""
        debt = bucket.state.get("debt", 0)
        bucket.state["debt"] = debt = debt + RECOVERY if error >= 1 else max(debt - 1, 0)
        if debt < TOLERATED * RECOVERY or self.stays or "top_k_from" in bucket.state:
            return
        bucket.state["top_k_from"] = bucket.step + MARGIN
        if self.control in bucket.members:
            self._stay("the autoencoder has ceased to reconstruct", bucket.step)
        self._unfit.add(bucket.name)
        if self._rank == self.leader:
            log.warning(
                "LGC goes back to top-k%s: in %d steps or more the autoencoder would have lost more than it sends "
                "(squared error %.2f of the values'); was it trained on another model or at another rate?",
                "" if self.stays else f" in {bucket.name} ({', '.join(bucket.members)})",
                TOLERATED,
                error,
            )

    def fits(self, bucket: Bucket) -> bool:
        """Return whether the autoencoder is used for a bucket in the step that begins, as far as ``watch`` knows."""
        return bool(bucket.step < bucket.state.get("top_k_from", math.inf))

    def encode(self, vectors: Float32, workers: int) -> NDArray[np.float16]:
        """Return what ``Codec.encode`` does, and take the time."""
        assert self.codec is not None
        started = perf_counter()
        codes = self.codec.encode(vectors, workers)
        self._seconds["encode"] += perf_counter() - started
        return codes

    def decode(self, codes: Array, length: int, innovations: Float32 | None = None) -> Float32:
        """Return what ``Codec.decode`` does, and take the time."""
        assert self.codec is not None
        started = perf_counter()
        vectors = self.codec.decode(codes, length, innovations)
        self._seconds["decode"] += perf_counter() - started
        return vectors

    def too_short(self, k: int) -> None:
        """Say once that there is nothing to encode."""
        if not self._short and self._rank == self.leader:
            log.warning(
                "LGC stays with top-k: a vector of %d values is shorter than what one number of its code depends on "
                "(%d); a larger ratio or bucket_mb makes it longer",
                k,
                self.architecture.receptive_field,
            )
        self._short = True

    def report(self) -> dict[str, Any]:
        """Return what statistics say of it."""
        outcome, trainer = self.supervisor.outcome, self.supervisor.report()
        return {
            "phase": self.phase(self._step),
            "stays_with_top_k": self._reason(),
            "switch": self.switch,
            "parameters": self.codec.parameters if self.codec is not None else None,
            "route": {"by": SAID[self.by], **(self._route.report() if self._route is not None else {})},
            "trainer": {"route": SAID[self.by], **trainer} if trainer else None,
            "error": outcome.error if outcome is not None else None,
            "top_k_error": outcome.top_k if outcome is not None else None,
            "neighbours_error": outcome.neighbours if outcome is not None else None,
            "seconds": {**self._seconds, "feed": self.supervisor.seconds},
        }

    def save(self) -> dict[str, Any]:
        """Return everything, as plain data."""
        trainer = self.supervisor.state()
        return SharedState(
            self.architecture,
            self.switch,
            self.stays,
            self.stays_from,
            self.supervisor.status,
            self._weights,
            self.supervisor.weights or b"",
            bytes(self._incoming),
            trainer,
        ).to_plain()

    def load(self, state: dict[str, Any]) -> None:
        """Take over what ``save`` returned. Raise TypeError or ValueError if it is none, or another autoencoder's."""
        saved = read(state, self.architecture)
        if saved.outgoing:
            self._codec_of(saved.outgoing, "the autoencoder to be sent")
        if saved.trainer:
            from hvd_compress.lgc.trainer import Trainer  # which imports torch

            Trainer(self.architecture).load_state(saved.trainer)  # here it can be said to all ranks
        self.codec, self._weights, self._checksum = None, b"", 0
        if saved.weights:
            self._load_codec(saved.weights, "the saved autoencoder")
        self.switch, self.stays, self.stays_from = saved.switch, saved.stays, saved.stays_from
        self.supervisor.dismiss()
        self.supervisor.load(saved.status, saved.outgoing, saved.trainer)
        self._incoming = bytearray(saved.incoming)
        self.restored = saved.phase

    def follow(self, state: dict[str, Any], step: int) -> None:
        """Go on from what another rank's ``save`` returned, or this one's, for the ranks have changed.

        Weights that were on their way are sent anew. If the rank that trained is gone, the rank that has taken its
        place trains from now on, with all the steps that training takes.
        """
        saved = read(state, self.architecture)
        self.switch, self.stays, self.stays_from = saved.switch, saved.stays, saved.stays_from
        if self.codec is None and saved.weights:
            self._load_codec(saved.weights, "the others' autoencoder")
        self._incoming.clear()
        if self._rank != self.leader:
            self.supervisor.dismiss()
        elif self.codec is None and not self.supervisor.begun:
            self.supervisor.load(saved.status, saved.outgoing, saved.trainer)
            if not self.supervisor.begun:
                self._since = step

    def _supervise(self, step: int) -> None:
        """Feed the leader's trainer with what there is of earlier steps, and see how it stands."""
        for sample in self._route.collect() if self._route is not None else ():
            if self.wants:
                self.supervisor.take(sample)
        self.supervisor.feed_before(step)
        if not self.stays and step >= self.dense_steps:
            self.supervisor.look(enough=step >= max(self.dense_steps, self._since) + self.train_steps)

    def _reason(self) -> str | None:
        """Return why the compressor, or a part of its buckets, stays with top-k."""
        if self.stays:
            return self.stays
        if self._short:
            return "vectors are too short"
        return f"the autoencoder does not fit {', '.join(sorted(self._unfit))}" if self._unfit else None

    def _stay(self, reason: str, step: int) -> None:
        self.stays, self.stays_from = reason, step + MARGIN

    def _load_codec(self, content: bytes, source: str) -> None:
        self.codec = self._codec_of(content, source)
        self._weights = content

    def _codec_of(self, content: bytes, source: str) -> Codec:
        """Return the autoencoder of these weights. Raise ValueError if they are none."""
        from hvd_compress.lgc.autoencoder import Codec, from_bytes  # which imports torch

        return Codec(from_bytes(content, self.architecture, source))

    def _probe(self, k: int) -> int:
        """Return a checksum, not zero, of what is decoded from a made-up code of a vector of ``k``."""
        assert self.codec is not None
        rng = np.random.default_rng(self.seed)
        codes = rng.standard_normal((1, self.architecture.numbers(k))).astype(np.float16)
        extra = rng.standard_normal((1, k)).astype(np.float32) if self.architecture.variant == "gather" else None
        return zlib.crc32(self.codec.decode(codes, k, extra).tobytes()) | 1
