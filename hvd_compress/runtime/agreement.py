"""What all workers must have in common before their first step."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import zlib
from collections.abc import Generator, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from hvd_compress import registry
from hvd_compress._version import __version__
from hvd_compress.compressor import Compressor
from hvd_compress.exchange import AllGather
from hvd_compress.kernels import CorruptPayload, Kernels, UInt8
from hvd_compress.phased import phases
from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.runtime.losses import Loss, loss_of
from hvd_compress.runtime.transport import Handle, Transport

RECORD_BYTES = 16384
"""Room for what a worker tells the others before the first step."""
WORDS = 600
"""Characters of each of the three texts in it, at most six bytes each."""

NAMELESS = "a tensor without a name"
"""What stands in messages for the name of a tensor that has none."""
MARKS = 32
"""Numbers that ``marks_of`` returns."""

_FIELDS = {
    "version": str,
    "compressor": str,
    "parameters": str,
    "places": str,
    "step": int,
    "buckets": str,
    "restored memories": str,
    "names": str,
    "error": str,
    "unfit": str,
    "survivor": bool,
    "trained among": int,
    "follows": list,
}
"""What a proposal holds, and of which types."""
_OF_ANY_VERSION = ("version", "parameters")

_ADVICE = {
    "version": "install the same version of hvd_compress everywhere",
    "compressor": "give every rank the same arguments and packages",
    "parameters": "every rank must train the same parameters, in the same order",
    "places": "have the same parameters on the GPU on every rank, or all of them",
    "step": "restore the state on every rank, or on none",
    "buckets": "restore the state on every rank, or on none",
    "restored memories": "restore each rank's own state, all of the same step",
}


def proposal(
    compressor: Compressor,
    parameters: Sequence[Parameter],
    step: int,
    layout: list[Any],
    restored: tuple[list[bool], int, str],
    error: str,
    *,
    unfit: str = "",
    survivor: bool = False,
    trained_among: int = 0,
    compare_names: bool = True,
    devices: str = "",
) -> UInt8:
    """Return what a worker is about to do, in ``RECORD_BYTES`` bytes, for ``check_proposals``.

    ``error`` says why it cannot, ``unfit`` why not from the state that it was given. A ``survivor`` has trained
    among other workers before, and ``trained_among`` says how many there were last, 0 if there were none. Without
    ``compare_names`` parameters are compared by their places and sizes alone: some frameworks number names by what else
    was built in the process, and lay buckets out when they build a graph, so that a worker that joins others has the
    same.
    """
    named = [(parameter.name if compare_names else "", parameter.size) for parameter in parameters]
    record = {
        "version": __version__,
        "compressor": _cut(identity(compressor) + devices),
        "parameters": f"{len(parameters)} ({_digest(named)})",
        "places": _places(parameters),
        "step": step,
        "buckets": f"{len(layout)} ({_digest(layout)})",
        "restored memories": f"{sum(restored[0])} of {restored[1]} ({_digest(restored)})",
        "names": _cut(json.dumps(named, ensure_ascii=False)),
        "error": error[:WORDS],
        "unfit": unfit[:WORDS],
        "survivor": survivor,
        "trained among": trained_among,
        "follows": ["step", "restored memories", *(["buckets"] if compare_names else [])],
    }
    payload: UInt8 = np.zeros(RECORD_BYTES, np.uint8)
    text = json.dumps(record, ensure_ascii=False).encode(errors="backslashreplace")
    payload[: len(text)] = np.frombuffer(text, np.uint8)
    return payload


class Agreed(NamedTuple):
    """What follows from the proposals of workers that fit together."""

    leader: int | None
    """The rank of the worker whose progress (steps, buckets, the algorithm's state) all are to take over: where some
    have survived a change of the workers, the first of those that have come furthest. None: nobody's, for all begin
    together."""
    loss: Loss | None
    """Who is gone since some of them trained last."""


def check_proposals(proposals: UInt8) -> Agreed:
    """Compare the workers' proposals (uint8, ``RECORD_BYTES`` each), and return what follows from them.

    Raises:
        ValueError: the proposals differ, or report an error.
    """
    rows = proposals.reshape(-1, RECORD_BYTES)
    workers = len(rows)
    if (rows == rows[0]).all():
        rows = rows[:1]
    records = [_read(row) for row in rows]
    first = records[0]
    _compare(records, ("version",))
    survivors = [rank for rank, record in enumerate(records) if record["survivor"]]
    for rank, record in enumerate(records):
        # the others' progress takes the place of what a worker that joins them was given
        error = record["error"] or (record["unfit"] if record["survivor"] or not survivors else "")
        if error:
            raise ValueError(f"rank {rank}: {error}")
    _compare(records, [key for key in _ADVICE if not (survivors and key in first["follows"])])
    trained_among = [record["trained among"] for record in records]
    return Agreed(
        max(survivors, key=lambda rank: records[rank]["step"], default=None),
        loss_of(trained_among if len(records) == workers else trained_among * workers),
    )


def _compare(records: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
    """Raise ValueError at the first rank that has something else under one of these ``keys`` than rank 0."""
    first = records[0]
    for rank, record in enumerate(records):
        for key in keys:
            if record[key] != first[key]:
                more = _first_difference(first["names"], record["names"], rank) if key == "parameters" else ""
                mine, other = _in_words(key, first[key], record[key])
                raise ValueError(
                    f"ranks disagree on the {key}: rank 0 has {mine}, rank {rank} has {other}{more}; {_ADVICE[key]}"
                )


class Agreements:
    """The agreements of the workers of one process set, numbered in the order in which this worker begins them.

    Another worker may begin the same ones in another order: of two models either may have the first gradient. It may
    also have begun fewer, because here a step of an earlier optimizer came to an error before the others had begun
    theirs. So proposals are matched by what they are about: whoever completes an agreement takes, of every worker, the
    proposal for the same parameters that comes at the same place among that worker's proposals for them.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._begun: list[Agreement] = []
        self._taken: dict[str, set[int]] = {}

    def begin(self, transport: Transport, payload: UInt8) -> Agreement:
        """Tell the others what this worker is about to do."""
        handle = transport.start(AllGather(payload), f"{self._label}.agreement{len(self._begun)}")
        agreement = Agreement(self, transport, handle, payload)
        self._begun.append(agreement)
        return agreement

    def take(self, mine: Agreement) -> int:
        """Return the place, among this worker's proposals for the same parameters, of the first that says what ``mine``
        does and that no agreement has taken; it is taken now. It is ``mine``, or what an optimizer that ended with an
        error has left to others, who know nothing of that."""
        same = [agreement for agreement in self._begun if agreement.parameters == mine.parameters]
        taken = self._taken.setdefault(mine.parameters, set())
        place = next(
            place
            for place, agreement in enumerate(same)
            if place not in taken and (agreement.proposal == mine.proposal).all()
        )
        taken.add(place)
        return place

    def rows(self, mine: Agreement, place: int) -> Generator[Handle, None, UInt8]:
        """Return every worker's proposal at this ``place`` among those for the parameters of ``mine``, or what came
        from it beside ``mine`` if it has none; yield what must be waited for."""
        rows: dict[int, UInt8] = {mine.transport.rank: mine.proposal}
        seen = [0] * mine.transport.workers
        for agreement in self._begun:
            if len(rows) == len(seen):
                break
            for rank, row in enumerate((yield from agreement.receiving())):
                if rank not in rows and _parameters(row) == mine.parameters:
                    if seen[rank] == place:
                        rows[rank] = row
                    seen[rank] += 1
        if len(rows) == len(seen):
            return np.concatenate([rows[rank] for rank in range(len(seen))])
        beside = yield from mine.receiving()
        return np.concatenate([rows.get(rank, row) for rank, row in enumerate(beside)])


class Agreement:
    """One comparison of what all workers are about to do."""

    def __init__(self, agreements: Agreements, transport: Transport, handle: Handle, proposal: UInt8) -> None:
        self.proposal = proposal
        self.parameters = _parameters(proposal)
        """Those that it is about, in words that differ for others."""
        self.transport = transport
        self._agreements = agreements
        self._handle = handle
        self._received: UInt8 | None = None
        self._place: int | None = None

    @property
    def place(self) -> int:
        """What tells these parameters' collectives from those of other agreements about the same: alike on every
        worker, once it is complete."""
        assert self._place is not None
        return self._place

    def completing(self) -> Generator[Handle, None, Agreed]:
        """Compare; yield what must be waited for. Return what ``check_proposals`` does.

        Raises:
            ValueError: the workers differ; the same message on every worker.
        """
        if self._place is None:
            self._place = self._agreements.take(self)
        return check_proposals((yield from self._agreements.rows(self, self._place)))

    def receiving(self) -> Generator[Handle, None, UInt8]:
        """Return what all workers have sent, ``(workers, RECORD_BYTES)``; yield what must be waited for."""
        if self._received is None:
            yield self._handle
        if self._received is None:
            self._received = self.transport.result(self._handle).reshape(-1, RECORD_BYTES)
        return self._received


def _places(parameters: Sequence[Parameter]) -> str:
    """Return which parameters may share a bucket by where they are: what must be the same on every worker, whatever its
    devices are called, and whether all are on one."""
    places = list(dict.fromkeys(parameter.place for parameter in parameters))
    if len(places) < 2:
        return "all parameters in one place"
    pattern = [places.index(parameter.place) for parameter in parameters]
    on_host = sum(not parameter.place for parameter in parameters)
    return f"{on_host} of {len(parameters)} parameters on the host ({_digest(pattern)})"


def digest_of(parameters: Sequence[Parameter]) -> str:
    """Return 16 hexadecimal digits that tell these parameters' names and sizes from others."""
    return _digest([(parameter.name, parameter.size) for parameter in parameters])


def digest_of_sizes(parameters: Sequence[Parameter]) -> str:
    """Return 16 hexadecimal digits that tell these parameters' sizes from others."""
    return _digest([parameter.size for parameter in parameters])


def _read(row: UInt8) -> dict[str, Any]:
    """Return a worker's proposal. Raise CorruptPayload if it is none; one of another version may have other fields."""
    try:
        record: dict[str, Any] = json.loads(row.tobytes().rstrip(b"\0"))
    except (ValueError, RecursionError) as error:
        raise CorruptPayload(f"a worker's proposal for what all are to do cannot be read: {error}") from error
    found = {key: type(value) for key, value in record.items()} if isinstance(record, dict) else {}
    expected = _FIELDS if found and record.get("version") == __version__ else dict.fromkeys(_OF_ANY_VERSION, str)
    if not expected.items() <= found.items():
        raise CorruptPayload("a worker's proposal for what all are to do lacks fields that it should have")
    return record


def _parameters(row: UInt8) -> str:
    parameters: str = _read(row)["parameters"]
    return parameters


def device_mark(compressor: Compressor, kernel_set: Kernels) -> str:
    """Return what tells apart where the kernels run, for a compressor that must have the same everywhere."""
    return f"; {kernel_set.identity}" if compressor.rounds_by_device and kernel_set.identity else ""


def describe(compressor: Compressor) -> str:
    """Return what the workers compare: the arguments, but for those that each worker has its own of."""
    rank_local = phases(compressor).rank_local
    return repr({key: value for key, value in compressor.comparable_config().items() if key not in rank_local})


def identity(compressor: Compressor) -> str:
    """Return what is the same on all workers whose compressors exchange alike."""
    return describe(compressor) + compressor.fingerprint()


def disagreement(name: str, has: str, compressor: Compressor) -> str:
    """Return what a rank that ``has`` tensors of such shapes and dtypes says if the others have reduced something else
    outside an optimizer under this name."""
    return (
        f"ranks disagree on {name}: this rank has {has} and {compressor!r}; give every rank the same shapes, dtypes "
        "and compressor"
    )


def marks_of(text: str) -> list[float]:
    """Return a checksum of ``text``, bit by bit. The mean of several workers' is one of zeros and ones where their
    texts are the same, and in all likelihood nowhere else."""
    digest = zlib.crc32(text.encode(errors="backslashreplace"))
    return [float(digest >> bit & 1) for bit in range(MARKS)]


def _in_words(key: str, left: str, right: str) -> tuple[str, str]:
    """Return what two records have under ``key`` as a message shows it: no hashes, and of two compressors of a kind the
    arguments in which they differ, defaults included."""
    if key != "compressor":
        shown = tuple(re.sub(r" \([0-9a-f]{16}\)", "", str(text)) for text in (left, right))
        return shown[0], f"{shown[1]} others" if shown[0] == shown[1] else shown[1]
    try:
        (mine, more), (others, others_more) = (_configuration(text) for text in (left, right))
        defaults = registry.get(mine["name"]).parameters()
    except (ValueError, SyntaxError, KeyError, TypeError, ImportError):
        return left, right  # too long for the record
    if mine["name"] != others["name"]:
        return left, right
    differ = [name for name in defaults if mine.get(name, defaults[name]) != others.get(name, defaults[name])]

    def told(config: dict[str, Any], tail: str) -> str:
        arguments = ", ".join(f"{name}={config.get(name, defaults[name])!r}" for name in differ)
        return f"{config['name']}({arguments})" + (tail if more != others_more else "")

    return told(mine, more), told(others, others_more)


def _configuration(text: str) -> tuple[dict[str, Any], str]:
    """Return the configuration that ``describe`` wrote, and what a fingerprint added to it."""
    config, brace, more = text.rpartition("}")
    return ast.literal_eval(config + brace), more


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _cut(text: str) -> str:
    """Return a text of any length in ``WORDS`` characters, and still another one for another text."""
    if len(text) <= WORDS:
        return text
    digest = hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]
    return f"{text[: WORDS - 40]}... (sha256 {digest})"


def _first_difference(left: str, right: str, rank: int) -> str:
    """Return words about the first parameter in which two records' names differ, as far as the records show them."""
    place = next((i for i, (a, b) in enumerate(zip_longest(left, right)) if a != b), None)
    if place is None or place >= WORDS - 40:
        return ""
    begin = left.rfind("[", 0, place + 1)
    words = [text[begin:].partition("]")[0].strip("[") or "nothing" for text in (left, right)]
    return f" (first, rank 0 has {words[0]} where rank {rank} has {words[1]})"
