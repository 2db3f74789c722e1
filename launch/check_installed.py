"""Does an installed package work where no framework is?

Run it with `python -I`: then no checkout lends the package what it lacks.
"""

from __future__ import annotations

import sys

import numpy as np

import hvd_compress
from hvd_compress import SIDCo, Simulation
from hvd_compress.advisor import configurations
from hvd_compress.kernels import _host  # noqa: F401  (compiled, and for this Python)
from hvd_compress.kernels.host import KERNELS

assert "site-packages" in hvd_compress.__file__, hvd_compress.__file__
assert "site-packages" in str(configurations.folder()), configurations.folder()
assert configurations.text("sidco").startswith("# SIDCo")

gradients = [np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64) ** 9] * 2
mean = Simulation(SIDCo(0.1, min_numel=1), workers=2).step({"w": gradients})["w"]
sent = mean != 0
assert 300 < np.count_nonzero(sent) < 600, np.count_nonzero(sent)
np.testing.assert_array_equal(mean[sent], gradients[0][sent])

# An exception of C++ comes through as Python's, whatever C++ library is linked in.
raised = ""
try:
    KERNELS.add(np.zeros(9), [np.zeros(9, np.float32)], np.zeros(9, np.float32))
except TypeError as error:
    raised = str(error)
assert "memory must be float32" in raised, raised

loaded = {"torch", "tensorflow", "horovod", "mpi4py"} & {name.partition(".")[0] for name in sys.modules}
assert not loaded, f"importing hvd_compress loads {loaded}"
