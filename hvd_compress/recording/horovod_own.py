"""Horovod's own compressions, which count nothing: what they are called in records, and the bytes that they send."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hvd_compress.validation import shown


@dataclass(frozen=True)
class HorovodCompression:
    """One of the attributes of ``hvd.Compression``."""

    name: str
    """The attribute's, which records have as their ``compression``."""
    class_name: str
    """The attribute's value, a class of ``horovod.torch.compression`` or ``horovod.tensorflow.compression``."""
    label: str
    """What tables and pictures call it."""
    width: int
    """The bytes that it sends of an element of float32."""


HOROVOD = {
    one.name: one
    for one in (
        HorovodCompression("none", "NoneCompressor", "Horovod uncompressed", 4),
        HorovodCompression("fp16", "FP16Compressor", "Horovod fp16", 2),
    )
}


def recognized(compression: Any) -> HorovodCompression:
    """Return what Horovod does when it is given ``compression``, one of its own or None.

    No framework is imported: Horovod's classes are known by their names.

    Raises:
        TypeError: it is none of them, so that nobody knows what it sends.
    """
    if compression is None:
        return HOROVOD["none"]
    cls = compression if isinstance(compression, type) else type(compression)
    for one in HOROVOD.values():
        if cls.__name__ == one.class_name and cls.__module__.partition(".")[0] == "horovod":
            return one
    raise TypeError(
        "compression must be a compressor of hvd_compress (an instance), Horovod's Compression.none or "
        f"Compression.fp16, or None, got {shown(compression)}"
    )
