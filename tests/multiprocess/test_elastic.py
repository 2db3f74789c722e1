"""Real elastic jobs: workers are added, removed and killed, and training goes on with all that the others held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
GROWTH = 8 << 20
"""Bytes by which a worker may grow: what the allocators keep varies."""


def hosts(*numbers: int) -> str:
    return "".join(f"{HOSTS[number]}:1\n" for number in numbers)


def run(framework: str, folder: Path, configuration: dict[str, Any], plan: dict[str, Any]) -> list[list[Any]]:
    """Run a job that begins with two workers; return what each wrote down: step, size, rank, loss."""
    killed = any(what[0].startswith("kill") for what in plan.values() if isinstance(what, list))
    launch(folder, f"{framework}.elastic_job", json.dumps(configuration), json.dumps(plan), gloo=GLOO_TIMEOUT[killed])
    noted = [[json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.steps")]
    last = [lines[-1] for lines in noted if lines[-1][0] == plan["steps"]]
    assert last, f"nobody came to the end\n{_tail(folder)}"
    assert sorted(rank for _, _, rank, _ in last) == list(range(last[0][1])), _tail(folder)
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


def learned(noted: list[list[Any]], steps: int) -> bool:
    """Whether the loss is lower after so many steps than at the beginning."""
    first, last = ([n[3] for n in noted if step[0] <= n[0] <= step[1]] for step in ((1, 4), (steps - 3, steps)))
    return sum(last) / len(last) < 0.85 * sum(first) / len(first)


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
    """After every step the replicas are equal; Dense's means are those of plain Horovod, and with the others as much
    goes as has come, all memories together; workers that leave hand over what they hold; and the network learns."""
    noted = run(framework, tmp_path, CONFIGURATIONS[name], SOME_GO_ON[plan])
    assert sizes(noted) == SIZES[plan]
    # LGC's autoencoder, which has seen six steps, is of little use: what is learned before that is
    assert learned(noted, 12 if name == "lgc" else SOME_GO_ON[plan]["steps"])


@pytest.mark.long
@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_a_compressor_that_is_not_in_the_state(framework: str, tmp_path: Path) -> None:
    """It keeps the memory of now, and is in step with the others all the same."""
    plan = {**SOME_GO_ON["kill rank 0"], "in_state": False}
    noted = run(framework, tmp_path, CONFIGURATIONS["sidco"], plan)
    assert sizes(noted) == [2, 3, 2]
    assert learned(noted, plan["steps"])


@pytest.mark.long
def test_keras_own_optimizer(tmp_path: Path) -> None:
    plan = {**SOME_GO_ON["kill rank 0"], "keras": True}
    noted = run("tensorflow", tmp_path, CONFIGURATIONS["sidco"], plan)
    assert sizes(noted) == [2, 3, 2]
    assert learned(noted, plan["steps"])


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
