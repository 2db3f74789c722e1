"""How much a step asks of the device and how often the host waits: what a small bucket costs, whatever the card."""

from __future__ import annotations

from collections import Counter

import pytest

from hvd_compress import QSGDMaxNorm, SIDCo, TopK
from hvd_compress.exchange import AllGather, Bucket, sent_array
from hvd_compress.kernels import host
from hvd_compress.kernels.device.launch import Launcher
from hvd_compress.kernels.device.placement import PlacedKernels
from tests.kernels.buckets import make_bucket
from tests.kernels.device import DEVICE, DeviceKernels, tensor
from tests.kernels.test_device_exchange import on_host

SIZE = 262_144


@pytest.fixture
def counted(monkeypatch):
    """What is launched, filled, copied to the device and back, and waited for."""
    asked = Counter()

    def count(name, each):
        original = getattr(Launcher, name)

        def counting(self, *arguments, **constants):
            each(*arguments)
            return original(self, *arguments, **constants)

        monkeypatch.setattr(Launcher, name, counting)

    count("launch", lambda program, programs, *_: asked.update(launches=int(programs > 0)))
    for name in ("zeros", "full"):
        count(name, lambda *_: asked.update(fills=1))
    count("upload", lambda *_: asked.update(uploads=1))
    count("copy_to_host", lambda *copies: asked.update(waits=1, downloads=len(copies)))
    return asked


@pytest.mark.parametrize(
    ("compressor", "sending", "receiving"),
    [
        (
            SIDCo(0.01),
            {"launches": 3, "fills": 1, "downloads": 4, "waits": 2},
            {"launches": 1, "fills": 1, "uploads": 2, "downloads": 1, "waits": 1},
        ),
        (
            TopK(0.01),  # finds more than it may keep
            {"launches": 3, "fills": 1, "downloads": 6, "waits": 3},
            {"launches": 1, "fills": 1, "uploads": 2, "downloads": 1, "waits": 1},
        ),
        (
            QSGDMaxNorm(8),
            {"launches": 2, "fills": 1, "uploads": 1, "downloads": 1, "waits": 1},
            {"launches": 1, "uploads": 1},
        ),
    ],
    ids=str,
)
def test_what_a_bucket_costs(compressor, sending, receiving, counted):
    """Before the last collective, and to decode. PyTorch's own operations come to it: a running sum, and a fill."""
    kernels = PlacedKernels(DeviceKernels(DEVICE, host.KERNELS, tile=16_384), host.KERNELS)
    bucket = Bucket("w", SIZE, compressor.new_memory(kernels, SIZE), kernels, 0, 1, seed=1)
    bucket.memory.begin([tensor(make_bucket(3, SIZE, "heavy tails", memory=False).pieces[0])])
    counted.clear()
    run = compressor.exchange(bucket)
    sent = next(run)
    for _ in compressor.schedule[1:]:
        sent = run.send(on_host(sent_array(sent)))
    assert counted == sending
    counted.clear()
    bucket.memory.commit()
    result = sent_array(sent)
    with pytest.raises(StopIteration):
        run.send(result[None] if isinstance(sent, AllGather) else result)
    assert counted == receiving
