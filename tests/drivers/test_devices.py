"""Devices whose gradients cannot be compressed are refused, with words that say what can."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hvd_compress import TopK, kernels  # noqa: E402
from hvd_compress.drivers.torch import devices  # noqa: E402
from tests.contract.sign_sgd import SignSGD  # noqa: E402

CUDA = torch.device("cuda:0")


@pytest.fixture
def a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one card, and Triton."""
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla")


def refused(error: Any, *words: str, device: Any = CUDA, compressor: Any = None) -> None:
    with pytest.raises(error) as caught:
        devices.check(device, compressor or TopK())
    for word in words:
        assert word in str(caught.value)


@pytest.mark.usefixtures("a_card")
def test_what_is_served() -> None:
    devices.check(CUDA, TopK())
    devices.check(torch.device("cpu"), TopK())


def test_other_devices() -> None:
    refused(NotImplementedError, "on mps", "the CPU and CUDA devices", "model.cpu()", device=torch.device("mps"))


def test_an_amd_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    refused(NotImplementedError, "ROCm 6.2", "not supported: CUDA is", "without compression")


def test_a_compressor_that_is_not_served_yet() -> None:
    compressor = SignSGD(min_numel=1)
    refused(NotImplementedError, "SignSGD does not compress on cuda:0 yet", "sidco", "topk", compressor=compressor)


@pytest.mark.usefixtures("a_card")
def test_an_old_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    refused(RuntimeError, "Tesla has compute capability 6.1", "7.0 (Volta)")


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setitem(sys.modules, "triton", None)
    refused(ImportError, "need Triton", "pip install 'hvd-compress[cuda]'")


@pytest.mark.usefixtures("a_card")
def test_an_old_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.__version__", "3.1.0")
    refused(RuntimeError, "need Triton 3.6 or newer, this is 3.1.0", "pip install --upgrade triton")


def test_several_devices_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = torch.zeros(2), torch.zeros(2, device="meta")
    assert devices.device_of([here]) is None
    assert devices.device_of([here, there]) == there.device
    monkeypatch.setenv("HVD_COMPRESS_KERNELS", "device")
    assert devices.device_of([here]) == here.device
    with pytest.raises(ValueError, match=r"several devices, cpu, meta.*hvd\.local_rank\(\)"):
        devices.device_of([here, there])


def test_no_other_driver_has_the_kernels_of_devices() -> None:
    with pytest.raises(ValueError, match="for the PyTorch driver alone"):
        kernels.get("device")


def test_out_of_memory_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from tests.on_device import GradientsOnDevice

    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    placed = GradientsOnDevice()
    for name in ("add", "empty"):
        monkeypatch.setattr(placed.on_device, name, fail)
    with pytest.raises(MemoryError, match=r"Tried to allocate 20\.00 MiB"):
        placed.empty(5)
    with pytest.raises(MemoryError, match=r"Tried to allocate 20\.00 MiB"):
        placed.add(None, [np.ones(5, np.float32)], torch.empty(5))
