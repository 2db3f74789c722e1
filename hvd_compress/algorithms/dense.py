"""No compression: a plain all-reduce, the reference that must match Horovod's own result."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hvd_compress.compressor import Compressor, compressor_dataclass
from hvd_compress.exchange import AllReduce, Bucket, Exchange


@compressor_dataclass
class Dense(Compressor):
    """Send everything as float32: what every other compressor is compared with.

    The mean is the float32 sum times float32(1/N), as Horovod's own ``op=Average`` computes it.

    Tuning: there is nothing to tune; it tells what the library itself costs.

    >>> Dense(bucket_mb=4)
    Dense(bucket_mb=4)
    """

    name: ClassVar[str] = "dense"
    runs_on_devices: ClassVar[bool] = True
    joinable: ClassVar[bool] = True
    schedule = (AllReduce,)

    def exchange(self, bucket: Bucket) -> Exchange:
        total = yield AllReduce(bucket.values, op="sum")
        total *= np.float32(1 / bucket.workers)
        return total
