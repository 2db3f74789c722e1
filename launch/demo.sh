#!/usr/bin/env bash
# What a slow network does to training, and what compression does about it: two networks, trained with Horovod
# uncompressed, Horovod's fp16, SIDCo and Auto; accuracy, bytes and time at 1 Gbit/s and 100 Mbit/s, in tables and a
# picture. About six minutes on two cores. Root has the steps measured between two emulated hosts; for everybody else
# those over a network are predicted, and the tables say so.
#     launch/demo.sh [flags of benchmarks/demo.py: --epochs 5 --seed 1 --networks ResNet ...]
#     HVD_COMPRESS_DEMO=folder   where record and picture go (default: build/demo)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/env.sh
. launch/env.sh

if ! [ -x .venv/bin/horovodrun ]; then
    echo "demo: the environment is missing; run: make setup" >&2
    exit 1
fi
out=${HVD_COMPRESS_DEMO:-build/demo}
mkdir -p "$out"

# Emulated hosts reach nothing but each other: what is trained on has to be here before.
(cd examples && python -c 'import fashion_mnist; print("demo: data:", fashion_mnist.load(None, "fashion-mnist").name)')

# The threads that compute are one for each of two cores, or more where there are more.
cores=$(nproc)
threads=$((cores >= 4 ? cores / 2 : 1))

run=(mpirun -np 2)
if [ "$(id -u)" = 0 ] && launch/emulate.sh --hosts 2 --rate 1gbit -- true >/dev/null 2>&1; then
    run=(launch/emulate.sh --hosts 2 --rate unlimited --)
    echo "demo: two emulated hosts on this machine; steps are measured at 1 Gbit/s and 100 Mbit/s"
else
    echo "demo: no emulated hosts here (they need root and iproute2); steps at 1 Gbit/s and 100 Mbit/s are predicted"
fi

# The job is a process group of its own: whatever ends this script ends it.
job=
stop() {
    trap - INT TERM EXIT
    [ -z "$job" ] || kill -TERM -- "-$job" 2>/dev/null || true
}
trap 'stop; exit 130' INT
trap 'stop; exit 143' TERM
trap stop EXIT

started=$SECONDS
set -m
"${run[@]}" python benchmarks/demo.py --threads "$threads" --out "$out/demo.json" "$@" </dev/null &
job=$!
set +m
status=0
wait "$job" || status=$?
job=
if [ $status != 0 ]; then
    echo "demo: the run ended with status $status" >&2
    exit $status
fi
python benchmarks/demo_report.py "$out/demo.json" --plot "$out/demo.png"
echo "demo: $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s; record and picture in $out"
