"""The sixteen bytes that every all-gathered payload begins with.

====== ====== =========================================================================
offset type   meaning
====== ====== =========================================================================
0      uint8  version (1)
1      uint8  codec: 0 to 3 sparse with float32, bfloat16, float16, range8 values; 16, 17, 18
              dense float32, bfloat16, float16; 32, 33 spectra; 48 ternary; 64 to 67 a region's entries with
              values as 0 to 3; 81, 82 a dense region's bfloat16, float16; 255 a third party's own
2      uint16 flags: 1 a gradient was not finite; 2 this worker asks for a flush; 4 it asks that the
              step be discarded
4      uint32 count: entries in use
8      uint32 elements of the bucket
12     uint32 capacity: entries there is room for
====== ====== =========================================================================
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from hvd_compress.kernels import CorruptPayload, UInt8, UInt32

VERSION = 1
NBYTES = 16
NONFINITE = 1
FLUSH = 2
DISCARD = 4
FLAGS = (NONFINITE, FLUSH, DISCARD)
SPARSE = 0
DENSE = 16
SPECTRUM = 32
TERNARY = 48
REGION = 64
DENSE_REGION = 80
CUSTOM = 255
CODECS = frozenset((*range(4), *range(16, 19), 32, 33, TERNARY, *range(64, 68), 81, 82, CUSTOM))
"""All that the field may be."""

_LAYOUT = struct.Struct("<BBHIII")
_COMPARED = np.array([0x0000FFFF, 0, 0xFFFFFFFF, 0xFFFFFFFF], np.uint32)  # not the flags, and not the count


def write(payload: UInt8, *, codec: int, count: int, elements: int, capacity: int) -> None:
    """Write the header with no flags set."""
    payload[:NBYTES] = np.frombuffer(_LAYOUT.pack(VERSION, codec, 0, count, elements, capacity), np.uint8)


def begins(payload: Any) -> bool:
    """Return whether ``payload`` is one (uint8, one-dimensional) that begins with a header, as ``write`` or, where an
    exchange sends the same payload again, ``set_flags`` leaves it."""
    return (
        isinstance(payload, np.ndarray)
        and payload.dtype == np.uint8
        and payload.ndim == 1
        and len(payload) >= NBYTES
        and int(payload[0]) == VERSION
        and int(payload[1]) in CODECS
        and int(payload[2]) <= NONFINITE | FLUSH | DISCARD
        and int(payload[3]) == 0
    )


def set_flags(payload: UInt8, flags: int) -> None:
    """Set (only) these flags."""
    payload[2] = flags & 0xFF
    payload[3] = flags >> 8


def flags(payloads: UInt8) -> int:
    """Return the flags set in any row of ``payloads`` (uint8, shape ``(workers, bytes)``)."""
    low = int(np.bitwise_or.reduce(payloads[:, 2]))
    return low | int(np.bitwise_or.reduce(payloads[:, 3])) << 8


def check(payloads: UInt8, *, codec: int, elements: int, capacity: int) -> UInt32:
    """Check every row's header against what this worker expects; return the counts, one per row.

    Raises:
        CorruptPayload: a field differs, or a count exceeds the capacity.
    """
    if payloads.shape[1] < NBYTES:
        raise CorruptPayload(f"a payload of {payloads.shape[1]} bytes is shorter than its header ({NBYTES})")
    wide = np.ascontiguousarray(payloads[:, :NBYTES]).view("<u4")
    counts: UInt32 = wide[:, 1].copy()
    right = _LAYOUT.pack(VERSION, codec, 0, 0, elements, capacity) * len(payloads)
    if (wide & _COMPARED).tobytes() != right or max(counts.tolist()) > capacity:
        _explain(payloads, counts, codec, elements, capacity)
    return counts


def _explain(payloads: UInt8, counts: UInt32, codec: int, elements: int, capacity: int) -> None:
    """Raise the error that names the first field that is wrong."""
    wide = np.ascontiguousarray(payloads[:, :NBYTES]).view("<u4")
    expected = {
        "version": (payloads[:, 0], VERSION),
        "codec": (payloads[:, 1], codec),
        "elements": (wide[:, 2], elements),
        "capacity": (wide[:, 3], capacity),
    }
    for field, (found, want) in expected.items():
        if (found != want).any():
            row = int(np.argmax(found != want))
            raise CorruptPayload(f"payload of worker {row}: {field} is {int(found[row])}, expected {want}")
    row = int(np.argmax(counts > capacity))
    raise CorruptPayload(f"payload of worker {row}: {int(counts[row])} entries exceed its capacity {capacity}")
