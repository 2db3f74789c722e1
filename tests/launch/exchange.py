"""Sum arrays over all ranks; rank 0 prints, as JSON, the hosts and the bits a second that each of them sent."""

import json
import socket
import time

import numpy as np

ROUNDS = 3


def main() -> None:
    from mpi4py import MPI  # not when doctest looks for examples: the import makes the process an MPI one

    world = MPI.COMM_WORLD
    hosts = world.gather(socket.gethostname())
    values = np.full(500_000, world.rank + 1, np.float32)
    total = np.empty_like(values)
    world.Allreduce(values[:1000], total[:1000])
    world.Barrier()
    started = time.perf_counter()
    for _ in range(ROUNDS):
        world.Allreduce(values, total)
    # The slowest rank's: what was sent was not on the link for longer than that.
    seconds = world.allreduce(time.perf_counter() - started, MPI.MAX)
    assert (total == world.size * (world.size + 1) / 2).all()
    if world.rank == 0:
        sent = ROUNDS * 8 * values.nbytes * 2 * (world.size - 1) / world.size
        print(json.dumps({"hosts": hosts, "rate": sent / seconds}))


if __name__ == "__main__":
    main()
