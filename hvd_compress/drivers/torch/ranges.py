"""What is said when a step is not finite because a type's range is too small for numbers that are."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch

from hvd_compress.drivers.torch import tensors
from hvd_compress.drivers.torch.finite import is_finite
from hvd_compress.validation import warn_of_range

logger = logging.getLogger(__name__)


def tell_of_float32(gradients: Mapping[str, torch.Tensor]) -> None:
    """Say which gradients of this rank, by the names of their parameters, are finite in float64 alone."""
    names = [name for name, gradient in gradients.items() if tensors.beyond_float32(gradient)]
    if names:
        warn_of_range(names)


def tell_of_float16(means: Mapping[str, torch.Tensor]) -> None:
    """Say which means, by the names of their parameters, are not finite in float16, as which they were handed out."""
    halves = {name: mean for name, mean in means.items() if mean.dtype == torch.float16}
    names = [name for name, mean in halves.items() if not is_finite(mean)]
    if names:
        logger.warning(
            "the step is not finite, for what is held back and the gradients together are beyond the range of float16, "
            "the type of %s; what it sent is lost. wire='float16' never sends more than that (sparsifiers have it); or "
            "take smaller loss scales, or parameters of another type",
            ", ".join(map(repr, names)),
        )
