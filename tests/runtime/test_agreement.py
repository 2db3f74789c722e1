"""What ranks are told that differ: the arguments in question, defaults included, and no hashes."""

import re
from typing import Any

import numpy as np
import pytest

from hvd_compress import FFT, QSGDMaxNorm, TopK
from hvd_compress.runtime.agreement import check_proposals, proposal
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
