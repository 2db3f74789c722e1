"""What a compressor sent and where the time went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hvd_compress.topology import ALL, NODE, PEERS


@dataclass
class Tally:
    """Sums over steps."""

    steps: int = 0
    skipped_steps: int = 0
    sent_bytes: int = 0
    node_bytes: int = 0
    """Of the bytes sent, those to collectives among the workers of this node."""
    peer_bytes: int = 0
    """Of the bytes sent, those to collectives among this worker's peers on other nodes."""
    dense_bytes: int = 0
    target: int = 0
    selected: int = 0
    compress: float = 0.0
    wait: float = 0.0
    decompress: float = 0.0

    def minus(self, other: Tally) -> Tally:
        return Tally(**{key: value - getattr(other, key) for key, value in asdict(self).items()})

    def report(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "sent_bytes": self.sent_bytes,
            "sent_bytes_by_scope": {
                ALL: self.sent_bytes - self.node_bytes - self.peer_bytes,
                NODE: self.node_bytes,
                PEERS: self.peer_bytes,
            },
            "dense_bytes": self.dense_bytes,
            "ratio": self.dense_bytes / self.sent_bytes if self.sent_bytes else None,
            "achieved": self.selected / self.target if self.target else None,
            "seconds": {"compress": self.compress, "wait": self.wait, "decompress": self.decompress},
        }


@dataclass
class Statistics:
    """A running total, and a mark of where it stood at the last report."""

    total: Tally = field(default_factory=Tally)
    settle: Callable[[], None] | None = None
    """Called before a report, where steps that are complete are counted late."""
    _mark: Tally = field(default_factory=Tally)

    def report(self) -> dict[str, Any]:
        if self.settle is not None:
            self.settle()
        recent = self.total.minus(self._mark)
        self._mark = replace(self.total)
        return {"recent": recent.report(), "total": self.total.report()}
