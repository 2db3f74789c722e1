"""The kernels in NumPy: the specification that every other kernel set reproduces byte for byte.

Written to be read, not to be fast. ``hvd_compress.kernels.protocol`` says what each function does.
"""

from __future__ import annotations

import numpy as np

from hvd_compress.kernels.any_length import AnyLengthTransform
from hvd_compress.kernels.host_arrays import HostArrays
from hvd_compress.kernels.protocol import Float32, Kernels
from hvd_compress.kernels.reference.quantization import QuantizationReference
from hvd_compress.kernels.reference.radix4 import TransformReference
from hvd_compress.kernels.reference.range_floats import RangeFloatReference
from hvd_compress.kernels.reference.sparsification import SparsificationReference
from hvd_compress.kernels.reference.spectra import SpectrumReference


class Reference(
    HostArrays,
    SparsificationReference,
    QuantizationReference,
    RangeFloatReference,
    SpectrumReference,
    TransformReference,
    AnyLengthTransform,
):
    """``Kernels`` in NumPy."""

    name = "reference"

    def empty(self, n: int) -> Float32:
        return np.empty(n, np.float32)


KERNELS: Kernels = Reference()
