#!/usr/bin/env bash
# Make the checkout ready: .venv with every dependency, Horovod built once a machine, the package installed in place.
# Needs Python 3.11, g++ and make; no root. Safe to run again: it does only what is missing.
#     PYTHON=/path/to/python3.11   the interpreter to use
#     HVD_COMPRESS_CACHE=folder    where the Horovod wheel is kept (default: ~/.cache/hvd_compress)
#     HVD_COMPRESS_JOBS=n          compilers at a time (default: one a core, less where memory is short)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "setup: $*" >&2
    exit 1
}

# One line: the version, what is missing, the interpreter behind a shim or a virtual environment (.venv's own may have
# to be deleted).
probe='
import importlib.util as find, os, platform, sys, sysconfig
headers = os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h"))
missing = "python3.11-dev" if not headers else "" if find.find_spec("ensurepip") else "python3.11-venv"
print(platform.python_version(), missing or "-", os.path.realpath(sys.executable))
'
# An environment that is there keeps its interpreter.
for candidate in ${PYTHON:+"$PYTHON"} .venv/bin/python python3.11 python3; do
    found=$("$candidate" -Ic "$probe" 2>/dev/null) || found=
    case $found in 3.11.*) break ;; esac
    # An interpreter that was asked for is not exchanged for another one.
    [ -z "${PYTHON:-}" ] || break
done
read -r version lacks python <<<"$found" || true
case $version in
    3.11.*) ;;
    "") fail "${PYTHON:-python3.11} does not run; install Python 3.11 (python3.11, python3.11-venv, python3.11-dev) or set PYTHON=/path/to/python3.11" ;;
    *) fail "${PYTHON:-python3} is Python $version, but TensorFlow 2.18 and Horovod 0.28.1 are pinned for Python 3.11; install it or set PYTHON=/path/to/python3.11" ;;
esac
[ "$lacks" = - ] || fail "Python $version ($python) is incomplete; install $lacks"

missing=()
for tool in "${CXX:-g++}" make; do
    command -v "$tool" >/dev/null || missing+=("$tool")
done
[ ${#missing[@]} = 0 ] ||
    fail "${missing[*]} not found; install a C++20 compiler and make (Debian, Ubuntu: g++ make; Fedora: gcc-c++ make)"

exec "$python" -B launch/setup.py
