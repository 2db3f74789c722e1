"""Kernel sets as fixtures: ``host`` is the C++ one with each instruction set, ``kernels`` also the reference."""

from __future__ import annotations

import pytest

from hvd_compress.kernels import host as host_module
from hvd_compress.kernels import reference

ISAS = host_module.available()


@pytest.fixture(params=ISAS)
def host(request):
    before = host_module.isa()
    host_module.use(request.param)
    yield host_module.KERNELS
    host_module.use(before)


@pytest.fixture(params=["reference", *ISAS])
def kernels(request):
    if request.param == "reference":
        yield reference.KERNELS
        return
    before = host_module.isa()
    host_module.use(request.param)
    yield host_module.KERNELS
    host_module.use(before)
