#!/usr/bin/env bash
# A job on several machines, with mpirun:
#     launch/mpirun.sh --hosts node1:2,node2:2 --threads 4 -- python examples/train_torch.py --compression configs/sidco.yaml
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
exec python3 "$here/cluster.py" mpirun "$@"
