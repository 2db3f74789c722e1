"""Scenarios: the MPI driver on every rank sends the same bytes as the simulation, and gives the same answers.

What starts MPI when imported is imported in the scenarios.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

import hvd_compress
from hvd_compress.drivers import simulation
from tests.ranks.recording import recorded
from tests.ranks.scenario import scenario
from tests.ranks.scoped import Mesh

SHAPES = {"head": (40, 60), "body": (300, 250), "bias": (60,), "stem": (80, 33)}


def gradients(rank: int, step: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng((rank, step))
    return {name: rng.laplace(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


@scenario("mpirun 3", long=["mpirun 1"])
def same_bytes_as_the_simulation() -> None:
    from mpi4py import MPI

    from hvd_compress.drivers.mpi import MPIDriver, MPITransport

    comm = MPI.COMM_WORLD
    for name in hvd_compress.compressor_names():
        for extra in ({}, {"wire": "bfloat16"}, {"dtype": "float16"}, {"aggregate": "reduce-scatter"}):
            if not set(extra) <= set(hvd_compress.registry.get(name).parameters()):
                continue
            compression = hvd_compress.from_config({"name": name, "bucket_mb": 0.1, **extra})
            driver = MPIDriver(dataclasses.replace(compression))
            replica = hvd_compress.Simulation(compression, workers=comm.size)
            for step in range(5):
                with recorded(MPITransport) as sent:
                    means = driver.step(gradients(comm.rank, step))
                everyone = [gradients(rank, step) for rank in range(comm.size)]
                with recorded(simulation.SimulatedTransport) as simulated:
                    expected = replica.step({key: [g[key] for g in everyone] for key in SHAPES})
                mine = [entry[1:] for entry in simulated if entry[0] == comm.rank]
                # sorted, for when a later round starts is a matter of timing
                gathers = sorted(entry for entry in mine if "agreement" not in entry[0])
                assert sorted(entry[1:] for entry in sent if "agreement" not in entry[1]) == gathers, compression
                for key, mean in means.items():
                    if comm.size <= 2 or key != "bias":
                        np.testing.assert_allclose(mean, expected[key], rtol=2e-3 if extra else 1e-5, atol=1e-3)
                digests = comm.allgather(b"".join(mean.tobytes() for mean in means.values()))
                assert len(set(digests)) == 1, "ranks differ"


@scenario("mpirun 3")
def disagreement_is_reported_everywhere() -> None:
    from mpi4py import MPI

    from hvd_compress.drivers.mpi import MPIDriver

    comm = MPI.COMM_WORLD
    scaled = hvd_compress.TopK(0.1)
    scaled.use_grad_scaler(SimpleNamespace(get_scale=lambda: 2.0))
    with pytest.raises(ValueError, match="does not get to know the loss scale"):
        MPIDriver(scaled)
    driver = MPIDriver(hvd_compress.TopK(0.1 if comm.rank == 0 else 0.2))
    with pytest.raises(ValueError, match="ranks disagree on the compressor"):
        driver.step(gradients(comm.rank, 0))


@scenario("mpirun 3")
def what_one_rank_cannot_compress_is_told_everywhere() -> None:
    from mpi4py import MPI

    from hvd_compress.drivers.mpi import MPIDriver

    rank = MPI.COMM_WORLD.rank
    driver = MPIDriver(hvd_compress.TopK(0.1))
    mine = {name: array.astype(np.int32 if rank == 1 else np.float32) for name, array in gradients(rank, 0).items()}
    with pytest.raises(TypeError if rank == 1 else ValueError, match=r"gradient '.*' has dtype int32") as caught:
        driver.step(mine)
    assert rank == 1 or str(caught.value).startswith("rank 1: ")


@scenario("mpirun 3", long=["mpirun 1", "mpirun 4"])
def every_collective_in_every_scope() -> None:
    """In a whole job on one node, and with nodes of one and of two ranks."""
    from mpi4py import MPI

    from hvd_compress.drivers.mpi import MPIDriver

    comm = MPI.COMM_WORLD
    everyone = [gradients(rank, 0) for rank in range(comm.size)]
    for per_node in (0, 1, 2):
        means = MPIDriver(Mesh(per_node=per_node, bucket_mb=0.1)).step(gradients(comm.rank, 0))
        for name, mean in means.items():
            expected = np.mean([given[name] for given in everyone], axis=0, dtype=np.float64)
            np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-5)
        assert len(set(comm.allgather(b"".join(mean.tobytes() for mean in means.values())))) == 1


@scenario("mpirun 3")
def nodes_are_compared() -> None:
    from mpi4py import MPI

    from hvd_compress.drivers.mpi import MPIDriver

    with pytest.raises(ValueError, match="which ranks share a node"):
        MPIDriver(Mesh(per_node=1 if MPI.COMM_WORLD.rank else 2))
