"""What a compressor sent and where the time went."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from hvd_compress.topology import ALL, NODE, PEERS


class Report(dict[str, Any]):
    """What ``Compressor.stats`` returns: a dict that is shown as a table, by ``print`` and in a notebook.

    It is pickled as a plain dict.
    """

    def with_more(self, more: Mapping[str, Any]) -> Report:
        """Return a report that has these keys too."""
        return Report({**self, **more})

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def __str__(self) -> str:
        rows = [("", *self._columns()), *self._rows()]
        first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
        return "\n".join(
            f"{name:{first}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, others, strict=True))
            for name, *cells in rows
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the table in IPython's terminal."""
        printer.text(str(self))

    def _repr_html_(self) -> str:
        """Return the table for a notebook."""
        head = "".join(f"<th>{name}</th>" for name in ("", *self._columns()))
        body = "".join(
            f"<tr><th style='text-align: left'>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
            for name, *cells in self._rows()
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _columns(self) -> list[str]:
        return [name for name in ("recent", "total") if name in self]

    def _rows(self) -> list[tuple[str, ...]]:
        """Return the table's rows: what it is, and a cell for each column."""
        tallies = [self[name] for name in self._columns()]
        rows = {
            "steps": [f"{tally['steps']:,}" for tally in tallies],
            "steps skipped": [f"{tally['skipped_steps']:,}" for tally in tallies],
            "MB sent": [f"{tally['sent_bytes'] / 1e6:,.3f}" for tally in tallies],
            "MB uncompressed": [f"{tally['dense_bytes'] / 1e6:,.3f}" for tally in tallies],
            "times smaller": [_number(tally["ratio"], ".1f") for tally in tallies],
            "sent of what was meant": [_number(tally["achieved"], ".1%") for tally in tallies],
            **{
                f"ms a step: {phase}": [
                    _number(1e3 * tally["seconds"][phase] / tally["steps"] if tally["steps"] else None, ",.2f")
                    for tally in tallies
                ]
                for phase in ("compress", "wait", "decompress")
            },
        }
        return [(name, *cells) for name, cells in rows.items()]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


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
    transport: str = ""
    """How what is sent of gradients on a GPU gets to Horovod: see ``Compressor.stats``."""
    _mark: Tally = field(default_factory=Tally)

    def now(self) -> Tally:
        """Return a copy of the total, with all that is complete."""
        if self.settle is not None:
            self.settle()
        return replace(self.total)

    def report(self) -> Report:
        self.now()
        recent = self.total.minus(self._mark)
        self._mark = replace(self.total)
        report = Report(recent=recent.report(), total=self.total.report())
        return report.with_more({"transport": self.transport}) if self.transport else report
