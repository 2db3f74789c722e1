"""hvd_compress: gradient compression for stock Horovod, under PyTorch and TensorFlow.

    opt = hvd.DistributedOptimizer(opt, compression=hvd_compress.SIDCo())

Importing this package imports no framework; a compressor meets its framework with its first gradient.
"""

import hvd_compress.drivers  # noqa: F401 - says which driver serves which framework
from hvd_compress._version import __version__
from hvd_compress.algorithms.dense import Dense
from hvd_compress.algorithms.dgc import DGC
from hvd_compress.algorithms.fft import FFT
from hvd_compress.algorithms.half import Half
from hvd_compress.algorithms.maxnorm import QSGDMaxNorm, QSGDMaxNormMultiScale, RandKMaxNorm, RandKMaxNormMultiScale
from hvd_compress.algorithms.selection import largest, send
from hvd_compress.algorithms.shared_topk import SharedTopK
from hvd_compress.algorithms.sidco import SIDCo
from hvd_compress.algorithms.terngrad import TernGrad
from hvd_compress.algorithms.topk import TopK
from hvd_compress.auto.compressor import Auto
from hvd_compress.codecs.header import NBYTES as HEADER_BYTES
from hvd_compress.codecs.sparse import SparseFormat
from hvd_compress.compressor import Collectives, Compressor, compressor_dataclass
from hvd_compress.drivers.simulation import Simulation
from hvd_compress.exchange import (
    AllGather,
    AllReduce,
    AllToAll,
    Broadcast,
    Bucket,
    Collective,
    Exchange,
    NonFiniteGradient,
    ReduceScatter,
    maximum,
)
from hvd_compress.kernels import CorruptPayload, Kernels, Moments, Selection
from hvd_compress.lgc import LGC
from hvd_compress.memory import Memory, MomentumCorrection, Residual
from hvd_compress.phased import MPIJob, PhasedCompressor, Preparation
from hvd_compress.recording.recorder import Recorder
from hvd_compress.registry import from_config
from hvd_compress.registry import names as compressor_names
from hvd_compress.schedules import Decay, DiminishingTheta, Schedule, Steps, WarmUp
from hvd_compress.sparsifier import Selective, Sparsifier
from hvd_compress.topology import Topology
from hvd_compress.two_level import TwoLevel

__all__ = [
    "DGC",
    "FFT",
    "HEADER_BYTES",
    "LGC",
    "AllGather",
    "AllReduce",
    "AllToAll",
    "Auto",
    "Broadcast",
    "Bucket",
    "Collective",
    "Collectives",
    "Compressor",
    "CorruptPayload",
    "Decay",
    "Dense",
    "DiminishingTheta",
    "Exchange",
    "Half",
    "Kernels",
    "MPIJob",
    "Memory",
    "Moments",
    "MomentumCorrection",
    "NonFiniteGradient",
    "PhasedCompressor",
    "Preparation",
    "QSGDMaxNorm",
    "QSGDMaxNormMultiScale",
    "RandKMaxNorm",
    "RandKMaxNormMultiScale",
    "Recorder",
    "ReduceScatter",
    "Residual",
    "SIDCo",
    "Schedule",
    "Selection",
    "Selective",
    "SharedTopK",
    "Simulation",
    "SparseFormat",
    "Sparsifier",
    "Steps",
    "TernGrad",
    "TopK",
    "Topology",
    "TwoLevel",
    "WarmUp",
    "__version__",
    "compressor_dataclass",
    "compressor_names",
    "from_config",
    "largest",
    "maximum",
    "send",
]
