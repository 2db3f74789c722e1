#!/usr/bin/env bash
# Train the same network with Horovod uncompressed and with gradient compression, two ranks on this machine, and show what
# it cost and what it saved: one table, one picture. Five minutes on two cores.
#     launch/demo.sh [flags of examples/train_torch.py, for all runs: --epochs 5 --seed 1 ...]
#     HVD_COMPRESS_DEMO=folder   where records and picture go (default: build/demo)
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

# The threads that compute are one for each of two cores, or more where there are more.
cores=$(nproc)
threads=$((cores >= 4 ? cores / 2 : 1))

# horovodrun and its ranks are a process group of their own: whatever ends this script ends them.
job=
stop() {
    trap - INT TERM EXIT
    [ -z "$job" ] || kill -TERM -- "-$job" 2>/dev/null || true
}
trap 'stop; exit 130' INT
trap 'stop; exit 143' TERM
trap stop EXIT

# horovodrun puts a rank's tag before, and sometimes behind, what it prints.
untag='s/\[[0-9,]*\]<std[a-z]*>: \{0,1\}//g'

train() { # name, flags
    local record="$out/$1.json"
    shift
    rm -f "$record"
    set -m
    horovodrun -np 2 python examples/train_torch.py --threads "$threads" --record "$record" "$@" \
        > >(sed -u "$untag") 2> >(sed -u "$untag" >&2) </dev/null &
    job=$!
    set +m
    local status=0
    wait "$job" || status=$?
    job=
    if [ $status != 0 ]; then
        echo "demo: the run ended with status $status" >&2
        exit $status
    fi
}

started=$SECONDS
train uncompressed "$@"
train sidco-0.01 --compression configs/sidco.yaml --label "SIDCo 0.01" "$@"
train sidco-0.001 --compression configs/sidco-0.001.yaml --label "SIDCo 0.001, warm-up" "$@"
hvd-compress compare "$out/uncompressed.json" "$out/sidco-0.01.json" "$out/sidco-0.001.json" --plot "$out/demo.png"
echo "demo: $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s; records in $out"
