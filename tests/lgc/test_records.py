"""What ranks say of phase 2, and what is believed of it."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from hvd_compress import LGC, CorruptPayload
from hvd_compress.lgc.learning import CHUNK, Learning
from hvd_compress.lgc.records import DEAD, PUBLISHING, RECORD_NBYTES, TRAINING, Record, read_records
from hvd_compress.phased import Preparation


def learning() -> Learning:
    compressor = LGC(0.1, dense_steps=0)
    compressor.prepare(Preparation({"w": 5000}, 1, 2, True))
    return compressor.learning


def rows(*records: Record) -> np.ndarray:
    return np.stack([record.pack() for record in records])


def test_back_and_forth() -> None:
    records = [Record(PUBLISHING, 0, 7, 900, 2**32 - 1), Record(TRAINING, 1, 0, 0, 0)]
    assert rows(*records).shape == (2, RECORD_NBYTES)
    assert read_records(rows(*records)) == records


def test_bytes() -> None:
    assert Record(1, 0, 262144, 0x01020304, 5).pack().tobytes() == bytes.fromhex("01000000 00000400 04030201 05000000")


@pytest.mark.parametrize("record", [Record(DEAD + 1, 0, 0, 0, 0), Record(TRAINING, 2, 0, 0, 0)])
def test_what_no_rank_says(record: Record) -> None:
    with pytest.raises(CorruptPayload, match="payload of worker 1: status"):
        learning().heard(rows(Record(TRAINING, 1, 0, 0, 0), record), 3)


@pytest.mark.parametrize(
    "record",
    [
        Record(PUBLISHING, 0, 2**32 - 1, 2**32 - 1, 0),
        Record(PUBLISHING, 0, CHUNK, 2**32 - 1, 0),
        Record(PUBLISHING, 0, CHUNK + 1, 800_000, 0),
        Record(PUBLISHING, 0, 1001, 1000, 0),
        Record(TRAINING, 1, 1, 0, 0),
    ],
)
def test_a_chunk_that_cannot_be(record: Record) -> None:
    """It is refused before anything of its size is allocated."""
    rank = learning()
    tracemalloc.start()
    try:
        with pytest.raises(CorruptPayload, match=f"payload of worker 0: a chunk of {record.chunk} bytes after 0 of"):
            rank.chunk(rank.heard(rows(record, Record(TRAINING, 1, 0, 0, 0)), 3))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_chunk_after_all_have_come() -> None:
    rank, other = learning(), Record(TRAINING, 1, 0, 0, 0)
    assert rank.heard(rows(Record(PUBLISHING, 0, CHUNK, CHUNK + 100, 0), other), 3) == CHUNK
    rank.received(np.zeros(CHUNK, np.uint8), CHUNK, 500)
    with pytest.raises(CorruptPayload, match=f"a chunk of 101 bytes after {CHUNK} of"):
        rank.heard(rows(Record(PUBLISHING, 0, 101, CHUNK + 100, 0), other), 4)
    assert rank.heard(rows(Record(PUBLISHING, 0, 100, CHUNK + 100, 0), other), 4) == 100
