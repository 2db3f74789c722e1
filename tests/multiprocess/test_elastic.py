"""Real elastic jobs: workers are added, removed and killed, and training goes on with all that the others held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.multiprocess.uncompressed import losses
from tests.ranks.launching import start_command

pytestmark = pytest.mark.multiprocess

HOSTS = ("localhost", "127.0.0.1", "127.1", "127.0.1")
"""Names of this machine that Horovod takes for hosts. One on which a worker has died is not used again."""
TIMEOUT = 500
GLOO_TIMEOUT = {True: "60", False: "240"}
"""Seconds in which Horovod gives up, with and without workers that are killed. Some deaths it notices only then; but
it waits no longer for a worker that joins either, which imports its framework first, beside the others."""

SOAK_STEPS = int(os.environ.get("HVD_COMPRESS_SOAK_STEPS", "20000"))
SOAK_CHANGES = int(os.environ.get("HVD_COMPRESS_SOAK_CHANGES", "40"))
"""Steps of a job whose workers change again and again, and how often they do; fewer to try it out."""
CLOSE = {"dense": 1e-4, "qsgd-maxnorm": 0.05}
"""By how much, relatively, each loss may be another one than without compression."""
AVERAGED = 4
"""Steps at the beginning and in the end whose losses are averaged."""
GROWTH = 8 << 20
"""Bytes by which a worker may grow: what the allocators keep varies."""


def hosts(*numbers: int) -> str:
    return "".join(f"{HOSTS[number]}:1\n" for number in numbers)


def run(
    framework: str, folder: Path, configuration: dict[str, Any], plan: dict[str, Any], program: str = "elastic_job"
) -> list[list[Any]]:
    """Run a job that begins with two workers; return what each wrote down: step, size, rank, loss, phase."""
    killed = any(what[0].startswith("kill") for what in plan.values() if isinstance(what, list))
    launch(folder, f"{framework}.{program}", json.dumps(configuration), json.dumps(plan), gloo=GLOO_TIMEOUT[killed])
    noted = [[json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.steps")]
    last = [lines[-1] for lines in noted if lines[-1][0] == plan["steps"]]
    assert last, f"nobody came to the end\n{_tail(folder)}"
    assert sorted(line[2] for line in last) == list(range(last[0][1])), _tail(folder)
    return [line for lines in noted for line in lines]


def launch(folder: Path, program: str, *arguments: str, gloo: str, timeout: float = TIMEOUT) -> None:
    """Run a program of ``tests.ranks`` in an elastic job of two workers, which ends well."""
    pytest.importorskip(f"horovod.{program.partition('.')[0]}")
    (folder / "hosts").write_text(hosts(0, 1))
    script = folder / "discover"
    script.write_text(f"#!/bin/sh\ncat {folder}/hosts\n")
    script.chmod(0o755)
    launcher = ["horovodrun", "--gloo", "-np", "2", "--min-np", "1", "--max-np", "3", "--network-interface", "lo"]
    launcher += ["--host-discovery-script", str(script), "--elastic-timeout", "200"]
    command = [*launcher, sys.executable, "-m", f"tests.ranks.{program}", str(folder), *arguments]
    with (folder / "output").open("w") as output:
        process = start_command(command, output=output, HOROVOD_GLOO_TIMEOUT_SECONDS=gloo)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the job hung\n{_tail(folder)}") from None
        finally:
            process.terminate()  # which ends the workers, too
            process.wait()
    assert process.returncode == 0, _tail(folder)


def _tail(folder: Path) -> str:
    return (folder / "output").read_text(errors="replace")[-8000:]


def sizes(noted: list[list[Any]]) -> list[int]:
    """Return the numbers of workers, as they changed."""
    by_step = [size for step in sorted({line[0] for line in noted}) for size in {n[1] for n in noted if n[0] == step}]
    return [size for place, size in enumerate(by_step) if not place or by_step[place - 1] != size]


def check_losses(noted: list[list[Any]], folder: Path, name: str) -> None:
    """Raise unless losses are those of the same training uncompressed: by nearly as much lower in the last steps than
    in the first, though most compressors send 1 element in 20; and with some compressors each for itself."""
    workers = {step - 1: size for step, size, *_ in noted}
    with np.load(folder / "weights.npz") as weights:
        expected = losses([weights[number] for number in weights.files], workers)
    found = {(step - 1, rank): loss for step, _, rank, loss, _ in noted}
    assert found.keys() == expected.keys()
    if name in CLOSE:
        np.testing.assert_allclose(list(found.values()), [expected[at] for at in found], rtol=CLOSE[name])
    first, last = range(AVERAGED), range(len(workers) - AVERAGED, len(workers))
    less = [mean_loss(each, first) - mean_loss(each, last) for each in (found, expected)]
    assert less[0] > 0.7 * less[1] > 0.4, less


def mean_loss(each: dict[tuple[int, int], float], steps: range) -> float:
    return float(np.mean([loss for (step, _), loss in each.items() if step in steps]))


SOME_GO_ON: dict[str, dict[str, Any]] = {
    "add and remove": {"steps": 16, "5": ["hosts", hosts(0, 1, 2)], "10": ["hosts", hosts(1, 2)]},
    "2, 3, 1, 2": {
        "steps": 32,
        "6": ["hosts", hosts(0, 1, 2)],
        "12": ["hosts", hosts(1)],
        "18": ["hosts", hosts(1, 3)],
    },
    "kill between steps": {"steps": 24, "6": ["hosts", hosts(0, 1, 2)], "12": ["kill", 1]},
    "kill rank 0": {"steps": 24, "6": ["hosts", hosts(0, 1, 2)], "12": ["kill", 0]},
    "kill in the backward pass": {"steps": 24, "6": ["hosts", hosts(0, 1, 2)], "12": ["kill in backward", 1]},
    "kill rank 0 in the backward pass": {"steps": 24, "6": ["hosts", hosts(0, 1, 2)], "12": ["kill in backward", 0]},
}
SIZES = {
    "add and remove": [2, 3, 2],
    "2, 3, 1, 2": [2, 3, 1, 2],
    **{plan: [2, 3, 2] for plan in SOME_GO_ON if plan.startswith("kill")},
}

LGC: dict[str, Any] = {
    "name": "lgc",
    "ratio": 0.05,
    "encoder": [8, 8, 4],
    "decoder": [8, 8],
    "dense_steps": 2,
    "train_steps": 6,
    "trainer": "inline",
    "floor": False,
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "dense": {"name": "dense"},
    "sidco": {"name": "sidco", "ratio": 0.05},
    "qsgd-maxnorm": {"name": "qsgd-maxnorm"},
    "fft": {"name": "fft"},
    "lgc": LGC,
    "dgc": {"name": "dgc", "ratio": 0.05, "momentum": 0.3},
}


def cases() -> Any:
    """Yield a job for each plan under PyTorch, each compressor, and what there is under TensorFlow: it has no hook in
    which to be killed in the backward pass."""
    for framework in ("torch", "tensorflow"):
        for plan in SOME_GO_ON:
            for name in CONFIGURATIONS:
                if framework == "torch" or "backward" not in plan:
                    every_time = (framework, plan, name) == ("torch", "add and remove", "sidco")
                    marks = () if every_time else pytest.mark.long
                    yield pytest.param(framework, plan, name, id=f"{framework}-{plan}-{name}", marks=marks)


@pytest.mark.parametrize(("framework", "plan", "name"), list(cases()))
def test_a_job_goes_on(framework: str, plan: str, name: str, tmp_path: Path) -> None:
    """After every step the replicas are equal; Dense's means are those of plain Horovod, QSGDMaxNorm's too but for less
    than a level, and with the others as much goes as has come, all memories together; workers that leave hand over what
    they hold; and losses are like those of uncompressed training."""
    noted = run(framework, tmp_path, CONFIGURATIONS[name], SOME_GO_ON[plan])
    assert sizes(noted) == SIZES[plan]
    check_losses(noted, tmp_path, name)


@pytest.mark.long
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_compressor_that_is_not_in_the_state(framework: str, tmp_path: Path) -> None:
    """It keeps the memory of now, and is in step with the others all the same; what is lost is said once."""
    plan = {**SOME_GO_ON["kill rank 0"], "in_state": False}
    noted = run(framework, tmp_path, CONFIGURATIONS["sidco"], plan)
    assert sizes(noted) == [2, 3, 2]
    assert (tmp_path / "output").read_text(errors="replace").count("1 of 3 workers are gone, and what they held") == 1
    check_losses(noted, tmp_path, "sidco")


@pytest.mark.long
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_lgc_s_leader_is_killed_while_it_trains(framework: str, tmp_path: Path) -> None:
    """Rank 0 dies after 12 steps, in phase 2; the one that takes its place trains anew, with all the steps of it."""
    configuration = {**LGC, "train_steps": 20}
    noted = run(framework, tmp_path, configuration, {**SOME_GO_ON["kill rank 0"], "steps": 44})
    assert sizes(noted) == [2, 3, 2]
    phases = {step: {line[4] for line in noted if line[0] == step} for step in range(1, 45)}
    assert all(phases[step] == {"train"} for step in range(4, 12 + configuration["train_steps"]))
    assert {"learned"} in phases.values()
    check_losses(noted, tmp_path, "lgc")


@pytest.mark.long
@pytest.mark.parametrize("name", ["dense", "sidco", "qsgd-maxnorm"])
def test_keras_own_optimizer(name: str, tmp_path: Path) -> None:
    """The means are what the weights move by."""
    plan = {**SOME_GO_ON["kill rank 0"], "keras": True}
    noted = run("tensorflow", tmp_path, CONFIGURATIONS[name], plan)
    assert sizes(noted) == [2, 3, 2]
    check_losses(noted, tmp_path, name)


@pytest.mark.long
@pytest.mark.parametrize("name", ["dense", "sidco", "qsgd-maxnorm"])
@pytest.mark.parametrize("plan", ["add and remove", "kill rank 0"])
def test_keras_fit(plan: str, name: str, tmp_path: Path) -> None:
    """``model.fit`` with Horovod's elastic callbacks, which end it and begin it anew in the middle of an epoch."""
    noted = run("tensorflow", tmp_path, CONFIGURATIONS[name], SOME_GO_ON[plan], "elastic_fit")
    assert sizes(noted) == SIZES[plan]
    check_losses(noted, tmp_path, name)


def grown(folder: Path, configuration: dict[str, Any] | None) -> dict[str, int]:
    """Return what a worker that is there all the time holds more in the end than after a quarter of the changes."""
    for number in (2, 3):
        (folder / f"hosts.{number}").write_text(hosts(*range(number)))
    arguments = json.dumps(configuration), str(SOAK_STEPS), str(SOAK_CHANGES)
    launch(folder, "torch.elastic_soak", *arguments, gloo=GLOO_TIMEOUT[False], timeout=7200)
    lives = [[json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.used")]
    life = max(lives, key=len)
    assert len(life) == SOAK_CHANGES - 1, _tail(folder)
    before, after = life[len(life) // 4], life[-1 - (len(life) - 1 - len(life) // 4) % 2]  # among as many workers
    return {what: after[what] - before[what] for what in ("memory", "threads", "descriptors")}


@pytest.fixture(scope="module")
def uncompressed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What plain Horovod itself leaves behind."""
    return grown(tmp_path_factory.mktemp("uncompressed"), None)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ["sidco", "qsgd-maxnorm", "lgc"])
def test_nothing_grows_through_many_changes(name: str, uncompressed: dict[str, int], tmp_path: Path) -> None:
    mine = grown(tmp_path, CONFIGURATIONS[name])
    print(f"{name}: {mine}, uncompressed {uncompressed}")
    assert mine["threads"] <= uncompressed["threads"], (mine, uncompressed)
    assert mine["descriptors"] <= uncompressed["descriptors"], (mine, uncompressed)
    assert mine["memory"] < uncompressed["memory"] + GROWTH, (mine, uncompressed)
