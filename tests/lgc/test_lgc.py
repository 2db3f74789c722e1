"""LGC in the simulation: phases, indices in common, error feedback, faults, state."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hvd_compress
from hvd_compress import LGC
from hvd_compress.lgc import inline, process
from hvd_compress.lgc.architecture import Architecture
from hvd_compress.lgc.autoencoder import Autoencoder, to_bytes
from hvd_compress.lgc.offline import lgc_train, samples_of
from hvd_compress.lgc.untrained import LEAST
from hvd_compress.phased import Preparation
from tests.gradients import gradient
from tests.recording import Recorder
from tests.runtime.team import Team
from tests.simulation import Simulation

SMALL: dict[str, Any] = {"encoder": (8, 8, 4), "decoder": (8, 8), "dense_steps": 2, "train_steps": 40, "min_numel": 1}
SIZES = {"stem": 600, "body": 4000, "head": 900}


def lgc(ratio: float = 0.05, **keywords: Any) -> LGC:
    return LGC(ratio, **{**SMALL, **keywords})


def gradients(step: int, workers: int = 2, sizes: dict[str, int] = SIZES) -> dict[str, list[np.ndarray]]:
    """Half of what the workers see is the same."""
    made = {}
    for index, (name, size) in enumerate(sizes.items()):
        common = gradient("laplace", size, step, index)
        made[name] = [common + gradient("laplace", size, step, index, rank + 1) for rank in range(workers)]
    return made


def phase(sim: Simulation) -> str:
    phases = {c.stats()["lgc"]["phase"] for c in sim.compressors}
    assert len(phases) == 1
    return phases.pop()


@pytest.fixture(autouse=True)
def _learn_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "BATCHES_PER_SAMPLE", 10)


class Identity:
    """An autoencoder that does nothing, not even round."""

    parameters = 0

    def __init__(self, made: Architecture) -> None:
        self.architecture = made

    def encode(self, vectors: np.ndarray, workers: int) -> np.ndarray:
        return vectors.copy()

    def decode(self, codes: np.ndarray, length: int, innovations: np.ndarray | None = None) -> np.ndarray:
        return codes.astype(np.float32)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("signs", [True, False])
def test_with_the_identity_it_is_top_k_at_the_leader_s_indices(workers: int, signs: bool) -> None:
    """Means and memories, bit for bit; and those are computed here, too."""
    learned = Simulation(lgc(dense=[], topk_only=[], signs=signs, dense_steps=0), workers)
    for compressor in learned.compressors:
        compressor.learning.codec = Identity(compressor.learning.architecture)
        compressor.learning.switch = 0
    top_k = Simulation(lgc(dense=[], topk_only=[], dense_steps=0, train_steps=10**6), workers)
    memory = [np.zeros(4000, np.float32) for _ in range(workers)]
    for step in range(8):
        given = gradients(step, workers, {"body": 4000})
        mean = learned.step(given)["body"]
        np.testing.assert_array_equal(mean, top_k.step(given)["body"])
        a = [m + g for m, g in zip(memory, given["body"], strict=True)]
        indices = np.sort(np.argsort(-np.abs(a[step % workers]), kind="stable")[:200])
        expected = np.zeros(4000, np.float32)
        for own in a:
            expected[indices] += own[indices] * np.float32(1 / workers)
            own[indices] = 0
        np.testing.assert_array_equal(mean, expected)
        memory = a
        for sim in (learned, top_k):
            for compressor, own in zip(sim.compressors, memory, strict=True):
                np.testing.assert_array_equal(compressor.state_dict()["memory"]["body"]["residual"], own)


@pytest.mark.parametrize("variant", ["allreduce", "gather"])
def test_phases(variant: str) -> None:
    sim = Simulation(lgc(variant=variant, floor=False), 2)
    phases = []
    for step in range(60):
        sim.step(gradients(step))
        phases.append(phase(sim))
    assert phases[:2] == ["dense"] * 2
    switch = sim.compressors[0].stats()["lgc"]["switch"]
    assert 42 < switch < 50
    assert phases[2:switch] == ["train"] * (switch - 2)
    assert phases[switch:] == ["learned"] * (60 - switch)
    reports = [c.stats()["lgc"] for c in sim.compressors]
    assert reports[0]["trainer"]["samples"] == 40
    assert reports[1]["trainer"] is None
    assert reports[0]["parameters"] == Autoencoder(sim.compressors[0].learning.architecture).count()
    assert reports[0]["error"] is not None


def test_the_first_layer_is_dense_and_the_last_is_sparse(recorder: Recorder) -> None:
    sim = Simulation(lgc(floor=False), 2)
    for step in range(60):
        recorder.clear()
        means = sim.step(given := gradients(step))
        np.testing.assert_allclose(means["stem"], np.mean(given["stem"], axis=0), rtol=1e-5, atol=1e-6)
    assert LEAST <= np.count_nonzero(means["head"]) <= 2 * LEAST < means["head"].size
    assert sim.compressors[0].state_dict()["layout"] == [["stem"], ["body"], ["head"]]
    rounds = [(post.name.split(".")[1], post.kind.__name__) for post in recorder.of(0)]
    assert sorted(rounds) == [
        ("bucket0", "AllGather"),
        ("bucket0", "AllReduce"),
        ("bucket1", "AllGather"),
        ("bucket1", "AllReduce"),
        ("bucket1", "Broadcast"),
        ("bucket2", "AllGather"),
    ]


def kinds(names: list[str], **keywords: Any) -> dict[str, str]:
    return lgc(**keywords).prepare(Preparation(dict.fromkeys(names, 5000), 0, 2, True))


def test_which_layers_are_first_and_last() -> None:
    names = ["stem.conv.weight", "stem.norm.weight", "body.0.weight", "body.1.weight", "head.weight"]
    assert list(kinds(names).values()) == ["dense", "learned", "learned", "learned", "topk"]
    assert list(kinds(names, dense=["stem.*"]).values()) == ["dense", "dense", "learned", "learned", "topk"]
    assert list(kinds(names, topk_only=["body.*", "*.weight"]).values()) == ["dense", "topk", "topk", "topk", "topk"]
    assert set(kinds(names, dense=(), topk_only=()).values()) == {"learned"}
    assert set(kinds(names[:2]).values()) == {"learned"}  # fewer than three layers
    found = kinds(["dense/kernel", "dense_1/kernel", "dense_2/kernel"])
    assert list(found.values()) == ["dense", "learned", "topk"]


def test_a_vector_shorter_than_the_receptive_field(caplog: pytest.LogCaptureFixture) -> None:
    sim = Simulation(lgc(0.001, encoder=(4,) * 5, decoder=(4,) * 4, dense_steps=1), 2)
    with caplog.at_level(logging.WARNING):
        for step in range(6):
            means = sim.step(gradients(step))
    assert len(caplog.messages) == 1
    assert "a vector of 4 values is shorter than" in caplog.messages[0]
    assert np.count_nonzero(means["body"]) <= 2 * LEAST
    assert sim.compressors[0].stats()["lgc"]["stays_with_top_k"] == "vectors are too short"


def test_the_floor_is_kept_and_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that have nothing in common, whose gradients are heavy-tailed, and too little training."""
    monkeypatch.setattr(inline, "BATCHES_PER_SAMPLE", 1)
    sim = Simulation(lgc(dense=[], topk_only=[], signs=False, train_steps=70), 2)
    with caplog.at_level(logging.WARNING):
        for step in range(90):
            sim.step({"body": [gradient("heavy_tailed", 4000, step, rank) for rank in range(2)]})
    assert phase(sim) == "topk"
    assert len(caplog.messages) == 1
    assert "stays with top-k" in caplog.messages[0]
    report = sim.compressors[0].stats()["lgc"]
    assert report["stays_with_top_k"] == "the autoencoder is worse than top-k"
    assert report["error"] > report["top_k_error"]


def test_an_autoencoder_that_has_ceased_to_reconstruct(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is lost while that shows, and then it is top-k."""
    model = Autoencoder(Architecture(encoder=(8, 8, 4), decoder=(8, 8)))
    model.out.weight.data.mul_(1000)
    model.out.bias.data.add_(30)
    (path := tmp_path / "w").write_bytes(to_bytes(model))
    sim = Simulation(lgc(weights=path, dense=[], topk_only=[]), 2)
    with caplog.at_level(logging.WARNING):
        for step in range(20):
            means = sim.step(gradients(step, sizes={"body": 4000}))
            assert means["body"].any() == (step >= 9)
    assert phase(sim) == "topk"
    assert len(caplog.messages) == 1
    assert "goes back to top-k" in caplog.messages[0]


class Choosy(Identity):
    """An autoencoder that is of no use to vectors of a length, in a part of the steps."""

    def __init__(self, made: Architecture, length: int, useless: str) -> None:
        super().__init__(made)
        self.length = length
        self.useless = itertools.cycle(useless)
        self.now = "."

    def encode(self, vectors: np.ndarray, workers: int) -> np.ndarray:
        if vectors.shape[1] == self.length:
            self.now = next(self.useless)
        return super().encode(vectors, workers)

    def decode(self, codes: np.ndarray, length: int, innovations: np.ndarray | None = None) -> np.ndarray:
        if length == self.length and self.now == "x":
            return np.full((len(codes), length), 100, np.float32)
        return super().decode(codes, length)


@pytest.mark.parametrize(("useless", "stays"), [("x", True), ("x.", True), ("x...", False), (".", False)])
def test_every_bucket_is_watched(useless: str, stays: bool, caplog: pytest.LogCaptureFixture) -> None:
    """One to which the autoencoder is of no use half of the time goes to top-k, the others go on."""
    sim = Simulation(lgc(dense=[], topk_only=[], dense_steps=0, bucket_mb=0.001), 1)
    for compressor in sim.compressors:
        compressor.learning.codec = Choosy(compressor.learning.architecture, 45, useless)
        compressor.learning.switch = 0
    (compressor,) = sim.compressors
    with caplog.at_level(logging.WARNING):
        for step in range(60):
            sim.step(gradients(step, 1, {"body": 4000, "small": 900}))
    report = compressor.stats()
    assert phase(sim) == "learned"
    assert len(caplog.messages) == stays
    if stays:
        assert "goes back to top-k in bucket" in caplog.messages[0]
        assert "(small)" in caplog.messages[0]
        assert report["lgc"]["stays_with_top_k"].startswith("the autoencoder does not fit bucket")
    else:
        assert report["lgc"]["stays_with_top_k"] is None
    assert (report["total"]["achieved"] < 1) == ("x" in useless)


@pytest.mark.parametrize("variant", ["allreduce", "gather"])
def test_a_worker_keeps_what_its_round_trip_loses(variant: str) -> None:
    """Phase 3: the memory at the common indices is the values less the worker's own round trip; elsewhere all of it."""
    sim = Simulation(lgc(variant=variant, floor=False, dense=[], topk_only=[]), 2)
    for step in range(60):
        sim.step(gradients(step, sizes={"body": 4000}))
    assert phase(sim) == "learned"
    made: list[tuple[np.ndarray, np.ndarray]] = []
    learning = sim.compressors[1].learning
    original = learning.codec.decode

    def decode(codes: np.ndarray, length: int, innovations: np.ndarray | None = None) -> np.ndarray:
        made.append((codes, original(codes, length, innovations)))
        return made[-1][1]

    learning.codec.decode = decode  # type: ignore[method-assign, union-attr]

    def residuals() -> list[np.ndarray]:
        return [compressor.state_dict()["memory"]["body"]["residual"] for compressor in sim.compressors]

    given = gradients(60, sizes={"body": 4000})
    values = [before + gradient for before, gradient in zip(residuals(), given["body"], strict=True)]
    mean = sim.step(given)["body"]
    left = residuals()
    a, after = values[1], left[1]
    (changed,) = np.nonzero(after != a)
    trip = made[0][1][0]
    assert 150 < len(changed) <= 200
    taken = np.abs((a - after)[changed])
    scale = 2.0 ** np.round(np.log2(taken / np.abs(trip[: len(taken)]))) if len(taken) == len(trip) else None
    if scale is not None:
        np.testing.assert_allclose(taken, np.abs(trip) * scale, rtol=1e-3)
    if variant == "gather":  # and the mean is that of the round trips
        np.testing.assert_allclose(mean, np.subtract(values, left).mean(0), rtol=1e-4, atol=1e-5)


def test_signs_that_are_not_used_do_not_travel(recorder: Recorder) -> None:
    """Of 200 values: 25 bytes."""
    sent = {}
    for signs in (True, False):
        recorder.clear()
        sim = Simulation(lgc(dense=[], topk_only=[], dense_steps=0, signs=signs), 2)
        sim.step(gradients(0, sizes={"body": 4000}))
        (sent[signs],) = (post.sent for post in recorder.of(0) if post.kind.__name__ == "Broadcast" and post.sent > 1)
    assert sent[True] - sent[False] == 25


@pytest.mark.parametrize("variant", ["allreduce", "gather"])
def test_bytes_of_phase_3(variant: str) -> None:
    """At least four times fewer than top-k with float32 values, for 2 and for 4 workers."""
    size = 200_000
    phases = {"dense_steps": 0, "train_steps": 1, "floor": False, "dense": (), "topk_only": ()}
    for workers in (2, 4):
        sent = {}
        for name, compression in {
            "topk": hvd_compress.TopK(0.01, min_numel=1),
            "lgc": LGC(0.01, variant, min_numel=1, **phases),
        }.items():
            sim = Simulation(compression, workers)
            for step in range(14):
                sim.step(gradients(step, workers, {"body": size}))
                if step == 9:
                    for compressor in sim.compressors:
                        compressor.stats()
            sent[name] = np.mean([c.stats()["recent"]["sent_bytes"] for c in sim.compressors])
        assert sent["topk"] >= 4 * sent["lgc"], (workers, sent)


def test_state_carries_everything() -> None:
    """Interrupted in every phase: the means and the states go on bit for bit."""
    for interrupted in (1, 20, 43, 44, 45, 50):
        sim = Simulation(lgc(floor=False), 2)
        for step in range(interrupted):
            sim.step(gradients(step))
        states = copy.deepcopy([c.state_dict() for c in sim.compressors])
        again = Simulation(lgc(floor=False), 2)
        for compressor, state in zip(again.compressors, states, strict=True):
            compressor.load_state_dict(state)
        for step in range(interrupted, 55):
            left, right = sim.step(gradients(step)), again.step(gradients(step))
            assert all(left[name].tobytes() == right[name].tobytes() for name in SIZES), (interrupted, step)
        assert phase(again) == "learned"
        assert [c.state_dict()["shared"] for c in sim.compressors] == [
            c.state_dict()["shared"] for c in again.compressors
        ]


def test_state_of_another_autoencoder_or_model() -> None:
    sim = Simulation(lgc(), 2)
    for step in range(3):
        sim.step(gradients(step))
    states = [c.state_dict() for c in sim.compressors]

    def resume(**keywords: Any) -> None:
        again = Simulation(lgc(**keywords), 2)
        for compressor, state in zip(again.compressors, states, strict=True):
            compressor.load_state_dict(state)
        again.step(gradients(3))

    with pytest.raises(ValueError, match=r"another autoencoder: encoder is \(8, 8, 4\), expected \(8, 8, 2\)"):
        resume(encoder=(8, 8, 2))
    other = Simulation(lgc(), 2)
    for compressor, state in zip(other.compressors, states, strict=True):
        compressor.load_state_dict(state)
    with pytest.raises(ValueError, match="parameters this model does not compress: body"):
        other.step(gradients(3, sizes={"stem": 600, "trunk": 4000, "head": 900}))


def test_weights_from_a_file(tmp_path: Path) -> None:
    """Phase 3 from the first step on; what does not fit is refused on every rank."""
    folder = tmp_path / "recorded"
    sim = Simulation(lgc(record=folder, train_steps=10**6, dense_steps=0), 2)
    for step in range(40):
        sim.step(gradients(step))
    assert len(list(samples_of(folder))) == 40
    path = tmp_path / "weights.safetensors"
    widths = {"variant": "allreduce", "encoder": (8, 8, 4), "decoder": (8, 8), "innovation": 0.1}
    lgc_train(folder, path, **widths, batches=60, seed=0)
    started = Simulation(lgc(weights=path), 2)
    started.step(gradients(0))
    assert phase(started) == "learned"
    assert started.compressors[0].to_config()["weights"] == str(path)
    with pytest.raises(ValueError, match=r"rank 0: .*weights\.safetensors is for another autoencoder: encoder is"):
        Simulation(lgc(weights=path, encoder=(8, 8, 2)), 2).step(gradients(0))
    with pytest.raises(ValueError, match="No such file"):
        Simulation(lgc(weights=tmp_path / "none"), 2).step(gradients(0))
    twin = tmp_path / "twin"  # on another machine's own disk, say
    twin.write_bytes(path.read_bytes())
    team = Team([lgc(weights=path), lgc(weights=twin, record=folder)], [("body", 4000)])
    team.step([{0: gradient("laplace", 4000, rank)} for rank in range(2)])
    other = tmp_path / "other"
    other.write_bytes(to_bytes(Autoencoder(Architecture(encoder=(8, 8, 4), decoder=(8, 8)), seed=9)))
    unequal = Simulation(lgc(weights=path), 2)
    unequal.compressors[1].learning.weights = str(other)
    with pytest.raises(ValueError, match="ranks disagree on the compressor"):
        unequal.step(gradients(0))


def test_a_leader_that_is_no_rank() -> None:
    with pytest.raises(ValueError, match="leader must be one of the 2 ranks, 0 to 1, got 2"):
        Simulation(lgc(leader=2), 2).step(gradients(0))


@pytest.mark.parametrize("leader", [0, 2])
def test_any_rank_may_lead(leader: int) -> None:
    sim = Simulation(lgc(leader=leader, floor=False), 3)
    for step in range(55):
        sim.step(gradients(step, 3))
    assert phase(sim) == "learned"
    assert [c.stats()["lgc"]["trainer"] is not None for c in sim.compressors] == [rank == leader for rank in range(3)]


def test_nothing_of_a_skipped_step_is_learned() -> None:
    sim = Simulation(lgc(train_steps=10**6), 2)
    for step in range(13):  # the last one's is fed in the next
        given = gradients(step)
        if step in (4, 7):
            given["body"][1][9] = np.nan
        sim.step(given)
    assert sim.compressors[0].stats()["lgc"]["trainer"]["samples"] == 8


def test_a_trainer_that_dies(caplog: pytest.LogCaptureFixture) -> None:
    sim = Simulation(lgc(trainer="process", train_steps=10**6), 2)
    with caplog.at_level(logging.WARNING):
        for step in range(12):
            means = sim.step(gradients(step))
            if step == 5:
                training = sim.compressors[0].learning.supervisor.training
                os.kill(training.pid, signal.SIGKILL)  # type: ignore[union-attr]
                training._process.wait()  # type: ignore[union-attr]
    assert phase(sim) == "topk"
    assert np.isfinite(means["body"]).all()
    assert len(caplog.messages) == 1
    assert "LGC stays with top-k: the process that trains the autoencoder has ended (status -9)" in caplog.messages[0]


def test_a_trainer_that_is_stopped(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Steps go on without it; when it has been silent for too long after its weights were wanted, it counts as dead."""
    monkeypatch.setattr(process, "LIMIT", math.inf)  # a step that waited for it would never end
    sim = Simulation(lgc(trainer="process", train_steps=20), 2)
    for step in range(40):
        sim.step(gradients(step))
        if step == 5:
            training = sim.compressors[0].learning.supervisor.training
            os.kill(training.pid, signal.SIGSTOP)  # type: ignore[union-attr]
    assert phase(sim) == "train"
    assert not caplog.messages
    monkeypatch.setattr(process, "LIMIT", 0.0)
    for step in range(40, 45):
        means = sim.step(gradients(step))
    assert phase(sim) == "topk"
    assert np.isfinite(means["body"]).all()
    assert "LGC stays with top-k: the process that trains the autoencoder has not answered" in caplog.messages[0]


@pytest.mark.long
def test_a_trainer_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may go on when the others have long been waiting for its weights, and they come."""
    monkeypatch.setattr(process, "LIMIT", math.inf)
    sim = Simulation(lgc(trainer="process", train_steps=200, floor=False), 2)
    for step in range(300):
        sim.step(gradients(step))
        if step == 100:
            training = sim.compressors[0].learning.supervisor.training
            os.kill(training.pid, signal.SIGSTOP)  # type: ignore[union-attr]
    assert phase(sim) == "train"
    os.kill(training.pid, signal.SIGCONT)  # type: ignore[union-attr]
    until = time.monotonic() + 240
    while phase(sim) != "learned" and time.monotonic() < until:
        time.sleep(0.1)
        step += 1
        sim.step(gradients(step))
    assert phase(sim) == "learned"


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"LGC needs torch.*pip install 'hvd-compress\[lgc\]'"):
        LGC()


def test_making_one_starts_nothing() -> None:
    compressor = lgc(trainer="process")
    assert compressor.learning.supervisor.training is None
    assert repr(eval(repr(compressor), {"LGC": LGC})) == repr(compressor)
