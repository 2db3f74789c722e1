import numpy as np
import pytest

from hvd_compress.advisor.model import of_parameter_count


def test_a_model_of_numbers() -> None:
    model = of_parameter_count(1_000_003, 0.3)
    assert model.parameters == 1_000_003
    assert model.step == pytest.approx(0.3)
    assert np.allclose(np.diff([gradient.ready for gradient in model.gradients]), 1 / len(model.gradients))
    assert of_parameter_count(7, 1.0).parameters == 7
