#!/usr/bin/env bash
# Accuracy against bits, on a network that computes much and one that sends much: the records that
# benchmarks/bits.py turns into the tables of docs/quantizers.md. Minutes a run; runs that are done are not repeated.
#     launch/study_quantizers.sh [seed ...]      (default: 0)
#     HVD_COMPRESS_STUDY=folder                  where the records go (default: build/study-quantizers)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/env.sh
. launch/env.sh

out=${HVD_COMPRESS_STUDY:-build/study-quantizers}
mkdir -p "$out"
[ $# -gt 0 ] || set -- 0
for seed in "$@"; do
    for model in resnet vgg; do
        while IFS='|' read -r name compression label; do
            record="$out/$model-$name-seed$seed.json"
            [ ! -e "$record" ] || continue
            # shellcheck disable=SC2086  # several flags
            horovodrun -np 2 python examples/train_torch.py --model "$model" --epochs 1 --threads 1 --seed "$seed" \
                --compression $compression --label "$label" --record "$record" </dev/null
        done <<'RUNS'
none|none|Horovod uncompressed
qsgd-2|qsgd-maxnorm --set bits=2|QSGDMaxNorm 2
qsgd-4|qsgd-maxnorm --set bits=4|QSGDMaxNorm 4
qsgd-6|qsgd-maxnorm --set bits=6|QSGDMaxNorm 6
qsgd-8|qsgd-maxnorm|QSGDMaxNorm 8
multi-2-6|qsgd-maxnorm-multiscale --set bits=[2,6]|QSGDMaxNormMultiScale (2, 6)
multi-4-8|qsgd-maxnorm-multiscale|QSGDMaxNormMultiScale (4, 8)
randk-8|randk-maxnorm --ratio 0.1|RandKMaxNorm 0.1, 8
randk-4-8|randk-maxnorm-multiscale --ratio 0.1|RandKMaxNormMultiScale 0.1, (4, 8)
RUNS
    done
done
