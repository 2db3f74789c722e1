"""The device kernels of error feedback and sparsification give the reference's bytes."""

from __future__ import annotations

import numpy as np
import pytest

from hvd_compress.kernels import CorruptPayload, workspace
from hvd_compress.kernels.reference import KERNELS as REFERENCE
from tests.kernels.buckets import VALUES, Bucket, Layout, make_bucket, same, select
from tests.kernels.device import KERNELS, array, on_device, tensor, torch

BUCKETS = {
    "empty": make_bucket(0, 0),
    "one element": make_bucket(1, 1, memory=False),
    "no memory": make_bucket(2, 150, "heavy tails", memory=False, cuts=[0.1, 0.1003, 0.5]),
    "not a number": make_bucket(3, 150, cuts=[0.7], bad="nan"),
    "infinite": make_bucket(4, 150, memory=False, bad="-inf"),
    "no gradient": Bucket(make_bucket(5, 150).memory, [], 150),
    "nothing": Bucket(None, [], 100),
    **{values: make_bucket(6, 150, values, cuts=[0.1, 0.1003, 0.5]) for values in VALUES},
}
buckets = pytest.mark.parametrize("bucket", BUCKETS.values(), ids=list(BUCKETS))


@buckets
def test_add(bucket):
    memory, pieces = on_device(bucket)
    out, expected = KERNELS.empty(bucket.d), np.empty(bucket.d, np.float32)
    with np.errstate(all="ignore"):
        same(KERNELS.add(memory, pieces, out), REFERENCE.add(bucket.memory, bucket.pieces, expected))
    same(array(out), expected)


@pytest.mark.parametrize("values", ["normal", "heavy tails"])
def test_sums_are_those_of_additions_in_order(values):
    """Long enough for blocks in which no lane passes a power of two, and with ties that are rounded to even."""
    x = np.abs(make_bucket(7, 1500, values, memory=False).pieces[0])
    x[::5] = np.float32(2.0**-30)
    x[1::7] = np.float32(3 * 2.0**-53)
    pieces = [x[:101], x[101:900], x[900:]]
    with np.errstate(all="ignore"):
        same(KERNELS.norm([tensor(p) for p in pieces], True), REFERENCE.norm(pieces, True))


@pytest.mark.parametrize("name", ["empty", "one element", "no memory", "not a number", "infinite", "denormals"])
def test_norm(name):
    bucket = BUCKETS[name]
    pieces = [tensor(piece) for piece in bucket.pieces]
    with np.errstate(all="ignore"):
        same(KERNELS.norm(pieces, False), REFERENCE.norm(bucket.pieces, False))
        same(KERNELS.norm(pieces, True), REFERENCE.norm(bucket.pieces, True))


@pytest.mark.parametrize("lines", [0, 5, 8, 9, 30])
@pytest.mark.parametrize("name", ["no memory", "no gradient"])
def test_sample(name, lines):
    bucket = BUCKETS[name]
    memory, pieces = on_device(bucket)
    out, expected = np.empty((2, 150), np.float32)
    key = 2**64 - 5 - lines
    moments = KERNELS.sample(memory, pieces, key, lines, out)
    same(moments, REFERENCE.sample(bucket.memory, bucket.pieces, key, lines, expected))
    same(out[: moments.count], expected[: moments.count])


@pytest.mark.parametrize(("threshold", "capacity"), [(0.0, 20), (1.0, 150)])
@buckets
def test_select(bucket, threshold, capacity):
    memory, pieces = on_device(bucket)
    out = KERNELS.empty(bucket.d)
    indices, values = np.empty(workspace(capacity), np.uint32), np.empty(workspace(capacity), np.float32)
    s = KERNELS.select(memory, pieces, out, threshold, capacity, indices, values)
    reference = select(REFERENCE, bucket, threshold, capacity)
    same(s, reference[0])
    if s.finite:
        same((array(out), indices[: s.kept], values[: s.kept]), reference[1:])


def test_select_in_place():
    bucket = BUCKETS["normal"]
    reference = select(REFERENCE, bucket, 0.5, 50)
    memory, pieces = on_device(bucket)
    indices, values = np.empty(workspace(50), np.uint32), np.empty(workspace(50), np.float32)
    s = KERNELS.select(memory, pieces, memory, 0.5, 50, indices, values)
    same((s, array(memory), indices[: s.kept], values[: s.kept]), reference)


@pytest.mark.parametrize(("values", "capacity"), [("normal", 80), ("ties", 3), ("equal", 80), ("equal", 0)])
def test_more_than_there_is_room_for_is_put_back(values, capacity):
    bucket = make_bucket(8, 4700, values, memory=False, cuts=[0.3])
    kernels = type(KERNELS)(KERNELS.empty(0).device, REFERENCE, tile=512)
    indices, values = np.empty(workspace(capacity), np.uint32), np.empty(workspace(capacity), np.float32)
    out = kernels.empty(bucket.d)
    s = kernels.select(None, on_device(bucket)[1], out, 1e-45, capacity, indices, values)
    same((s, array(out), indices[: s.kept], values[: s.kept]), select(REFERENCE, bucket, 1e-45, capacity))


def test_restore_and_take():
    x = make_bucket(9, 200).a
    indices = np.array([0, 7, 63, 64, 199], np.uint32)
    values = np.arange(5, dtype=np.float32)
    out, taken, on_device = tensor(x), np.empty(5, np.float32), KERNELS.empty(5)
    KERNELS.take(out, indices, taken)
    KERNELS.take(out, tensor(indices), on_device)
    same(taken, x[indices])
    same(array(on_device), taken)
    KERNELS.restore(out, indices, values)
    x[indices] = values
    same(array(out), x)
    KERNELS.restore(out, tensor(indices), tensor(-values))
    x[indices] = -values
    same(array(out), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_widened_exactly(dtype):
    every = torch.arange(-(2**15), 2**15, 97, dtype=torch.int32).to(torch.int16).view(dtype)
    expected = every.float().numpy()
    if dtype == torch.bfloat16:
        expected = (np.arange(-(2**15), 2**15, 97).astype(np.uint32) << 16).view(np.float32)
    out = np.empty(len(every), np.float32)
    KERNELS.sample(None, [every.to(KERNELS.empty(0).device)], 1, len(every), out)
    same(out, np.abs(expected))


def test_channels_may_be_last():
    x = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    piece = x.to(KERNELS.empty(0).device, memory_format=torch.channels_last)
    out = KERNELS.empty(120)
    KERNELS.add(None, [piece], out)
    same(array(out), x.reshape(-1).numpy())


@pytest.mark.parametrize("wire", [0, 1, 2])
def test_payloads(wire):
    """Three workers' payloads, two blocks; what a 16-bit wire takes off stays in the memory."""
    layout = Layout(70_000, 40, wire, 2 if wire else 4)
    rng = np.random.default_rng(wire)
    payloads, entries = [], [40, 0, 33]
    for n in entries:
        indices = np.sort(rng.choice(70_000, n, replace=False)).astype(np.uint32)
        indices[n // 2 : n // 2 + 1] = 65_535 if n and 65_535 not in indices else indices[n // 2 : n // 2 + 1]
        indices.sort()
        values = rng.standard_normal(n).astype(np.float32)
        memory, expected = torch.zeros(70_000, device=KERNELS.empty(0).device), np.zeros(70_000, np.float32)
        payloads.append(layout.pack(KERNELS, indices, values, memory))
        same(payloads[-1], layout.pack(REFERENCE, indices, values, expected))
        same(array(memory), expected)
    payloads = np.stack(payloads)
    out = KERNELS.empty(70_000)
    layout.accumulate(KERNELS, payloads, entries, 1 / 3, out)
    same(array(out), layout.accumulate(REFERENCE, payloads, entries, 1 / 3))


def _damaged(payloads, layout, name):
    counts_at, positions_at, values_at = layout.at
    damaged, entries = payloads.copy(), [40, 40]
    if name == "position":
        damaged[1, positions_at + 2 : positions_at + 4] = damaged[1, positions_at : positions_at + 2]
    elif name == "value":
        damaged[1, values_at : values_at + 4] = np.array([np.inf], np.float32).view(np.uint8)
    elif name == "count":
        damaged[1, counts_at] += 1
    else:
        entries = [40, 41]
    return damaged, entries


@pytest.mark.parametrize("name", ["position", "value", "count", "entries"])
def test_corrupt_payloads_are_refused(name):
    layout = Layout(1000, 40, 0, 4)
    indices, values = np.arange(0, 1000, 25, dtype=np.uint32), np.ones(40, np.float32)
    payloads, entries = _damaged(np.stack([layout.pack(REFERENCE, indices, values)] * 2), layout, name)
    with pytest.raises(CorruptPayload, match="payload 1"):
        layout.accumulate(KERNELS, payloads, entries, 1.0, KERNELS.empty(1000))


@pytest.mark.parametrize("wire", [1, 2])
def test_dense_payloads(wire):
    edges = np.arange(0, 2**32, 2**22, dtype=np.uint64)
    around = [edges, edges + 1, edges - 1, edges + 0x1000, edges + 0x8000, edges + 0xFFF, edges + 0x3000]
    x = np.concatenate([*around, np.random.default_rng(0).integers(0x33000000, 0x39000000, 3000, np.uint64)])
    x = x.astype(np.uint32).view(np.float32)
    kernels = type(KERNELS)(KERNELS.empty(0).device, REFERENCE, tile=2048)
    words, expected = tensor(np.empty(len(x), np.uint16)), np.empty(len(x), np.uint16)
    kernels.narrow(tensor(x), wire, words)
    REFERENCE.narrow(x, wire, expected)
    same(array(words).view(np.uint16), expected)
    rows, out = expected[:9000].reshape(3, -1), np.empty(3000, np.float32)
    assert not REFERENCE.accumulate_dense(rows, wire, 0.3, out)
    for given in (tensor(rows), rows):
        result = kernels.empty(3000)
        assert not kernels.accumulate_dense(given, wire, 0.3, result)
        same(array(result), out)
    assert kernels.accumulate_dense(rows & 0x3FFF, wire, 0.3, result)
    there = np.empty(len(x), np.uint16)
    kernels.narrow(tensor(x), wire, there)
    same(there, expected)


def test_what_a_method_waits_for():
    """One wait for a selection, and two where more is found than may be kept; none to give it back."""
    memory, pieces = on_device(BUCKETS["normal"])
    indices, values = np.empty(workspace(20), np.uint32), np.empty(workspace(20), np.float32)
    waits = []
    for threshold in (3.0, 0.0):
        before = KERNELS.synchronizations
        s = KERNELS.select(memory, pieces, KERNELS.empty(150), threshold, 20, indices, values)
        waits.append(KERNELS.synchronizations - before)
    before = KERNELS.synchronizations
    KERNELS.restore(memory, indices[: s.kept], values[: s.kept])
    assert [*waits, KERNELS.synchronizations - before] == [1, 2, 0]


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (TypeError, "out must be a tensor", lambda x, k: k.add(None, [x], x.double())),
        (TypeError, "pieces must be float32", lambda x, k: k.add(None, [x.double()], x)),
        (ValueError, "pieces must be contiguous", lambda x, k: k.add(None, [x.repeat(2)[::2]], x)),
        (ValueError, "pieces have 200 elements", lambda x, k: k.add(None, [x, x], x)),
        (ValueError, "memory has 50 elements", lambda x, k: k.add(x[:50], [x], x)),
        (ValueError, "lines must be >= 0", lambda x, k: k.sample(x, [], 1, -1, np.empty(100, "f"))),
        (ValueError, "out has room for 50", lambda x, k: k.sample(x, [], 1, 100, np.empty(50, "f"))),
        (TypeError, "out must be an array on the host", lambda x, k: k.sample(x, [], 1, 100, x)),
        (ValueError, "threshold must be >= 0", lambda x, k: k.select(x, [], x, -1.0, 1, *_workspaces(1))),
        (ValueError, "capacity must be >= 0", lambda x, k: k.select(x, [], x, 1.0, -1, *_workspaces(1))),
        (ValueError, "indices and values need", lambda x, k: k.select(x, [], x, 1.0, 9, *_workspaces(1))),
        (ValueError, "indices must be below", lambda x, k: k.restore(x, np.array([100], np.uint32), np.zeros(1, "f"))),
        (ValueError, "indices must be below", lambda x, k: k.take(x, np.array([100], np.uint32), np.zeros(1, "f"))),
    ],
)
def test_wrong_arguments_are_refused(error, match, call):
    x = tensor(np.ones(100, np.float32))
    with pytest.raises(error, match=match):
        call(x, KERNELS)
    assert (array(x) == 1).all()


def _workspaces(capacity):
    return np.empty(workspace(capacity), np.uint32), np.empty(workspace(capacity), np.float32)
