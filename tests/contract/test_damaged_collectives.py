"""A collective that brings all workers something else than what was sent: they refuse it alike, or go on alike."""

import zlib
from typing import Any

import numpy as np
import pytest

from hvd_compress import HEADER_BYTES, CorruptPayload
from hvd_compress.drivers import simulation as simulated
from hvd_compress.exchange import AllReduce, Broadcast, ReduceScatter
from tests.contract.configurations import label, parameters, simulation
from tests.gradients import gradient

SIZES = {"a": 300, "b": 1500, "c": 200}
WORKERS = 2
TRIALS = 6


def damage(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a copy in which a few bits, or all, are others; or whose numbers are denormal, or all alike. Headers of
    payloads, which hardly any damage would come through, are kept in half of the cases."""
    damaged = array.copy()
    raw = damaged.reshape(-1).view(np.uint8)
    if array.dtype == np.uint8 and array.ndim == 2 and rng.random() < 0.5:
        damaged[:, HEADER_BYTES:] = damage(np.ascontiguousarray(array[:, HEADER_BYTES:]), rng)
        return damaged
    kind = rng.integers(5)
    if kind == 0 and len(raw):
        raw[rng.integers(0, len(raw), 3)] ^= np.uint8(1) << rng.integers(0, 8, 3, np.uint8)
    elif kind == 1:
        raw[:] = rng.integers(0, 256, len(raw))
    elif kind == 2:
        words = raw[: len(raw) // 4 * 4].view(np.uint32)
        words[:] = rng.integers(1, 1 << 20, len(words))
    else:
        raw[:] = 255 * (kind == 3)
    return damaged


class Damage:
    """Stands in for ``combine``, and damages some results of exchanges while it is ``armed``.

    What a root broadcasts comes to itself as it was, so that only a checksum would tell; those are tested where they
    are decoded.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng, self.armed, self.overflows = rng, False, False
        self.combine = simulated.combine

    def __call__(self, name: str, collectives: list[Any]) -> list[np.ndarray]:
        results = self.combine(name, collectives)
        first = collectives[0]
        if not self.armed or ".round" not in name or isinstance(first, Broadcast) or self.rng.random() < 0.4:
            return results
        # a sum of floating-point numbers is none of the library's formats: it may overflow, as Horovod's own does
        self.overflows |= isinstance(first, AllReduce | ReduceScatter) and results[0].dtype.kind == "f"
        if any(result is not results[0] for result in results):
            return [damage(result, self.rng) for result in results]
        return [damage(results[0], self.rng)] * len(results)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NaN that was not sent
@parameters()
def test_workers_stay_alike(configuration: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation itself fails where workers compute different means."""
    rng = np.random.default_rng(zlib.crc32(label(configuration).encode()))
    for _ in range(TRIALS):
        with monkeypatch.context() as patched:
            damaging = Damage(rng)
            patched.setattr(simulated, "combine", damaging)
            sim = simulation(configuration, WORKERS)
            hit = rng.integers(0, 4)
            for step in range(4):
                damaging.armed = step == hit
                given = {n: [gradient("laplace", size, step, r) for r in range(WORKERS)] for n, size in SIZES.items()}
                try:
                    means = sim.step(given)
                except CorruptPayload:
                    break
                stats = [compressor.stats()["total"]["skipped_steps"] for compressor in sim.compressors]
                assert len(set(stats)) == 1
                finite = all(np.isfinite(mean).all() for mean in means.values())
                assert finite or stats[0] or damaging.overflows
