"""A second reader of sparse payloads, from the format's description alone; one entry at a time, nothing shared."""

import struct

import numpy as np

BLOCK = 65_536
WIRES = ("float32", "bfloat16", "float16", "range8")


def nbytes(elements: int, capacity: int, wire: str) -> int:
    """Size of a payload."""
    counts = -(-elements // BLOCK) * (2 if capacity < BLOCK else 4)
    return 16 + -(-counts // 8) * 8 + capacity * {"float32": 6, "range8": 3}.get(wire, 4) + 16 * (wire == "range8")


def read(payload: bytes) -> tuple[dict[str, int], dict[int, float]]:
    """The header's fields, and value by position; every value exactly as a Python float."""
    version, codec, flags, count, elements, capacity = struct.unpack_from("<BBHIII", payload, 0)
    fields = {"version": version, "codec": codec, "flags": flags, "count": count}
    fields |= {"elements": elements, "capacity": capacity}
    blocks = -(-elements // BLOCK)
    letter = "H" if capacity < BLOCK else "I"
    counts = struct.unpack_from(f"<{blocks}{letter}", payload, 16)
    at = 16 + -(-blocks * struct.calcsize(letter) // 8) * 8
    positions = struct.unpack_from(f"<{capacity}H", payload, at)
    at += 2 * capacity
    if codec == 0:
        values = struct.unpack_from(f"<{capacity}f", payload, at)
    elif codec == 1:  # bfloat16 is the upper half of a float32
        words = struct.unpack_from(f"<{capacity}H", payload, at)
        values = struct.unpack(f"<{capacity}f", b"".join(struct.pack("<HH", 0, word) for word in words))
    elif codec == 3:
        values = read_range8(payload[at:], capacity)
    else:
        values = struct.unpack_from(f"<{capacity}e", payload, at)
    entries: dict[int, float] = {}
    entry = 0
    for block, number in enumerate(counts):
        for _ in range(number):
            entries[block * BLOCK + positions[entry]] = values[entry]
            entry += 1
    assert entry == count == len(entries), "counts do not add up, or a position comes twice"
    assert not any(positions[count:]), "unused positions are zero"
    assert not any(values[count:]), "unused values are zero"
    return fields, entries


def read_range8(section: bytes, capacity: int) -> tuple[float, ...]:
    """A format, and the values of its codes: zero, up to the largest, and down to the smallest."""
    bits, mantissa, zero, base, low, high = struct.unpack_from("<BBHIff", section, 0)
    assert (bits, zero) == (8, 0)
    values = [0.0]
    for end, sign in ((high, 1.0), (-low, -1.0)):
        grid, number = base << 23 - mantissa, 0.0
        while number < end:
            number = min(struct.unpack("<f", struct.pack("<I", grid))[0], end)
            values.append(sign * number)
            grid += 1 << 23 - mantissa
    assert len(values) <= 256
    return tuple(values[code] for code in section[16 : 16 + capacity])


def dense(payload: np.ndarray) -> np.ndarray:
    """float32, the payload's elements; what the receivers of this one payload reconstruct."""
    fields, entries = read(payload.tobytes())
    out = np.zeros(fields["elements"], np.float32)
    out[list(entries)] = list(entries.values())
    return out
