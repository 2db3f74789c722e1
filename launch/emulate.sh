#!/usr/bin/env bash
# Several emulated hosts on this machine, joined by a link of a given rate, and an MPI or Horovod job on them:
#     launch/emulate.sh --hosts 2 --rate 1gbit -- python examples/train_torch.py --compression configs/sidco.yaml
# Needs root and iproute2. `--help` lists the options; docs/emulate.md says what it can tell and what it cannot.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/env.sh
. "$here/env.sh"

if ! [ -x "$VIRTUAL_ENV/bin/python" ]; then
    echo "emulate: the environment is missing; run: make setup" >&2
    exit 125
fi
# This process becomes the launcher: a signal for the one is a signal for the other.
exec "$VIRTUAL_ENV/bin/python" "$here/emulate.py" "$@"
