"""The autoencoder, its weights, and its trainer."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save

from hvd_compress.lgc.architecture import DECODER, ENCODER, Architecture, architecture
from hvd_compress.lgc.autoencoder import Autoencoder, Codec, from_bytes, innovations_of, read, to_bytes
from hvd_compress.lgc.neighbours import neighbour_means
from hvd_compress.lgc.offline import samples_of, train_offline
from hvd_compress.lgc.trainer import ENOUGH, EVERY, REPLAY, Trainer, _reconstruct

SMALL = Architecture(encoder=(8, 8, 4), decoder=(8, 8))
PAPER = Architecture()


def samples(count: int, length: int = 96, workers: int = 2, noise: float = 0.2, seed: int = 0) -> list[np.ndarray]:
    """Smooth vectors that the workers have in common, and noise of each one's own."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        common = 1 + 0.5 * np.sin(np.arange(length) / 9 + rng.uniform(0, 6))
        made.append((common + noise * rng.standard_normal((workers, length))).astype(np.float32))
    return made


def test_the_paper_s_widths() -> None:
    """1→64→128→256→64→4 and 4→32→64→128→32→1: counted by hand."""
    encoder = [(1, 64, 3), (64, 128, 3), (128, 256, 3), (256, 64, 3), (64, 4, 1)]
    decoder = [(4, 32, 3), (32, 64, 3), (64, 128, 3), (128, 32, 3), (32, 1, 1)]
    expected = sum(a * b * kernel + b for a, b, kernel in encoder + decoder)
    assert Autoencoder(PAPER).count() == expected == 216_677
    assert Autoencoder(Architecture("gather", innovation=0.1)).count() == expected + 1  # 33 → 1
    assert (PAPER.stride, PAPER.receptive_field) == (16, 31)


@pytest.mark.parametrize("made", [PAPER, SMALL, Architecture("gather", (3, 2), (5,), 0.1)], ids=str)
def test_counts_of_weights_and_of_their_bytes(made: Architecture) -> None:
    model = Autoencoder(made)
    assert made.parameters == model.count()
    assert 4 * made.parameters < len(to_bytes(model)) < made.most_nbytes


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 100, 343, 1000])
@pytest.mark.parametrize("made", [PAPER, SMALL, Architecture("gather", innovation=0.1)], ids=lambda a: a.variant)
def test_any_length_comes_back(length: int, made: Architecture) -> None:
    codec = Codec(Autoencoder(made))
    vectors = np.random.default_rng(0).standard_normal((3, length)).astype(np.float32)
    codes = codec.encode(vectors, 2)
    assert codes.shape == (3, made.numbers(length))
    assert codes.dtype == np.float16
    extra = np.zeros_like(vectors) if made.variant == "gather" else None
    decoded = codec.decode(codes, length, extra)
    assert decoded.shape == vectors.shape
    assert np.isfinite(decoded).all()


def test_receptive_field() -> None:
    """A place of a code depends on so many entries and no others."""
    model = Autoencoder(PAPER, seed=1)
    vector = torch.zeros(1, 320, requires_grad=True)
    model.encode(vector)[0, :, 10].sum().backward()
    touched = torch.nonzero(vector.grad[0]).flatten()
    assert touched[-1] - touched[0] + 1 == PAPER.receptive_field


def test_codes_can_be_summed() -> None:
    model = Autoencoder(SMALL)
    with torch.no_grad():
        model.code.weight.mul_(1e7)
    codes = Codec(model).encode(np.ones((4, 64), np.float32), 4)
    assert np.isfinite(codes.sum(0, dtype=np.float16)).all()


def test_weights_in_files(tmp_path: Path) -> None:
    model = Autoencoder(SMALL, seed=3)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(to_bytes(model))
    again = read(path, SMALL)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    with pytest.raises(ValueError, match=r"another autoencoder: encoder is \(8, 8, 4\), expected .*64"):
        read(path, PAPER)
    with pytest.raises(ValueError, match="variant is allreduce, expected gather"):
        read(path, Architecture("gather", (8, 8, 4), (8, 8)))


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    good = to_bytes(Autoencoder(SMALL))
    (length,) = struct.unpack("<Q", good[:8])
    about = json.loads(good[8 : 8 + length])
    newer = json.dumps({**about, "__metadata__": {"lgc": json.dumps({"format": 9, "architecture": {}})}}).encode()
    bad = Autoencoder(SMALL)
    with torch.no_grad():
        bad.code.bias[0] = np.nan
    for content, words in (
        (b"", "no weights"),
        (b"hello, this is no such file", "no weights"),
        (good[:-40], "damaged"),
        (len(newer).to_bytes(8, "little") + newer + good[8 + length :], "format version 9"),
        (to_bytes(bad), "not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            from_bytes(content, SMALL, "the file")


def hostile() -> Iterator[tuple[str, bytes]]:
    """Yield files that begin like safetensors."""

    def file(header: bytes, body: bytes = b"") -> bytes:
        return len(header).to_bytes(8, "little") + header + body

    def described(architecture: Any, version: Any = 1, about: Any = None, **tensors: Any) -> bytes:
        about = {"format": version, "architecture": architecture} if about is None else about
        return file(json.dumps({"__metadata__": {"lgc": json.dumps(about)}, **tensors}).encode())

    good, model = SMALL.to_config(), Autoencoder(SMALL)
    yield "20,000 lists", file(b"[" * 20_000)
    yield "20,000 lists in the metadata", file(json.dumps({"__metadata__": {"lgc": "[" * 20_000}}).encode())
    yield "20,000 lists as architecture", described(0, about="x").replace(b"x", b"[" * 20_000)
    for value in (None, 3, "x", [], [1], True):
        yield f"header {value!r}", file(json.dumps(value).encode())
        yield f"metadata {value!r}", file(json.dumps({"__metadata__": value}).encode())
        yield f"about {value!r}", described(0, about=value)
        yield f"architecture {value!r}", described(value)
        yield f"widths {value!r}", described({**good, "encoder": value})
        yield f"tensor {value!r}", described(good, x=value)
    for version in (None, "1", 1.0, True, [1], 2):
        yield f"version {version!r}", described(good, version)
    yield "a width beyond memory", described({**good, "encoder": [10**15, 4]})
    yield "no tensors", described(good)
    yield "header beyond its end", (2**63).to_bytes(8, "little") + b"{}"
    yield "offsets beyond the end", described(good, x={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]})
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    about = {"lgc": json.dumps({"format": 1, "architecture": good})}
    for dtype in (torch.int32, torch.int64, torch.bool, torch.uint8, torch.float16, torch.bfloat16, torch.float64):
        yield f"{dtype} weights", save({name: tensor.to(dtype) for name, tensor in tensors.items()}, about)
    yield "a weight more", save({**tensors, "more": torch.zeros(1)}, about)
    yield "a weight less", save({n: t for n, t in tensors.items() if n != "out.bias"}, about)
    yield "a weight of another shape", save({**tensors, "out.bias": torch.zeros(2)}, about)


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in hostile()])
def test_hostile_files(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"7\.safetensors"):
        from_bytes(content, SMALL, "7.safetensors")


def test_hostile_states_of_the_trainer() -> None:
    trainer = Trainer(SMALL)
    for vectors in samples(20):
        trainer.add(vectors, 30)
    trainer.train(2)
    good = trainer.state()
    length = int.from_bytes(good[:8], "little")
    about = json.loads(json.loads(good[8 : 8 + length])["__metadata__"]["about"])
    tensors = read_tensors(good)
    changes: list[tuple[dict[str, Any], dict[str, torch.Tensor]]] = [
        *(({key: value}, {}) for key in about for value in (None, "x", [-1, 0, 0, 0], {}, 10**9)),
        *(({}, {key: tensor.to(torch.float64)}) for key, tensor in tensors.items() if tensor.dtype == torch.float32),
        *(({}, {key: torch.full_like(tensors[key], torch.nan)}) for key in ("model.out.bias", "adam.0.exp_avg")),
        ({}, {"replay.0": torch.zeros(3)}),
        ({}, {"best": tensors["best"][:-9]}),
        *(({}, {f"adam.{key}": torch.zeros(1)}) for key in ("x.step", "0.step", "0.exp_avg", "99.exp_avg", "0.y")),
    ]
    for described, changed in changes:
        if described in ({"best": None}, {"best": 10**9}):
            continue  # which may be
        content = save({**tensors, **changed}, {"about": json.dumps({**about, **described})})
        with pytest.raises(ValueError, match=r"."):
            Trainer(SMALL).load_state(content)


@pytest.mark.parametrize("variant", ["allreduce", "gather"])
def test_it_learns_what_workers_have_in_common(variant: str) -> None:
    trainer = Trainer(architecture(variant, (8, 8, 4), (8, 8), 0.1), seed=1, rate=5e-3)
    given = samples(120)
    for vectors in given:
        assert trainer.add(vectors, entries=30)
    untrained, top_k = trainer.validate()
    trainer.train(300)
    outcome = trainer.finish()
    assert outcome.error < 0.1 * untrained
    assert outcome.error < top_k
    assert not outcome.problem
    assert outcome.batches == 300
    error = float(Codec(from_bytes(outcome.weights, trainer.architecture)).parameters)
    assert error > 0


def test_the_floor() -> None:
    """Noise that workers do not share cannot be encoded, and the outcome says so, with both errors."""
    trainer = Trainer(SMALL)
    rng = np.random.default_rng(0)
    for _ in range(80):
        trainer.add(rng.standard_t(2, (2, 64)).astype(np.float32), entries=40)
    trainer.train(40)
    outcome = trainer.finish()
    assert outcome.error > outcome.top_k
    assert f"{outcome.error:.3f}" in outcome.problem
    assert f"{outcome.top_k:.3f}" in outcome.problem


@pytest.mark.parametrize("length", [64, 3000])
def test_top_k_s_error_is_that_of_what_is_dropped(length: int) -> None:
    trainer = Trainer(SMALL)
    given = samples(EVERY * ENOUGH, length=length)
    for vectors in given:
        trainer.add(vectors, entries=10)
    dropped = total = 0.0
    for vectors in given[EVERY - 1 :: EVERY]:
        mean = np.sort(np.abs(vectors.mean(0)))[::-1]
        dropped += float(np.square(mean[10:]).sum())
        total += float(np.square(mean).sum())
    assert trainer.validate()[1] == pytest.approx(dropped / total, rel=1e-3)


def test_what_is_not_finite_is_not_learned() -> None:
    trainer = Trainer(SMALL)
    for bad in (np.nan, np.inf, -np.inf):
        vectors = samples(1)[0]
        vectors[1, 5] = bad
        assert not trainer.add(vectors, 5)
    assert not trainer.add(np.zeros((2, 64), np.float32), 5)
    assert (trainer.samples, trainer.refused, trainer.ready) == (0, 4, False)
    trainer.train(5)
    assert trainer.batches == 0
    assert "only 0 vectors" in trainer.finish().problem


def test_the_buffer_is_bounded_and_a_part_is_held_out() -> None:
    trainer = Trainer(SMALL)
    for vectors in samples(2 * REPLAY, length=32):
        trainer.add(vectors, 4)
    assert len(trainer._replay) == REPLAY
    assert len(trainer._held) == 2 * REPLAY // EVERY
    assert not {id(held.vectors) for held in trainer._held} & {id(vectors) for vectors in trainer._replay}


def test_the_buffer_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hvd_compress.lgc.trainer.REPLAY_BYTES", 10_000)
    trainer = Trainer(SMALL)
    given = samples(EVERY - 1, length=400)  # 3,200 bytes each
    for vectors in given:
        trainer.add(vectors, 4)
    assert len(trainer._replay) == 3
    np.testing.assert_array_equal(trainer._replay[-1].numpy(), given[-1])


def test_it_stops_when_nothing_improves() -> None:
    trainer = Trainer(SMALL, rate=1e-12)
    for vectors in samples(60):
        trainer.add(vectors, 30)
    while not trainer.stalled and trainer.batches < 1000:
        trainer.train(20)
    assert trainer.stalled
    assert trainer.batches < 500


@pytest.mark.parametrize("interrupted", [0, 7, 45])
def test_state_of_the_trainer(interrupted: int) -> None:
    """Saved and restored, it makes the same weights, bit for bit."""
    given = samples(70)
    whole, first = Trainer(SMALL, seed=2), Trainer(SMALL, seed=2)
    for number, vectors in enumerate(given):
        if number == interrupted:
            state = first.state()
            first = Trainer(SMALL, seed=2)
            first.load_state(state)
        for trainer in (whole, first):
            trainer.add(vectors, 30)
            trainer.train(1)
    assert whole.finish() == first.finish()
    with pytest.raises(ValueError, match="another autoencoder"):
        Trainer(PAPER).load_state(first.state())


def test_long_vectors_are_trained_in_windows() -> None:
    trainer = Trainer(SMALL)
    for vectors in samples(40, length=10_000):
        trainer.add(vectors, 3000)
    assert trainer._batch().shape == (4, 2, 1024)
    assert {held.vectors.shape for held in trainer._held} == {(2, 1024)}
    trainer.train(1)
    assert trainer.batches == 1


def test_a_window_of_the_held_out_vectors_tells_what_all_of_them_would() -> None:
    trainer = Trainer(SMALL, rate=5e-3)
    given = samples(160, length=5000)
    for vectors in given:
        trainer.add(vectors, 1500)
    trainer.train(100)
    wrong = total = 0.0
    for vectors in given[EVERY - 1 :: EVERY]:
        made = _reconstruct(trainer.model, torch.from_numpy(vectors)).detach().numpy()
        wrong += float(np.square(made - vectors.mean(0)).sum())
        total += float(np.square(vectors.mean(0)).sum())
    assert trainer.validate()[0] == pytest.approx(wrong / total, rel=0.1)


def test_innovations() -> None:
    vectors = torch.tensor([[1.0, -5, 2, 0.5], [0, 0.1, -0.2, 3]])
    np.testing.assert_array_equal(innovations_of(vectors, 2), np.float32([[0, -5, 2, 0], [0, 0, np.float16(-0.2), 3]]))


def test_offline(tmp_path: Path) -> None:
    for number, vectors in enumerate(samples(60)):
        np.savez(tmp_path / f"{number:03d}.npz", vectors=vectors, entries=30)
    assert len(list(samples_of(tmp_path))) == 60
    outcome = train_offline(tmp_path, SMALL, 100, rate=5e-3)
    assert outcome.batches == 100
    assert outcome.samples == 60
    with pytest.raises(FileNotFoundError, match="no recorded vectors"):
        list(samples_of(tmp_path / "other"))
    np.savez(tmp_path / "zzz.npz", something=np.zeros(3))
    with pytest.raises(ValueError, match=r"zzz\.npz is not a sample"):
        list(samples_of(tmp_path))


@pytest.mark.parametrize(
    ("encoder", "decoder", "group"),
    [(ENCODER, DECODER, 4), ((4, 4, 2), (4, 4), 2), ((2, 1), (2,), 2), ((2, 2, 4, 8, 4), (4, 2, 2, 2), 4)],
)
@pytest.mark.parametrize("length", [1, 7, 64, 339])
def test_means_of_neighbours(encoder: tuple[int, ...], decoder: tuple[int, ...], group: int, length: int) -> None:
    """Weights of the network, by which it does nothing else; what is behind the end counts as zeros."""
    model = neighbour_means(Architecture("allreduce", encoder, decoder))
    assert model is not None
    vectors = np.random.default_rng(0).standard_normal((3, length)).astype(np.float32)
    padded = np.zeros((3, -(-length // group) * group), np.float32)
    padded[:, :length] = vectors
    expected = np.repeat(padded.reshape(3, -1, group).mean(2), group, axis=1)[:, :length]
    decoded = model.decode(model.encode(torch.from_numpy(vectors)), length).detach().numpy()
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "made",
    [
        Architecture("gather", innovation=0.1),
        Architecture("allreduce", (1, 1), (1,)),
        Architecture("allreduce", (4, 4, 3), (4, 4)),
        Architecture("allreduce", (4, 4, 2), (1, 4)),
        Architecture("allreduce", (8, 8, 4), (8, 8)),
    ],
    ids=str,
)
def test_networks_that_cannot_pass_on_means(made: Architecture) -> None:
    assert neighbour_means(made) is None


def test_means_of_neighbours_are_sent_where_they_are_as_good() -> None:
    """Values that are alike in pairs need no training, and the outcome's weights are none that were trained."""
    trainer = Trainer(Architecture("allreduce", (4, 4, 2), (4, 4)))
    rng = np.random.default_rng(0)
    for _ in range(40):
        assert trainer.add(np.repeat(rng.standard_normal((2, 48)), 2, axis=1).astype(np.float32), entries=10)
    trainer.train(20)
    outcome = trainer.finish()
    assert outcome.error == outcome.neighbours < 1e-5
    assert not outcome.problem
    codec = Codec(from_bytes(outcome.weights, trainer.architecture))
    pairs = np.array([[1, 3, -2, 2, 0, 8]], np.float32)
    np.testing.assert_allclose(codec.decode(codec.encode(pairs, 1), 6), [[2, 2, 0, 0, 4, 4]], atol=1e-5)


def test_an_autoencoder_that_is_better_than_means() -> None:
    trainer = Trainer(Architecture("allreduce", (4, 4, 2), (4, 4)), rate=1e-2)
    rng = np.random.default_rng(0)
    for _ in range(40):
        values = np.tile([1.0, -1.0], 48) * np.exp(0.1 * rng.standard_normal((2, 1)))
        assert trainer.add(values.astype(np.float32), entries=10)
    trainer.train(150)
    outcome = trainer.finish()
    assert outcome.error < 0.5
    assert outcome.neighbours == pytest.approx(1)
    assert outcome.weights == trainer._best_weights
