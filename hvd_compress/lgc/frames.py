"""What a worker and the process that trains for it write to each other: frames on two pipes.

A frame is a byte that says its kind, uint32 length of its content, and the content. To the process: ``SAMPLE``,
``STATE`` (a state to begin with; or, without content, a question) and ``FINISH``. From it: ``PROGRESS`` after whatever
it has done, ``STATE`` and ``OUTCOME`` as answers.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from typing import IO

import numpy as np

from hvd_compress.kernels import Float32
from hvd_compress.lgc.training import Outcome

SAMPLE, LOAD, STATE, FINISH, PROGRESS, OUTCOME = b"V", b"L", b"S", b"F", b"P", b"O"
"""Kinds of frames."""

MOST = 1 << 30
"""Bytes of the longest content; no sample and no state is as long."""

PIECE = 1 << 20
"""Bytes that are read at once: what a frame claims to hold is not allocated before it comes."""

_FRAME = struct.Struct("<cI")
_SAMPLE = struct.Struct("<III")


def send(pipe: IO[bytes], kind: bytes, content: bytes) -> None:
    """Write a frame. Raise ValueError if its content is longer than ``MOST``."""
    if len(content) > MOST:
        raise ValueError(f"a frame of {len(content)} bytes exceeds {MOST}")
    pipe.write(_FRAME.pack(kind, len(content)))
    pipe.write(content)
    pipe.flush()


def receive(pipe: IO[bytes]) -> tuple[bytes, bytes] | None:
    """Return the kind and the content of the next frame; None at the end, or at what is no frame."""
    try:
        head = pipe.read(_FRAME.size)
        if len(head) < _FRAME.size:
            return None
        kind, length = _FRAME.unpack(head)
        if length > MOST:
            return None
        content = bytearray()
        while len(content) < length:
            piece = pipe.read(min(PIECE, length - len(content)))
            if not piece:
                return None
            content += piece
    except (OSError, ValueError):  # closed, by the other side or by this one
        return None
    return kind, bytes(content)


def sample_content(vectors: Float32, entries: int) -> bytes:
    """Return the content of a frame with a sample."""
    return _SAMPLE.pack(*vectors.shape, entries) + vectors.tobytes()


def sample_of(content: bytes) -> tuple[Float32, int]:
    """Return the vectors and the entries in the content of a frame with a sample."""
    workers, length, entries = _SAMPLE.unpack(content[: _SAMPLE.size])
    return np.frombuffer(content, np.float32, offset=_SAMPLE.size).reshape(workers, length), entries


def outcome_content(outcome: Outcome) -> bytes:
    """Return the content of a frame with an outcome."""
    about = asdict(outcome)
    weights = about.pop("weights")
    text = json.dumps(about).encode()
    return len(text).to_bytes(4, "little") + text + bytes(weights)


def outcome_of(content: bytes) -> Outcome:
    """Return the outcome in the content of a frame."""
    length = int.from_bytes(content[:4], "little")
    return Outcome(weights=content[4 + length :], **json.loads(content[4 : 4 + length]))
