"""Command-line flags that the examples share, whatever the framework."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import hvd_compress
from hvd_compress.files import check_writable
from hvd_compress.recording.horovod_own import HOROVOD


class Parser(argparse.ArgumentParser):
    """Every rank parses the same flags; one of them complains."""

    def error(self, message: str) -> NoReturn:
        rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("HOROVOD_RANK") or "0"
        if rank != "0":
            time.sleep(3)  # mpirun ends all ranks when the first one leaves: let it be the one that speaks
            raise SystemExit(2)
        super().error(message)


def parser(description: str) -> Parser:
    """The flags; ``compression_of`` makes sense of those about compression."""
    flags = Parser(description=description, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    what = flags.add_argument_group("compression")
    what.add_argument(
        "--compression",
        default="none",
        metavar="NAME|FILE",
        help=f"none or fp16 (Horovod's own), one of {', '.join(hvd_compress.compressor_names())}, or a YAML file "
        "such as configs/sidco.yaml",
    )
    what.add_argument("--ratio", type=float, help="fraction to send, instead of the configuration's")
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="set any parameter of the compressor; the value is YAML; may be repeated",
    )
    what.add_argument("--label", help="name of the run in tables and pictures; by default the compressor")

    train = flags.add_argument_group("training")
    train.add_argument("--model", choices=("resnet", "vgg", "mlp"), default="resnet", help="network")
    train.add_argument("--width", type=_positive, default=512, help="hidden units of the mlp")
    train.add_argument("--epochs", type=_positive, default=3, help="passes over the data")
    train.add_argument("--batch-size", type=_positive, default=32, help="images a rank and step")
    train.add_argument("--lr", type=_rate, default=0.05, help="peak learning rate; falls to 0 as a cosine")
    train.add_argument("--momentum", type=float, help="by default 0.9; 0 for dgc, which has its own")
    train.add_argument("--weight-decay", type=float, default=5e-4, help="of the optimizer; of the compressor for dgc")
    train.add_argument("--seed", type=int, default=0, help="of the weights and of the order of the data")
    train.add_argument("--threads", type=_positive, help="a rank; by default OMP_NUM_THREADS, or all cores")

    data = flags.add_argument_group("data")
    data.add_argument("--data", choices=("fashion-mnist", "digits"), default="fashion-mnist", help="data set")
    data.add_argument(
        "--data-dir",
        type=Path,
        help="folder of the four idx files (.gz or not); by default Debian's package is fetched, and without that the "
        "digits of scikit-learn are taken",
    )
    data.add_argument("--train-limit", type=_positive, metavar="N", help="train on the first N images only")

    out = flags.add_argument_group("output")
    out.add_argument("--record", type=Path, metavar="FILE", help="write what happened to this JSON file")
    out.add_argument("--record-every", type=_positive, default=10, metavar="N", help="steps between recorded losses")
    out.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="write scalars for TensorBoard to this folder (by rank 0)"
    )
    out.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="save after every epoch: FILE by rank 0, and beside it each rank's state of the compressor",
    )
    out.add_argument("--resume", action="store_true", help="go on from --checkpoint, if it is there")
    out.add_argument("--stop-after", type=_positive, metavar="EPOCHS", help="leave early; --resume takes the rest")
    return flags


def parse(
    description: str, arguments: Sequence[str] | None = None, add: Callable[[Parser], None] = lambda _: None
) -> tuple[argparse.Namespace, Any]:
    """The flags, and the compressor they describe (None for Horovod's own). Wrong ones end the program, status 2.

    ``add`` may add flags of the script's own.
    """
    flags = parser(description)
    add(flags)
    chosen = flags.parse_args(arguments)
    if chosen.resume and chosen.checkpoint is None:
        flags.error("--resume needs --checkpoint FILE: what to go on from")
    if chosen.stop_after and chosen.checkpoint is None:
        flags.error("--stop-after needs --checkpoint FILE, or the work is lost")
    if chosen.data_dir is not None and chosen.data != "fashion-mnist":
        flags.error(f"--data-dir is for Fashion-MNIST, not for --data {chosen.data}")
    for name, path in (("--record", chosen.record), ("--checkpoint", chosen.checkpoint)):
        if path is not None:
            make_room(path, name, flags)
    if chosen.tensorboard is not None:
        if chosen.tensorboard.exists() and not chosen.tensorboard.is_dir():
            flags.error(f"--tensorboard {chosen.tensorboard}: must be a folder")
        if find_spec("tensorboardX") is None:
            flags.error("--tensorboard needs tensorboardX: pip install tensorboardX")
    try:
        compressor = compression_of(chosen.compression, chosen.ratio, chosen.settings)
    except (TypeError, ValueError, FileNotFoundError) as error:
        flags.error(f"--compression {chosen.compression}: {error}")
    if chosen.momentum is None:
        chosen.momentum = 0.0 if getattr(compressor, "momentum", 0.0) else 0.9
    if chosen.label is None:
        chosen.label = repr(compressor) if compressor is not None else HOROVOD[chosen.compression].label
    chosen.optimizer_decay = chosen.weight_decay
    return chosen, with_decay(compressor, chosen)


def with_decay(compressor: Any, chosen: argparse.Namespace) -> Any:
    """Return the compressor, with the optimizer's weight decay if it is one that does the optimizer's momentum."""
    if not isinstance(compressor, hvd_compress.DGC):
        return compressor
    chosen.optimizer_decay = 0.0
    return dataclasses.replace(compressor, weight_decay=compressor.weight_decay or chosen.weight_decay)


def make_room(path: Path, name: str, flags: argparse.ArgumentParser) -> None:
    """Make the folder of a file that will be written at the end of a run; end here and now if that cannot be done."""
    try:
        check_writable(path)
    except OSError as error:
        flags.error(f"{name} {path}: {error}")


def compression_of(
    name: str, ratio: float | None = None, settings: Sequence[str] = ()
) -> hvd_compress.Compressor | None:
    """The compressor of a name or a YAML file, with overrides; None for Horovod's own ``none`` and ``fp16``.

    >>> compression_of("sidco", ratio=0.001, settings=["fit=pareto"])
    SIDCo(ratio=0.001, fit='pareto')
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes KEY=VALUE, got {setting!r}")
        overrides[key.strip()] = _yaml(setting, value)
    if ratio is not None:
        overrides["ratio"] = ratio
    if name in HOROVOD:
        if overrides:
            raise ValueError(f"Horovod's own compression takes no parameters, got {', '.join(overrides)}")
        return None
    return hvd_compress.from_config(name, **overrides)


def _yaml(setting: str, value: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--set {setting!r} is not valid YAML: {' '.join(str(error).split())}") from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value
