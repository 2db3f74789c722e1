import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvd_compress.cli import examination, probe, processes, two_ranks
from hvd_compress.cli.finding import BROKEN, NOTE, OK, Finding, last_words

HOROVOD = {"mpi": True, "gloo": True, "nccl": False, "cuda": False}
WELL: dict[str, dict[str, Any]] = {
    "kernels": {"name": "host", "isa": "avx2", "available": ["avx2", "portable"], "works": True},
    "torch": {"version": "2.13.0", "gpus": [], "horovod": HOROVOD},
    "tensorflow": {
        "version": "2.18.1",
        "gpus": [],
        "keras": {"package": "tf_keras", "version": "2.18.0"},
        "horovod": HOROVOD,
    },
    "mpi4py": {"version": "4.1.2", "library": "Open MPI v4.1.8, package: ..."},
}
ABSENT = {probe.MISSING: "torch", probe.ERROR: "No module named 'torch'"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Finding]]:
    """Examine a machine on which the probes find what is given; programs are ``(status, output)`` by name."""

    def examine(
        programs: dict[str, tuple[int | None, str]] | None = None, horovod: str | None = "0.28.1", **changed: Any
    ) -> dict[str, Finding]:
        found = {**WELL, **changed}
        outputs = {"mpirun": (0, "mpirun (Open MPI) 4.1.8"), **(programs or {})}
        monkeypatch.setattr(examination, "probe", lambda name, limit: found[name])
        monkeypatch.setattr(processes, "program", lambda name: f"/bin/{name}" if name in outputs else None)
        monkeypatch.setattr(examination.shutil, "which", lambda name: f"/bin/{name}" if name in outputs else None)
        monkeypatch.setattr(processes, "run", lambda command, limit: outputs[Path(command[0]).name])
        monkeypatch.setattr(examination, "version", lambda package: horovod if package == "horovod" else "1.0")
        return {finding.name: finding for finding in examination.examine(exchange=False)}

    return examine


def test_all_is_well(machine) -> None:
    found = machine()
    assert {finding.status for finding in found.values()} == {OK}
    assert not any(finding.advice for finding in found.values())
    assert found["kernels"].detail == "C++ with avx2; available: avx2, portable"
    assert found["Horovod for PyTorch"].detail == "built with MPI, Gloo"


@pytest.mark.parametrize(
    ("changed", "name", "status", "detail", "advice"),
    [
        ({"torch": ABSENT}, "PyTorch", NOTE, "not installed", "pip install 'hvd-compress[torch]'"),
        (
            {"torch": {probe.ERROR: "OSError: libtorch.so"}},
            "PyTorch",
            BROKEN,
            "cannot be imported: OSError: libtorch.so",
            "import torch",
        ),
        (
            {"torch": ABSENT, "tensorflow": {probe.MISSING: "tensorflow", probe.ERROR: "No module"}},
            "framework",
            BROKEN,
            "neither PyTorch nor TensorFlow",
            "pip install",
        ),
        ({"horovod": None}, "Horovod", BROKEN, "not installed", "hvd-compress build-horovod"),
        (
            {"torch": {**WELL["torch"], "horovod": {probe.ERROR: "ImportError: Extension has not been built"}}},
            "Horovod for PyTorch",
            NOTE,
            "not built",
            "for all that is installed: hvd-compress build-horovod",
        ),
        (
            {"torch": {**WELL["torch"], "horovod": {probe.ERROR: "ImportError: undefined symbol: _ZN"}}},
            "Horovod for PyTorch",
            BROKEN,
            "undefined symbol",
            "build Horovod again",
        ),
        (
            {"torch": {**WELL["torch"], "horovod": dict.fromkeys(HOROVOD, False)}},
            "Horovod for PyTorch",
            BROKEN,
            "neither MPI nor Gloo",
            "for all that is installed: hvd-compress build-horovod",
        ),
        (
            {"tensorflow": {**WELL["tensorflow"], "keras": {"package": "keras", "version": "3.8.0"}}},
            "Keras",
            NOTE,
            "3.8.0: Horovod's Keras API needs Keras 2",
            "TF_USE_LEGACY_KERAS=1",
        ),
        (
            {"tensorflow": {**WELL["tensorflow"], "keras": {probe.ERROR: "ImportError: Keras cannot be imported"}}},
            "Keras",
            NOTE,
            "ImportError",
            "'tf-keras==2.18.*'",
        ),
        ({"kernels": {probe.ERROR: "ImportError: _host"}}, "kernels", BROKEN, "_host", "force-reinstall"),
        ({"kernels": {"name": "reference", "works": True}}, "kernels", NOTE, "NumPy", "unset HVD_COMPRESS_KERNELS"),
        ({"kernels": {**WELL["kernels"], "works": False}}, "kernels", BROKEN, "wrong result", "report"),
        ({"kernels": {**WELL["kernels"], "isa": "portable"}}, "kernels", OK, "portable", "avx2 is faster"),
        ({"torch": {**WELL["torch"], "gpus": ["H100"]}}, "GPU", NOTE, "H100; Triton 1.0", "docs/gpu.md"),
        *(
            (
                {"torch": {**WELL["torch"], "gpus": ["H100"], "horovod": {**HOROVOD, "cuda": cuda, "nccl": nccl}}},
                "GPU",
                NOTE,
                f"Horovod's operations: {said}",
                "docs/gpu.md",
            )
            for cuda, nccl, said in (
                (True, True, "NCCL"),
                (True, False, "by way of the host"),
                (False, False, "for the CPU"),
            )
        ),
        ({"programs": {"nvidia-smi": (0, "H100\nH100\n")}}, "GPU", NOTE, "H100; Triton 1.0", "docs/gpu.md"),
        ({"programs": {"nvidia-smi": (9, "no driver")}}, "GPU", OK, "none", ""),
        ({"programs": {"mpirun": (0, "mpirun (Open MPI) 5.0.7")}}, "MPI", NOTE, "5.0.7", "Open MPI 4"),
        ({"programs": {"mpirun": (1, "it looks like opal_init failed")}}, "MPI", BROKEN, "opal", "OPAL_PREFIX"),
        ({"programs": {"mpirun": (None, "")}}, "MPI", BROKEN, "fails", "mpirun --version"),
        (
            {"mpi4py": {probe.MISSING: "mpi4py", probe.ERROR: "No module"}},
            "mpi4py",
            NOTE,
            "not installed",
            "pip install mpi4py",
        ),
        ({"mpi4py": {probe.ERROR: "RuntimeError: no libmpi"}}, "mpi4py", NOTE, "no libmpi", "build it"),
    ],
)
def test_findings(machine, changed: dict[str, Any], name: str, status: str, detail: str, advice: str) -> None:
    finding = machine(**changed)[name]
    assert finding.status == status
    assert detail in finding.detail
    assert advice in finding.advice
    assert finding.advice or status == OK
    assert "--framework" not in finding.advice  # a Horovod for one framework takes the place of that for all


@pytest.mark.parametrize(
    ("horovod", "programs", "status", "detail"),
    [
        ({"mpi": True, "gloo": False}, {"horovodrun"}, BROKEN, "no mpirun"),
        ({"mpi": True, "gloo": True}, {"horovodrun"}, NOTE, "no mpirun; horovodrun --gloo works without it"),
        ({"mpi": True, "gloo": True}, set(), BROKEN, "no mpirun"),
        ({"mpi": False, "gloo": True}, {"horovodrun"}, NOTE, "no mpirun"),
    ],
)
def test_mpirun_is_missed_only_where_nothing_else_starts_ranks(
    machine, monkeypatch: pytest.MonkeyPatch, horovod: dict[str, bool], programs: set[str], status: str, detail: str
) -> None:
    machine(torch={**WELL["torch"], "horovod": {**HOROVOD, **horovod}}, tensorflow=ABSENT)
    monkeypatch.setattr(processes, "program", lambda name: f"/bin/{name}" if name in programs else None)
    found = {finding.name: finding for finding in examination.examine(exchange=False)}
    assert (found["MPI"].status, found["MPI"].detail) == (status, detail)
    assert ("openmpi" in found["MPI"].advice) is horovod["mpi"]


@pytest.mark.parametrize(
    ("programs", "statuses"),
    [
        ({"mpirun", "horovodrun"}, [OK, OK]),
        ({"horovodrun"}, [NOTE, OK]),
        ({"mpirun"}, [OK, NOTE]),
        (set(), [BROKEN, BROKEN]),
    ],
)
def test_a_missing_launcher_is_a_note_where_another_works(
    machine, monkeypatch: pytest.MonkeyPatch, programs: set[str], statuses: list[str]
) -> None:
    machine(tensorflow=ABSENT)
    monkeypatch.setattr(processes, "program", lambda name: f"/bin/{name}" if name in programs else None)
    monkeypatch.setattr(two_ranks, "exchange", lambda command, launcher, name, limit: Finding(f"2 {launcher}", OK, ""))
    found = [finding for finding in examination.examine(["torch"]) if finding.name.startswith("2 ")]
    assert [finding.status for finding in found] == statuses
    for finding, launcher in zip(found, two_ranks.LAUNCHERS, strict=True):
        assert launcher in finding.name
        assert finding.status == OK or finding.detail == f"no {launcher.split()[0]}"


def test_modules_that_are_not_installed_are_findings(hide: Callable[..., None]) -> None:
    """In processes that really cannot import them."""
    hide("torch", "tensorflow", "mpi4py", "horovod")
    done = subprocess.run(
        [sys.executable, "-m", "hvd_compress.cli", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    found = {finding["name"]: finding for finding in report["findings"]}
    assert not report["works"]
    assert found["PyTorch"]["status"] == found["TensorFlow"]["status"] == found["mpi4py"]["status"] == NOTE
    assert found["framework"]["status"] == BROKEN
    assert found["kernels"]["status"] == OK
    assert not any(name.startswith("2 ranks") for name in found)


def test_without_horovod_the_framework_is_still_found(hide: Callable[..., None]) -> None:
    hide("horovod")
    found = examination.probe("torch", 120)
    assert found["version"]
    assert found["horovod"] == {probe.MISSING: "horovod", probe.ERROR: "No module named 'horovod'"}
    (_, finding) = examination.horovod({"torch": found, "tensorflow": ABSENT})
    assert (finding.status, finding.detail) == (BROKEN, "cannot be imported: No module named 'horovod'")


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import os, sys; print('a word'); sys.stdout.flush(); os.abort()", "ends Python with status -6: a word"),
        ("import time; time.sleep(60)", "hangs"),
    ],
)
def test_an_import_that_crashes_or_hangs_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, error: str
) -> None:
    (tmp_path / "mpi4py.py").write_text(program)
    monkeypatch.setattr(processes, "environment", lambda: {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert examination.probe("mpi4py", 8) == {probe.ERROR: error}


ROOT = Path(__file__).resolve().parents[2]


def ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_what_takes_too_long_is_ended_with_all_it_started(tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 300 & echo $! > {tmp_path}/pid; echo said; wait; wait; sleep 300"
    started = time.monotonic()
    assert processes.run(["bash", "-c", script], 1) == (None, "said\n")
    assert time.monotonic() - started < 30
    child = int((tmp_path / "pid").read_text())
    while not ended(child) and time.monotonic() - started < 30:
        time.sleep(0.05)  # a signal takes its time where the machine is busy
    assert ended(child)


def test_a_program_that_cannot_be_started() -> None:
    code, output = processes.run(["/no/such/program"], 1)
    assert code == 127
    assert "No such file" in output


@pytest.mark.parametrize(
    ("code", "output", "ranks", "detail", "advice"),
    [
        (None, "", [], "not done after 5 s", "--timeout for more"),
        (1, "mpirun has detected an attempt to run as root.", [], "run as root", "OMPI_ALLOW_RUN_AS_ROOT=1"),
        (1, "-----\nThere are not enough slots available", [], "slots", "--oversubscribe"),
        (
            1,
            "x\n[1,0]<stderr>:ValueError: no\nmpirun noticed\n",
            [],
            "ValueError: no",
            "hvd_compress.cli.smoke_test torch",
        ),
        (
            0,
            "",
            [{"ranks": 1, "mean": 1.0, "right": True}] * 2,
            "each rank believes that it is alone",
            "build it again",
        ),
        (0, "", [{"ranks": 2, "mean": 1.0, "right": False}] * 2, "a wrong mean: [1.0, 1.0]", "report"),
        (0, "", [{"ranks": 2, "mean": 1.5, "right": True}], "ended with status 0", "smoke_test"),
        (0, "", [{"ranks": 2, "mean": 1.5, "right": True}] * 2, "", ""),
    ],
)
def test_outcomes_of_an_exchange(
    monkeypatch: pytest.MonkeyPatch, code: int | None, output: str, ranks: list[Any], detail: str, advice: str
) -> None:
    def run(command: list[str], limit: float) -> tuple[int | None, str]:
        if command[-1] == "--version":
            return 0, "mpirun (Open MPI) 4.1.8"
        assert command[:4] == ["/bin/mpirun", "-np", "2", "--oversubscribe"]
        for i, rank in enumerate(ranks):
            (Path(command[-2]) / f"rank.{i}.json").write_text(json.dumps(rank))
        return code, output

    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr(processes, "program", lambda name: f"/bin/{name}")
    finding = two_ranks.exchange("/bin/mpirun", "mpirun", "torch", 5)
    assert finding.name == "2 ranks, PyTorch, mpirun"
    assert finding.status == (BROKEN if advice else OK)
    assert detail in finding.detail
    assert advice in finding.advice


@pytest.mark.parametrize("broken", [True, False])
def test_the_report(command, monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    findings = [Finding("A", OK, "1 [x]"), Finding("B", BROKEN if broken else NOTE, "2", "do [this]")]
    monkeypatch.setattr(examination, "examine", lambda *_, **__: iter(findings))
    ran = command("doctor")
    assert ran.code == int(broken)
    assert ran.out == "ok     A: 1 [x]\n" + (
        "broken B: 2\n       → do [this]\n1 of 2 do not work\n"
        if broken
        else "note   B: 2\n       → do [this]\nall is well\n"
    )
    ran = command("doctor", "--json")
    assert ran.code == int(broken)
    assert ran.json["works"] is not broken
    assert ran.json["findings"][1]["advice"] == "do [this]"


@pytest.mark.multiprocess
@pytest.mark.long
def test_for_real() -> None:
    """The command itself, with both launchers."""
    done = subprocess.run(
        [sys.executable, "-m", "hvd_compress.cli", "doctor", "--framework", "torch", "--json", "--timeout", "250"],
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    found = {finding["name"]: finding for finding in report["findings"]}
    for launcher in two_ranks.LAUNCHERS:
        assert found[f"2 ranks, PyTorch, {launcher}"]["status"] == OK, found
    assert done.returncode == 0, report
    assert report["works"]


def test_last_words() -> None:
    dashes = "-" * 30
    assert last_words(f"{dashes}\nmpirun will not\nrun as root.\nGood luck\n{dashes}\n") == "run as root."
    assert last_words(f"one\ntwo\n{dashes}\n\n") == "two"
    assert last_words("[0]<stderr>:mpi.Error: x\nlater\n") == "mpi.Error: x"
    assert last_words("") == ""
