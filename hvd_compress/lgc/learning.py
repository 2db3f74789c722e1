"""What all buckets of an LGC compressor have in common: the phase of training, the autoencoder, and who trains it.

Ranks agree through what they exchange anyway. In phase 2 every rank's payload of one bucket, the control bucket, has a
record of its own; the leader's says how training stands, and whether it still wants vectors. When it is over, the
weights follow in chunks, one broadcast a step. In the step after the last chunk every rank's record has a checksum of
what it decodes from a made-up code: if they are all the same, all ranks change over two steps later; if not, means
would drift apart, and LGC stays with top-k.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hvd_compress.exchange import Array
from hvd_compress.kernels import Float32, UInt8
from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.route import SAID, Route, choose, open_route

if TYPE_CHECKING:
    from hvd_compress.lgc.autoencoder import Codec
    from hvd_compress.lgc.serving import Training
    from hvd_compress.lgc.trainer import Outcome
    from hvd_compress.phased import MPIJob, Preparation

log = logging.getLogger(__name__)

CONTROL = 16
"""Bytes of a record."""
CHUNK = 1 << 18
"""Bytes of weights in a broadcast."""
TOLERATED = 8
"""Steps in a row in which the autoencoder may be of no use."""
EARLY = 40
"""Steps before phase 2 at which the process that trains is started; it takes seconds to import torch."""
MARGIN = 2
"""Steps between the agreement and the change: a graph may already be about to begin the next."""

# status, whether vectors are wanted, bytes of the chunk, bytes in all, checksum of what is decoded
_RECORD = struct.Struct("<BB2xIII")
TRAINING, PUBLISHING, WORSE, DEAD = range(4)
REASONS = {
    WORSE: "the autoencoder is worse than top-k",
    DEAD: "the trainer of the autoencoder has died",
}
DIFFERENT = "the ranks' processors decode differently"


@dataclass(eq=False)
class Learning:
    """One rank's view; see the module's docstring. The arguments are LGC's."""

    architecture: Architecture
    leader: int
    dense_steps: int
    train_steps: int
    similarity: float
    seed: int
    floor: bool
    inline: bool | None
    weights: str | None
    record_to: str | None = None
    route: str = "auto"
    control: str = ""
    """A parameter of the bucket that carries the records."""
    fingerprint: str = ""
    """Of what must be the same on all ranks: the weights that it starts with, and how vectors come to the trainer."""
    by: str = "allgather"
    """The route that vectors take."""
    stays: str = ""
    """Why it stays with top-k, if it does."""
    stays_from: int = 0
    """From which step on."""
    switch: int | None = None
    """The first step of phase 3."""
    codec: Codec | None = None
    outcome: Outcome | None = None
    _step: int = 0
    _rank: int = 0
    _began: bool = False
    _workers: int = 1
    _mpi: MPIJob | None = None
    _route: Route | None = None
    _wanted: bool = True
    _expected: int = 0
    _weights: bytes = b""
    _outgoing: bytes | None = None
    _incoming: bytearray = field(default_factory=bytearray)
    _status: int = TRAINING
    _checksum: int = 0
    _training: Training | None = None
    _saved: bytes | None = None
    _state_of_trainer: dict[str, Any] = field(default_factory=dict)
    _kind: str = ""
    _short: bool = False
    _ending: bool = False
    _useless: int = 0
    _seconds: dict[str, float] = field(default_factory=lambda: {"encode": 0.0, "decode": 0.0, "feed": 0.0})

    def begin(self, work: Preparation, control: str) -> None:
        """Before the first step. Raises OSError or ValueError if there are weights that cannot be used, or a route that
        cannot be taken."""
        if self._began:
            return
        self._began = True
        self.control = control
        self._rank = work.rank
        self._workers = work.workers
        self._mpi = work.mpi
        if self.inline is None:
            self.inline = work.simulated
        if self.weights is not None and self.codec is None:
            content = Path(self.weights).read_bytes()
            self._take(content, self.weights)
            self.fingerprint = hashlib.sha256(content).hexdigest()[:16]
            self.switch = 0
        self.by, problem = choose(self.route, work.mpi, work.rank, work.workers, self.inline)
        said = f"{SAID[self.by]} ({problem})" if problem else SAID[self.by]
        self.fingerprint = f"{self.fingerprint}; vectors travel by {said}"

    def on_agreement(self, step: int) -> None:
        """All ranks are about to finish ``step``, the first, at about the same time."""
        if self.by == "mpi" and self.control and self.weights is None and self.switch is None and not self.stays:
            assert self._mpi is not None
            self._route = open_route(self._mpi, self._rank, self._workers, self.leader, step)

    def phase(self, step: int) -> str:
        """``"dense"``, ``"train"``, ``"learned"``; or ``"topk"`` if the autoencoder is given up."""
        self._step = max(self._step, step)
        if self.stays and step >= self.stays_from:
            return "topk"
        if self.weights is not None or (self.switch is not None and step >= self.switch):
            return "learned"
        return "dense" if step < self.dense_steps else "train"

    def warm_up(self, step: int) -> None:
        """On the leader: start the process that trains some steps before it gets its first sample."""
        if self.wants and self._training is None and not self.inline and step >= self.dense_steps - EARLY:
            self._trainer()

    @property
    def wants(self) -> bool:
        """Whether this rank trains, and is not done."""
        here = self._rank == self.leader and self.weights is None
        return here and self._status == TRAINING and not self.stays and not self._ending

    def passes(self, step: int) -> bool:
        """Whether this rank's vectors of a step go to the leader by messages."""
        if self._route is None or step <= self._route.since:
            return False
        return self.wants if self._rank == self.leader else self._wanted

    def pass_on(self, step: int, name: str, vector: Float32, entries: int, root: int) -> int:
        """Send this rank's vector to the leader, or keep the leader's own for the others to join; returns bytes."""
        assert self._route is not None
        if self._rank != self.leader:
            return self._route.send(step, name, vector)
        self._route.keep(step, name, vector, entries, root)
        return 0

    def feed(self, vectors: Float32, entries: int, name: str) -> None:
        """Give the trainer what the workers sent; write it down if that is wanted."""
        started = perf_counter()
        if self.record_to is not None:
            folder = Path(self.record_to)
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(folder / f"{name}.npz", vectors=vectors, entries=np.int64(entries))
        from hvd_compress.lgc.serving import TrainerDied

        try:
            self._trainer().feed(vectors, entries)
        except TrainerDied as error:
            self._died(error)
        self._seconds["feed"] += perf_counter() - started

    def record(self, step: int, k: int) -> UInt8:
        """This rank's record for the payload of the control bucket."""
        size = 0
        if self._rank == self.leader:
            self._collect()
            self._supervise(step)
            if self._outgoing is not None and self.codec is None:
                size = min(CHUNK, len(self._outgoing) - len(self._incoming))
        total = len(self._outgoing or b"")
        if self.codec is not None and not self._checksum:
            self._checksum = self._probe(k)
        return np.frombuffer(_RECORD.pack(self._status, self.wants, size, total, self._checksum), np.uint8)

    def heard(self, records: Array, step: int) -> int:
        """Take note of all ranks' records (uint8, ``(workers, CONTROL)``). Returns the size of the chunk to come."""
        rows = [_RECORD.unpack(row.tobytes()) for row in records]
        status, wanted, size, total, _ = rows[self.leader]
        self._wanted = bool(wanted)
        if status in REASONS and not self.stays:
            self._stay(REASONS[status], step)
        checksums = {row[-1] for row in rows}
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
        self._expected = total
        return int(size)

    def chunk(self, size: int) -> UInt8:
        """What this rank puts into the broadcast: ``size`` bytes of the weights, or a byte of nothing."""
        piece: UInt8 = np.zeros(max(size, 1), np.uint8)
        if size and self._rank == self.leader and self._outgoing is not None:
            at = len(self._incoming)
            piece[:] = np.frombuffer(self._outgoing[at : at + size], np.uint8)
        return piece

    def received(self, piece: Array, size: int, k: int) -> None:
        """Take a chunk; with the last one, the autoencoder is there."""
        if not size:
            return
        self._incoming += piece.tobytes()
        if len(self._incoming) >= self._expected:
            content = bytes(self._incoming)
            self._incoming.clear()
            self._take(content, "what the leader sent")
            self._checksum = self._probe(k)

    def watch(self, error: float, step: int) -> None:
        """Phase 3: take note of what the control bucket's round trips lose, of all workers, relative and squared; the
        same on all ranks. What loses more than it sends must not go on: the memories would grow."""
        self._useless = self._useless + 1 if error >= 1 else 0
        if self._useless == TOLERATED and not self.stays:
            self._stay("the autoencoder has ceased to reconstruct", step)
            if self._rank == self.leader:
                log.warning(
                    "LGC goes back to top-k: in each of the last %d steps the autoencoder would have lost more than it "
                    "sends (squared error %.2f of the values'); was it trained on another model or at another rate?",
                    TOLERATED,
                    error,
                )

    def encode(self, vectors: Float32, workers: int) -> NDArray[np.float16]:
        """``Codec.encode``, timed."""
        assert self.codec is not None
        started = perf_counter()
        codes = self.codec.encode(vectors, workers)
        self._seconds["encode"] += perf_counter() - started
        return codes

    def decode(self, codes: Array, length: int, innovations: Float32 | None = None) -> Float32:
        """``Codec.decode``, timed."""
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
        """For statistics."""
        outcome = self.outcome
        trainer = self._training.report() if self._training is not None else self._state_of_trainer
        return {
            "phase": self.phase(self._step),
            "stays_with_top_k": self.stays or ("vectors are too short" if self._short else None),
            "switch": self.switch,
            "parameters": self.codec.parameters if self.codec is not None else None,
            "route": {"by": SAID[self.by], **(self._route.report() if self._route is not None else {})},
            "trainer": {"kind": self._kind, "route": SAID[self.by], **trainer} if self._kind else None,
            "error": outcome.error if outcome is not None else None,
            "top_k_error": outcome.top_k if outcome is not None else None,
            "seconds": dict(self._seconds),
        }

    def save(self) -> dict[str, Any]:
        """Everything, as plain data."""
        from hvd_compress.lgc.serving import TrainerDied

        trainer = self._saved
        if self._training is not None:
            try:
                trainer = self._training.state()
            except TrainerDied as error:
                self._died(error)
        return {
            "switch": self.switch,
            "stays": [self.stays, self.stays_from],
            "useless": self._useless,
            "status": self._status,
            "weights": _text(self._weights),
            "outgoing": _text(self._outgoing or b""),
            "incoming": _text(bytes(self._incoming)),
            "trainer": _text(trainer or b""),
            "architecture": self.architecture.to_config(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over what ``save`` returned; raises ValueError if it is another autoencoder's."""
        found = Architecture.from_config(state["architecture"])
        if found != self.architecture:
            raise ValueError(f"the saved state is of another autoencoder: {found.difference(self.architecture)}")
        self.switch, self._status, self._useless = state["switch"], state["status"], state["useless"]
        self.stays, self.stays_from = state["stays"]
        if weights := _bytes(state["weights"]):
            self._take(weights, "the saved state")
        self._outgoing = _bytes(state["outgoing"]) or None
        self._incoming = bytearray(_bytes(state["incoming"]))
        self._saved = _bytes(state["trainer"]) or None

    def _collect(self) -> None:
        """Feed the trainer with what has come by messages; if it wants no more, throw that away."""
        for vectors, entries, name in self._route.collect() if self._route is not None else ():
            if self.wants:
                self.feed(vectors, entries, name)

    def _stay(self, reason: str, step: int) -> None:
        self.stays, self.stays_from = reason, step + MARGIN

    def _trainer(self) -> Training:
        if self._training is None:
            from hvd_compress.lgc.serving import Inline, Process

            make = Inline if self.inline else Process
            self._training = make(self.architecture, self.seed, self.similarity, self._saved)
            self._kind = self._training.kind
            self._saved = None
        return self._training

    def _supervise(self, step: int) -> None:
        """On the leader: see how training stands, and end it when it is time."""
        if self._status != TRAINING or self.stays or step < self.dense_steps:
            return
        from hvd_compress.lgc.serving import TrainerDied

        try:
            trainer = self._trainer()
            if step < self.dense_steps + self.train_steps and not trainer.stalled():
                return
            self._ending = True
            outcome = trainer.finish()
        except TrainerDied as error:
            self._died(error)
            return
        if outcome is None:
            return
        self.outcome = outcome
        self._state_of_trainer = trainer.report()
        trainer.close()
        self._training = None
        if outcome.problem and self.floor:
            self._status = WORSE
            log.warning("LGC stays with top-k, for its autoencoder is of no use here: %s", outcome.problem)
        else:
            self._status = PUBLISHING
            self._outgoing = outcome.weights

    def _died(self, error: Exception) -> None:
        if self._status == TRAINING:
            self._status = DEAD
            log.warning("LGC stays with top-k: %s", error)
        if self._training is not None:
            self._state_of_trainer = self._training.report()
            self._training.close()
        self._training = None

    def _take(self, content: bytes, source: str) -> None:
        from hvd_compress.lgc.autoencoder import Codec, from_bytes

        self.codec = Codec(from_bytes(content, self.architecture, source))
        self._weights = content

    def _probe(self, k: int) -> int:
        """A checksum, not zero, of what is decoded from a made-up code of a vector of ``k``."""
        assert self.codec is not None
        rng = np.random.default_rng(self.seed)
        codes = rng.standard_normal((1, self.architecture.numbers(k))).astype(np.float16)
        extra = rng.standard_normal((1, k)).astype(np.float32) if self.architecture.variant == "gather" else None
        return zlib.crc32(self.codec.decode(codes, k, extra).tobytes()) | 1

    def __del__(self) -> None:
        if self._training is not None:
            self._training.close()


def _text(content: bytes) -> str:
    return base64.b85encode(content).decode()


def _bytes(text: str) -> bytes:
    return base64.b85decode(text)
