"""Numbers with units, as they are given on the command line."""

from __future__ import annotations

import re

TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
RATES = {"k": 1e3, "m": 1e6, "g": 1e9}


def seconds(text: str) -> float:
    """Return the seconds of ``120ms``, ``50us`` or ``0.2s``.

    >>> seconds("120ms"), seconds("50us")
    (0.12, 5e-05)

    Raises:
        ValueError: it is no such thing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(us|ms|s)", text.strip().lower())
    if not found:
        raise ValueError(f"{text!r} is not a time like 120ms, 50us or 0.2s")
    return float(f"{float(found[1]) * TIMES[found[2]]:.12g}")


def bandwidth(text: str) -> float:
    """Return the bits a second of ``10gbit``, ``10Gbps``, ``10 Gb/s`` or ``100mbit/s``.

    >>> bandwidth("2.5gbit"), bandwidth("2.5Gb/s")
    (2500000000.0, 2500000000.0)

    Raises:
        ValueError: it is no such thing, or is in bytes.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgKMG])([bB]|(?i:bits?|bytes?))(?:/s|ps)?", text.strip())
    if not found or float(found[1]) == 0:
        raise ValueError(f"{text!r} is not a rate like 10gbit, 10Gbps or 100Mb/s")
    if found[3] == "B" or found[3].lower().startswith("byte"):
        raise ValueError(f"{text!r} is a rate in bytes: give it in bits, {8 * float(found[1]):g}{found[2].lower()}bit")
    return float(found[1]) * RATES[found[2].lower()]


def count(option: str, text: str) -> int:
    """Return a number of elements: ``4000000``, ``4_000_000``, ``4,000,000`` or ``4e6``.

    Raises:
        ValueError: it is no such thing; names the option.
    """
    try:
        n = float(text.replace(",", "").replace("_", ""))
    except ValueError:
        n = 0
    if not (1 <= n < float("inf") and n == int(n)):
        raise ValueError(f"{option} must be a number of elements, such as 4000000 or 4e6, got {text!r}")
    return int(n)
