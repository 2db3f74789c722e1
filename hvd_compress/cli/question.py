"""What ``hvd-compress advise`` is asked, made of its options."""

from __future__ import annotations

from hvd_compress.advisor import torch_model
from hvd_compress.advisor.cluster import Cluster, of_measurements
from hvd_compress.advisor.model import Model, of_parameter_count
from hvd_compress.advisor.network_benchmark import measure_network
from hvd_compress.cli import quantities


def model(
    path: str | None, shape: str | None, vocabulary: int | None, parameters: str | None, step_time: str | None
) -> Model:
    """Return the model.

    Raises:
        ValueError: the options do not go together, or one is wrong; says what to give.
        ImportError: the module, or PyTorch, cannot be imported.
    """
    step = None if step_time is None else quantities.seconds(step_time)
    if step == 0:
        raise ValueError("--step-time must be more than 0")
    if (path is None) == (parameters is None):
        raise ValueError("give --model MODULE:NAME, or --parameters and --step-time")
    if parameters is not None:
        if step is None or shape is not None:
            raise ValueError("--parameters goes with --step-time, and without --input: 25.6e6 and 120ms, say")
        return of_parameter_count(quantities.count("--parameters", parameters), step)
    assert path is not None
    if (shape is None) == (step is None):
        raise ValueError("--model goes with --input (to time a step here) or with --step-time")
    network = torch_model.load(path)
    if step is not None:
        return torch_model.of_module(network, step)
    assert shape is not None
    try:
        sizes = [int(part) for part in shape.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ValueError(f"--input must be a shape such as 32,3,224,224, got {shape!r}")
    return torch_model.timed(network, sizes, vocabulary)


def nodes(found: Cluster, ranks_per_node: int, bandwidth: str | None, latency: str) -> Cluster:
    """Return the cluster with so many workers on a node.

    Raises:
        ValueError: the options do not go together, or one is wrong.
    """
    if (ranks_per_node > 1) != (bandwidth is not None):
        raise ValueError("--ranks-per-node goes with --local-bandwidth, of the links within a node: 4 and 200gbit, say")
    if bandwidth is None:
        return found
    return found.with_nodes(ranks_per_node, quantities.bandwidth(bandwidth), quantities.seconds(latency))


def cluster(bandwidth: str | None, latency: str, overhead: str, measured: bool) -> Cluster | None:
    """Return the cluster; with ``measured`` from a Horovod job that this process is a rank of, None on all but its
    first.

    Raises:
        ValueError: the options do not go together, or one is wrong.
        RuntimeError: there is no other rank to measure with.
        ImportError: Horovod or mpi4py is not there.
    """
    if measured == (bandwidth is not None):
        raise ValueError("give --bandwidth (and --latency), or --measure")
    if bandwidth is not None:
        times = quantities.seconds(latency), quantities.seconds(overhead)
        return Cluster.of_link(quantities.bandwidth(bandwidth), *times)
    import horovod.torch as hvd

    hvd.init()
    try:
        found = measure_network()
        rank = hvd.rank()
    finally:
        hvd.shutdown()
    return of_measurements(**found) if rank == 0 else None
