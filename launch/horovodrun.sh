#!/usr/bin/env bash
# A job on several machines, with horovodrun:
#     launch/horovodrun.sh --hostfile launch/hostfile -- python examples/train_torch.py --compression configs/sidco.yaml
# Every host must have this checkout, or whatever environment is used, in the same place. `--help` lists the options,
# docs/clusters.md explains them; `--dry-run` shows the command.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Without the checkout's own environment, that of the caller.
if [ -x "$here/../.venv/bin/python" ]; then
    # shellcheck source=launch/env.sh
    . "$here/env.sh"
fi
# This process becomes the launcher: a signal for the one is a signal for the other.
exec python3 "$here/cluster.py" horovodrun "$@"
