#!/usr/bin/env bash
# Check the checkout on this machine's GPU, in less than 9 minutes and without a network: build the package and Horovod
# from the folder that tools/fetch_wheels.sh has filled, run the device kernels' tests on the GPU, two ranks that share it,
# compute-sanitizer and the benchmark. A table is printed; gpu_check.json, gpu_check.txt and the logs are in --out.
# Needs a Python with PyTorch, Triton, NumPy and SciPy (PYTHON, or python3), its headers, g++, make and nvcc; no root.
#     tools/gpu_check.sh [--wheels FOLDER] [--out FOLDER] [--minutes 8.5] [--dry-run]
# Exit status: 0 all is well, 1 something failed or found no time, 2 something is missing.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "${PYTHON:-python3}" -B "$here/gpu_check.py" "$@"
