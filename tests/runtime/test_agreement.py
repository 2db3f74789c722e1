"""What ranks are told that differ: the arguments in question, defaults included, and no hashes."""

import json
import re
from typing import Any

import numpy as np
import pytest

from hvd_compress import FFT, QSGDMaxNorm, TopK, TwoLevel
from hvd_compress.kernels import CorruptPayload, UInt8
from hvd_compress.runtime.agreement import RECORD_BYTES, Agreement, Agreements, check_proposals, proposal
from hvd_compress.runtime.bucketing import Parameter

TWO = [Parameter("a", 5000, 4), Parameter("b", 6000, 4)]


def told(*workers: tuple[Any, list[Parameter], list[Any]]) -> str:
    rows = [proposal(c, parameters, 0, layout, ([], 0, ""), "") for c, parameters, layout in workers]
    with pytest.raises(ValueError, match="ranks disagree on the ") as caught:
        check_proposals(np.concatenate(rows))
    assert not re.search(r"[0-9a-f]{16}", str(caught.value))
    return str(caught.value).removeprefix("ranks disagree on the ")


def test_arguments() -> None:
    message = told((TopK(seed=3), TWO, []), (TopK(0.1, seed=3), TWO, []))
    assert message.startswith("compressor: rank 0 has topk(ratio=0.01), rank 1 has topk(ratio=0.1); give every rank")
    message = told((TopK(), TWO, []), (TopK(), TWO, []), (TopK(wire="float16", min_numel=9), TWO, []))
    assert "rank 0 has topk(min_numel=1024, wire='float32'), rank 2 has topk(min_numel=9, wire='float16'); " in message
    assert "rank 0 has {'name': 'topk'}, rank 1 has {'name': 'qsgd-maxnorm'" in told(
        (TopK(), TWO, []), (QSGDMaxNorm(bits=4), TWO, [])
    )


def test_schedules_of_the_user_s_own() -> None:
    """They have no configuration, but values; and what is beside them counts as it always does."""
    first, later = (lambda step, until=until: 0.1 if step < until else 0.05 for until in (1, 2))
    message = told((TopK(first), TWO, []), (TopK(later), TWO, []))
    assert message.startswith("compressor: rank 0 has topk(ratio={'schedule': 'function', 'values': [0.1, 0.05, ")
    assert "topk(seed=0), rank 1 has topk(seed=1)" in told((TopK(first), TWO, []), (TopK(first, seed=1), TWO, []))
    inner = [TwoLevel(TopK(schedule)) for schedule in (first, later)]
    assert "two-level" in told((inner[0], TWO, []), (inner[1], TWO, []))
    until = [TopK([0.1, last].__getitem__) for last in (0.1, 0.2)]  # that ends with the training
    assert "[0.1, 0.2]" in told((until[0], TWO, []), (until[1], TWO, []))


def test_what_is_not_in_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = FFT(), FFT()
    rows = [proposal(first, TWO, 0, [], ([], 0, ""), "")]
    monkeypatch.setattr(FFT, "fingerprint", lambda self: "; SciPy 1.999")
    rows.append(proposal(second, TWO, 0, [], ([], 0, ""), ""))
    with pytest.raises(ValueError, match=r"rank 0 has fft\(\); SciPy 1.*, rank 1 has fft\(\); SciPy 1\.999; "):
        check_proposals(np.concatenate(rows))


def test_parameters_and_buckets() -> None:
    other = [TWO[0], Parameter("c", 6000, 4)]
    assert "parameters: rank 0 has 2, rank 1 has 1 (first, rank 0 has " in told(
        (TopK(), TWO, []), (TopK(), TWO[:1], [])
    )
    assert "parameters: rank 0 has 2, rank 1 has 2 others (first, " in told((TopK(), TWO, []), (TopK(), other, []))
    message = told((TopK(), TWO, [["a"], ["b"]]), (TopK(), TWO, [["b"], ["a"]]))
    assert message.startswith("buckets: rank 0 has 2, rank 1 has 2 others; restore the state on every rank")


class Names:
    """A transport of two workers in which a collective is done once both have begun one of its name."""

    simulated, workers = True, 2

    def __init__(self, begun: list[dict[str, UInt8]], rank: int) -> None:
        self.begun, self.rank = begun, rank

    def start(self, exchange: Any, name: str) -> str:
        assert name not in self.begun[self.rank]
        self.begun[self.rank][name] = exchange.payload
        return name

    def done(self, name: str) -> bool:
        return all(name in mine for mine in self.begun)

    def result(self, name: str) -> UInt8:
        return np.concatenate([mine[name] for mine in self.begun])


class Workers:
    """Two workers, each with the agreements that it has begun."""

    def __init__(self) -> None:
        begun: list[dict[str, UInt8]] = [{}, {}]
        self.transports: list[Any] = [Names(begun, rank) for rank in (0, 1)]
        self.agreements = [Agreements("set0") for _ in (0, 1)]

    def begin(self, rank: int, parameters: list[Parameter], compressor: Any = None) -> Agreement:
        payload = proposal(compressor or TopK(), parameters, 0, [], ([], 0, ""), "")
        return self.agreements[rank].begin(self.transports[rank], payload)

    def complete(self, rank: int, agreement: Agreement) -> None:
        for handle in agreement.completing():
            assert self.transports[rank].done(handle), "this worker would wait for ever"


ONE = [Parameter("c", 9000, 4)]


def test_two_models_in_either_order() -> None:
    workers = Workers()
    first = [workers.begin(0, parameters) for parameters in (TWO, ONE)]
    second = [workers.begin(1, parameters) for parameters in (ONE, TWO)]
    for agreement in first:
        workers.complete(0, agreement)
    for agreement in second[::-1]:
        workers.complete(1, agreement)
    assert [agreement.place for agreement in (*first, *second)] == [0] * 4


def test_two_models_alike_are_told_apart() -> None:
    workers = Workers()
    pairs = [[workers.begin(rank, ONE, c) for rank in (0, 1)] for c in (TopK(), TopK(), QSGDMaxNorm())]
    for pair in reversed(pairs):
        for rank, agreement in enumerate(pair):
            workers.complete(rank, agreement)
        assert pair[0].place == pair[1].place
    assert sorted(pair[0].place for pair in pairs) == [0, 1, 2]


def test_what_one_worker_alone_began_keeps_nobody_waiting() -> None:
    """An optimizer came to an error on rank 0 before the others had begun; they know nothing of that one, and all go on
    with its successors."""
    workers = Workers()
    workers.begin(0, ONE)
    for _ in range(3):
        pair = [workers.begin(rank, ONE) for rank in (0, 1)]
        for rank, agreement in enumerate(pair):
            workers.complete(rank, agreement)
        assert pair[0].place == pair[1].place


def test_what_all_workers_gave_up_stands_in_nobodys_way() -> None:
    workers = Workers()
    for rank in (0, 1):
        workers.begin(rank, ONE, TopK(0.1))
    pair = [workers.begin(rank, ONE, TopK(0.2)) for rank in (0, 1)]
    for rank, agreement in enumerate(pair):
        workers.complete(rank, agreement)
    assert pair[0].place == pair[1].place == 1


def test_a_successor_that_differs_is_an_error_where_others_wait_for_it() -> None:
    workers = Workers()
    workers.begin(0, ONE, TopK(0.1))
    workers.begin(0, ONE, TopK(0.2))
    with pytest.raises(ValueError, match=r"rank 0 has topk\(ratio=0\.1\), rank 1 has topk\(ratio=0\.2\)"):
        workers.complete(1, workers.begin(1, ONE, TopK(0.2)))
    workers.begin(0, ONE)
    with pytest.raises(ValueError, match="ranks disagree on the "):
        workers.complete(1, workers.begin(1, TWO))


def row(**fields: Any) -> UInt8:
    """Return a proposal in which these fields are others; None: it lacks them."""
    payload = proposal(TopK(), TWO, 0, [], ([], 0, ""), "")
    record = {**json.loads(payload.tobytes().rstrip(b"\0")), **fields}
    text = json.dumps({key: value for key, value in record.items() if value is not None}).encode()
    payload[:] = 0
    payload[: len(text)] = np.frombuffer(text, np.uint8)
    return payload


@pytest.mark.parametrize("field", list(json.loads(row().tobytes().rstrip(b"\0"))))
def test_a_proposal_that_lacks_a_field_or_has_it_of_another_type(field: str) -> None:
    for value in (None, [None], {}):
        if (field, type(value)) != ("follows", list):
            with pytest.raises(CorruptPayload, match=r"a worker's proposal .* lacks fields that it should have"):
                check_proposals(np.concatenate([row(), row(**{field: value})]))


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[" * 16000, b"1e999", b"[]", b'{"version": "1", "parameters"'])
def test_bytes_that_are_no_proposal(text: bytes) -> None:
    payload = np.zeros(RECORD_BYTES, np.uint8)
    payload[: len(text)] = np.frombuffer(text, np.uint8)
    with pytest.raises(CorruptPayload, match="a worker's proposal for what all are to do "):
        check_proposals(np.concatenate([row(), payload]))


def test_another_version_may_have_other_fields() -> None:
    other = row(version="0.0.1", places=None, follows=None, more=1)
    for rows in ([row(), other], [other, row()]):
        with pytest.raises(ValueError, match=r"ranks disagree on the version: .*; install the same version"):
            check_proposals(np.concatenate(rows))
