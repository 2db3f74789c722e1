"""What a compressor holds back, on its way from one optimizer to another."""

import numpy as np
import pytest

pytest.importorskip("torch")

from hvd_compress.drivers.torch.handover import moved
from hvd_compress.runtime.bucketing import Parameter
from hvd_compress.state_format import empty_state

WEIGHT = Parameter("weight", 3)
HELD = {"residual": np.ones(3, np.float32)}
MOMENTUM = {"mean_momentum": np.ones(2, np.float32)}


def test_rates_move_along() -> None:
    """They say in which unit the memory is."""
    state = {**empty_state("topk"), "step": 2, "memory": {"weight": HELD}, "rates": {"weight": 0.1}}
    for after in ([WEIGHT], [WEIGHT, Parameter("more", 3)]):
        new = moved(state, [WEIGHT], after, {parameter.name: parameter.size for parameter in after})
        assert new is not None
        assert new["rates"] == {"weight": 0.1}
        np.testing.assert_array_equal(new["memory"]["weight"]["residual"], HELD["residual"])


def test_momenta_of_a_model_of_which_nothing_is_compressed() -> None:
    state = {**empty_state("dgc"), "step": 2, "memory": {"bias": MOMENTUM, "gone": MOMENTUM}}
    new = moved(state, [], [], {"bias": 2})
    assert new is not None
    assert (new["step"], new["memory"]) == (2, {"bias": MOMENTUM})
    assert moved(state, [], [WEIGHT], {"bias": 2, "weight": 3}) is None
