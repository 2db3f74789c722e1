"""What LGC saves that belongs to no bucket: the phase, the autoencoder and its trainer, as plain data."""

from __future__ import annotations

import base64
import hashlib
from typing import Any, NamedTuple

from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.records import DEAD, PUBLISHING
from hvd_compress.validation import reject_unknown, require_int


class SharedState(NamedTuple):
    """The state of ``Learning`` on one rank."""

    architecture: Architecture
    switch: int | None
    """The first step of phase 3."""
    stays: str
    """Why it stays with top-k, if it does, and ``stays_from`` which step on."""
    stays_from: int
    status: int
    """How the leader's training stands, as in its record."""
    weights: bytes
    """The autoencoder that is in use."""
    outgoing: bytes
    """The one that the leader is sending, or has sent."""
    incoming: bytes
    """What has come of it."""
    trainer: bytes
    """The state of the trainer that runs on this rank."""

    @property
    def phase(self) -> str:
        """A short text that must be the same on all ranks."""
        digest = hashlib.sha256(self.weights + b" " + self.incoming).hexdigest()[:16]
        return f"phase 3 from step {self.switch}, top-k for {self.stays!r} from {self.stays_from}, weights {digest}"

    def to_plain(self) -> dict[str, Any]:
        """Return plain data that ``read`` takes."""
        return {
            "architecture": self.architecture.to_config(),
            "switch": self.switch,
            "stays": [self.stays, self.stays_from],
            "status": self.status,
            **{key: base64.b85encode(getattr(self, key)).decode() for key in _CONTENTS},
        }


_CONTENTS = ("weights", "outgoing", "incoming", "trainer")
_KEYS = ("architecture", "switch", "stays", "status", *_CONTENTS)


def read(state: dict[str, Any], wanted: Architecture) -> SharedState:
    """Return what ``SharedState.to_plain`` described, of an autoencoder as ``wanted``.

    The contents of weights and of the trainer are left to those who read them.

    Raises:
        TypeError, ValueError: a part is missing, unknown, of the wrong type or of a value that cannot be, or it is of
            another autoencoder.
    """
    reject_unknown(state, _KEYS, "the saved state of LGC")
    if lacks := [key for key in _KEYS if key not in state]:
        raise ValueError(f"the saved state of LGC lacks {', '.join(lacks)}")
    found = Architecture.from_config(state["architecture"])
    if found != wanted:
        raise ValueError(f"the saved state is of another autoencoder: {found.difference(wanted)}")
    if not isinstance(state["stays"], (list, tuple)) or len(state["stays"]) != 2:
        raise TypeError(f"the saved stays must be a reason and a step, got {state['stays']!r:.200}")
    stays, stays_from = state["stays"]
    if not isinstance(stays, str):
        raise TypeError(f"the saved reason to stay with top-k must be text, got {stays!r:.200}")
    require_int("the saved first step of top-k", stays_from, 0)
    require_int("the saved status", state["status"], 0, DEAD)
    if state["switch"] is not None:
        require_int("the saved switch", state["switch"], 0)
    contents = {key: _bytes(key, state[key]) for key in _CONTENTS}
    if state["switch"] is not None and not contents["weights"]:
        raise ValueError(f"the saved switch is step {state['switch']}, but there are no weights")
    if (state["status"] == PUBLISHING) != bool(contents["outgoing"]):
        raise ValueError(f"the saved status is {state['status']}, with {len(contents['outgoing'])} bytes to be sent")
    if len(contents["incoming"]) > wanted.most_nbytes:
        raise ValueError(f"the saved weights so far are {len(contents['incoming'])} bytes, more than there can be")
    return SharedState(found, state["switch"], stays, stays_from, state["status"], **contents)


def _bytes(key: str, text: Any) -> bytes:
    if not isinstance(text, str):
        raise TypeError(f"the saved {key} must be text, got {text!r:.200}")
    try:
        return base64.b85decode(text)
    except ValueError as error:
        raise ValueError(f"the saved {key} is not in base 85: {error}") from error
