"""Lanes in plain Python: the words of codes, and the codes in words, element by element."""

from __future__ import annotations

import numpy as np


def place(i, lanes):
    """Word and lane of element i."""
    line, e = divmod(i, 16)
    block, lane = divmod(line, lanes)
    return 16 * block + e, lane


def length(d, lanes):
    lines = -(-d // 16)
    return 16 * -(-lines // lanes)


def pack(codes, width, dtype, lanes=None):
    bits = 8 * np.dtype(dtype).itemsize
    lanes = lanes or bits // width
    words = [0] * length(len(codes), lanes)
    for i, code in enumerate(codes):
        word, lane = place(i, lanes)
        words[word] += int(code) << width * lane
    return np.array(words, dtype)  # raises if one does not fit


def unpack(words, d, width, bias, lanes=None):
    """The lanes of a sum of words; ``bias`` is levels * workers."""
    bits = 8 * words.dtype.itemsize
    lanes = lanes or bits // width
    everywhere = sum(bias << width * j for j in range(lanes))
    out = []
    for i in range(d):
        word, lane = place(i, lanes)
        biased = (int(words[word]) + everywhere) % 2**bits
        out.append((biased >> width * lane) % 2**width - bias)
    return np.array(out, np.int64)
