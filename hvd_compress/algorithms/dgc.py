"""Deep Gradient Compression: top-k with momentum correction (Lin, Han, Mao, Wang, Dally; ICLR 2018)."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import ClassVar

from hvd_compress.algorithms.topk import TopK
from hvd_compress.compressor import compressor_dataclass
from hvd_compress.kernels import Kernels
from hvd_compress.memory import Memory, MomentumCorrection
from hvd_compress.validation import require_number


@compressor_dataclass
class DGC(TopK):
    """Top-k of a momentum-corrected velocity (section 3.1), with momentum factor masking (section 3.2).

    1. ``u = momentum * u + g`` and ``v = v + u`` (instead of ``m + g``).
    2. The k largest of ``v`` are sent; ``u`` and ``v`` are cleared there.

    The optimizer itself must have no momentum: it is applied here. Memory: four arrays the size of the gradient.

    Args:
        momentum: beta, in [0, 1).

    Tuning: the momentum you would give the optimizer; a warm-up of the ratio over the first epochs
    (``ratio=WarmUp(0.001, every=steps_per_epoch)``), as in the paper.

    >>> DGC(0.001)
    DGC(ratio=0.001)
    """

    name: ClassVar[str] = "dgc"

    _: KW_ONLY
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("momentum", self.momentum, "in [0, 1) as float32", lambda beta: 0 <= beta < 1 - 2.0**-25)
        if not self.error_feedback:
            raise ValueError("DGC is error feedback; use TopK(error_feedback=False) for none")

    def new_memory(self, kernels: Kernels, size: int) -> Memory:
        return MomentumCorrection(kernels, size, self.momentum)
