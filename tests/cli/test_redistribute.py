"""``hvd-compress redistribute``."""

import json
from pathlib import Path

import numpy as np
import torch

from hvd_compress import Simulation, TopK
from hvd_compress.state_files import read_npz, write_npz
from tests.contract.test_changes import draw


def saved(folder: Path, workers: int) -> list[Path]:
    """The files of a job of so many ranks, as the PyTorch driver's states have tensors."""
    sim = Simulation(TopK(0.05, min_numel=1), workers)
    sim.step(draw(0, workers))
    files = []
    for rank, compressor in enumerate(sim.compressors):
        state = compressor.state_dict()
        for arrays in state["memory"].values():
            arrays.update({key: torch.from_numpy(array) for key, array in arrays.items()})
        files.append(folder / f"old{rank}.pt")
        torch.save(state, files[-1])
    return files


def test_states_of_three_ranks_for_two(command, tmp_path: Path) -> None:
    files = saved(tmp_path, 3)
    ran = command("redistribute", *files, "--workers", 2, "--out", tmp_path / "new" / "{rank}.pt", "--json")
    assert ran.code == 0, ran.err
    paths = json.loads(ran.out)["to"]
    assert paths == [str(tmp_path / "new" / f"{rank}.pt") for rank in range(2)]
    old, new = ([torch.load(path, weights_only=True) for path in group] for group in (files, paths))
    sim = Simulation(TopK(0.05, min_numel=1), 2)
    for compressor, state in zip(sim.compressors, new, strict=True):
        compressor.load_state_dict(state)
    sim.step(draw(1, 2))
    for name in ("embedding", "head"):
        sums = [
            sum(np.asarray(state["memory"][name]["residual"], np.float64) for state in group) for group in (old, new)
        ]
        np.testing.assert_allclose(*sums, rtol=0, atol=1e-5)
    assert "state: " in command("redistribute", *files, "--workers", 4, "--out", tmp_path / "{rank}.pt").out


def test_states_of_tensorflow(command, tmp_path: Path) -> None:
    """Its files are NumPy's; they are read back as they were written, and conserve what is held back."""
    sim = Simulation(TopK(0.05, min_numel=1), 3)
    sim.step(draw(0, 3))
    files = [tmp_path / f"old{rank}.npz" for rank in range(3)]
    for compressor, path in zip(sim.compressors, files, strict=True):
        write_npz(compressor.state_dict(), path)
    ran = command("redistribute", *files, "--workers", 1, "--out", tmp_path / "new{rank}.npz")
    assert ran.code == 0, ran.err
    restored = TopK(0.05, min_numel=1)
    restored.load_state_dict(read_npz(tmp_path / "new0.npz"))
    memory = restored.state_dict()["memory"]
    for name in ("embedding", "head"):
        held = [np.asarray(one.state_dict()["memory"][name]["residual"], np.float64) for one in sim.compressors]
        np.testing.assert_allclose(memory[name]["residual"], sum(held), rtol=0, atol=1e-5)
    mixed = command("redistribute", *files, "--workers", 1, "--out", tmp_path / "new{rank}.pt")
    assert mixed.code == 2
    assert "some end in .npz" in " ".join(mixed.err.split())
    files[1].write_bytes(files[1].read_bytes()[:-50])
    damaged = command("redistribute", *files, "--workers", 1, "--out", tmp_path / "again{rank}.npz")
    assert damaged.code == 2
    assert "old1.npz is not the state of a compressor, or not whole" in " ".join(damaged.err.split())
    assert not list(tmp_path.glob("again*"))


def test_what_cannot_be_redistributed(command, tmp_path: Path) -> None:
    files = saved(tmp_path, 2)
    (tmp_path / "text").write_text("text")
    for arguments, words in (
        (files[:1], "rank 0's of 2"),
        (files[::-1], "rank 1's of 2"),
        ([tmp_path / "text"], "not a file of PyTorch's"),
        ([tmp_path / "missing"], "missing"),
    ):
        ran = command("redistribute", *arguments, "--workers", 1, "--out", tmp_path / "out{rank}")
        assert ran.code == 2
        assert words in " ".join(ran.err.split())
    assert "{rank}" in command("redistribute", *files, "--workers", 1, "--out", tmp_path / "out").err
    assert not list(tmp_path.glob("out*"))


def test_the_states_themselves_are_not_written_over(command, tmp_path: Path) -> None:
    files = saved(tmp_path, 2)
    before = [path.read_bytes() for path in files]
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        ran = command("redistribute", *files, "--workers", 3, "--out", folder / "old{rank}.pt")
        assert ran.code == 2
        assert "--out would write over" in ran.err
        assert "old1.pt" in ran.err.replace("\n", "")
    assert [path.read_bytes() for path in files] == before
    assert not (tmp_path / "old2.pt").exists()
