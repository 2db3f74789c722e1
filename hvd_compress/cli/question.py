"""What ``hvd-compress advise`` is asked, made of its options."""

from __future__ import annotations

from hvd_compress.cli import bench, subject
from hvd_compress.cli.cluster import Cluster, of_measurements
from hvd_compress.cli.forecast import Model
from hvd_compress.cli.measuring import measure


def model(
    path: str | None, shape: str | None, vocabulary: int | None, parameters: str | None, step_time: str | None
) -> Model:
    """The model.

    Raises:
        ValueError: the options do not go together, or one is wrong; says what to give.
        ImportError: the module, or PyTorch, cannot be imported.
    """
    step = None if step_time is None else subject.seconds(step_time)
    if step == 0:
        raise ValueError("--step-time must be more than 0")
    if (path is None) == (parameters is None):
        raise ValueError("give --model MODULE:NAME, or --parameters and --step-time")
    if parameters is not None:
        if step is None or shape is not None:
            raise ValueError("--parameters goes with --step-time, and without --input: 25.6e6 and 120ms, say")
        return subject.of_numbers(bench.count("--parameters", parameters), step)
    assert path is not None
    if (shape is None) == (step is None):
        raise ValueError("--model goes with --input (to time a step here) or with --step-time")
    network = subject.load(path)
    if step is not None:
        return subject.of_module(network, step)
    assert shape is not None
    try:
        sizes = [int(part) for part in shape.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise ValueError(f"--input must be a shape such as 32,3,224,224, got {shape!r}")
    return subject.timed(network, sizes, vocabulary)


def cluster(bandwidth: str | None, latency: str, overhead: str, measured: bool) -> Cluster | None:
    """The cluster; with ``measured`` from a Horovod job that this process is a rank of, None on all but its first.

    Raises:
        ValueError: the options do not go together, or one is wrong.
        RuntimeError: there is no other rank to measure with.
        ImportError: Horovod or mpi4py is not there.
    """
    if measured == (bandwidth is not None):
        raise ValueError("give --bandwidth (and --latency), or --measure")
    if bandwidth is not None:
        return Cluster.of_link(subject.bandwidth(bandwidth), subject.seconds(latency), subject.seconds(overhead))
    import horovod.torch as hvd

    hvd.init()
    try:
        found = measure()
        rank = hvd.rank()
    finally:
        hvd.shutdown()
    return of_measurements(**found) if rank == 0 else None
