"""The program of the process that trains LGC's autoencoder beside a training: ``python -m`` this, by ``process``.

It reads frames from its standard input, trains while none is there, and answers on its standard output. It ends with
the process that started it: when its input is at its end, or when it has got another parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
from time import perf_counter, sleep
from typing import IO, Any

import torch

from hvd_compress.lgc import frames
from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.trainer import BATCHES_PER_SAMPLE, Trainer

INBOX = 64
"""Frames that are read ahead."""

ORPHAN = 0.5
"""Seconds between two looks whether the parent still lives. Input that ends says so at once, but it does not end as
long as somebody else has the pipe open: a child that the parent forked after it made the pipe, a data loader say."""


def serve(about: dict[str, Any], source: IO[bytes], sink: IO[bytes]) -> None:
    """Train as long as there is no end in sight, and answer."""
    torch.set_num_threads(1)
    trainer = Trainer(Architecture.from_config(about["architecture"]), about["seed"], about["similarity"])
    inbox: queue.Queue[tuple[bytes, bytes] | None] = queue.Queue(INBOX)

    def read() -> None:
        frame = frames.receive(source)
        while frame is not None:
            inbox.put(frame)
            frame = frames.receive(source)
        inbox.put(None)

    threading.Thread(target=read, daemon=True).start()
    seconds, wanted = 0.0, -1  # batches, once the outcome has been asked for
    while True:
        busy = trainer.ready and not trainer.stalled
        if wanted >= 0 and (not busy or trainer.batches >= wanted):
            frames.send(sink, frames.OUTCOME, frames.outcome_content(trainer.finish()))
            wanted = -1
        try:
            frame = inbox.get(block=not busy)
        except queue.Empty:
            started = perf_counter()
            trainer.train(1)
            seconds += perf_counter() - started
        else:
            if frame is None:
                return
            if frame[0] == frames.FINISH:
                wanted = BATCHES_PER_SAMPLE * trainer.samples
                continue
            _answer(trainer, *frame, sink)
        frames.send(sink, frames.PROGRESS, json.dumps(_progress(trainer, seconds)).encode())


def _answer(trainer: Trainer, kind: bytes, content: bytes, sink: IO[bytes]) -> None:
    if kind == frames.SAMPLE:
        trainer.add(*frames.sample_of(content))
    elif kind == frames.LOAD:
        trainer.load_state(content)
    elif kind == frames.STATE:
        frames.send(sink, frames.STATE, trainer.state())
    else:
        raise ValueError(f"a frame of kind {kind!r}")


def _progress(trainer: Trainer, seconds: float) -> dict[str, Any]:
    return {
        "samples": trainer.samples,
        "refused": trainer.refused,
        "batches": trainer.batches,
        "error": trainer.best if trainer.best < float("inf") else None,
        "seconds": seconds,
        "stalled": trainer.stalled,
    }


def _end_with(parent: int) -> None:
    """End this process, whatever it does, when ``parent`` is its parent no more."""
    while os.getppid() == parent:
        sleep(ORPHAN)
    os._exit(0)


def main(arguments: list[str]) -> None:
    """Serve the process with the id that is the first argument; the second says what to train."""
    threading.Thread(target=_end_with, args=(int(arguments[0]),), daemon=True).start()
    os.nice(5)
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not come between the frames
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve(json.loads(arguments[1]), sys.stdin.buffer, sink)


if __name__ == "__main__":
    main(sys.argv[1:])
