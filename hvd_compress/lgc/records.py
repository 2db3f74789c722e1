"""Records: what every rank says of phase 2 in the payload of the control bucket, in sixteen bytes.

====== ====== ==================================================================================
offset type   meaning
====== ====== ==================================================================================
0      uint8  status of the leader's training (``TRAINING`` to ``DEAD``)
1      uint8  1 if the leader wants vectors
4      uint32 bytes of the chunk of weights that follows in a broadcast
8      uint32 bytes of all weights
12     uint32 checksum of what this rank decodes from a made-up code; 0: it has no autoencoder yet
====== ====== ==================================================================================
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from hvd_compress.exchange import Array
from hvd_compress.kernels import CorruptPayload, UInt8

RECORD_NBYTES = 16

TRAINING, PUBLISHING, WORSE, DEAD = range(4)
"""How the leader's training stands: under way, its weights are being sent, or it has ended without use."""

REASONS = {
    WORSE: "the autoencoder is worse than top-k",
    DEAD: "the trainer of the autoencoder has died",
}
"""Why all ranks stay with top-k, by the leader's status."""

_LAYOUT = struct.Struct("<BB2xIII")


class Record(NamedTuple):
    """See the module's docstring."""

    status: int
    wanted: int
    chunk: int
    total: int
    checksum: int

    def pack(self) -> UInt8:
        """Return the record's bytes."""
        return np.frombuffer(_LAYOUT.pack(*self), np.uint8)


def read_records(rows: Array) -> list[Record]:
    """Return the records of all ranks (uint8, ``(workers, RECORD_NBYTES)``).

    Raises:
        CorruptPayload: one says what no rank says.
    """
    records = [Record(*_LAYOUT.unpack(row.tobytes())) for row in rows]
    for rank, record in enumerate(records):
        if record.status > DEAD or record.wanted > 1:
            raise CorruptPayload(
                f"payload of worker {rank}: status {record.status}, wanted {record.wanted} in a record"
            )
    return records
