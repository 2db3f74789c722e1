"""The wire formats, byte for byte; ``tests/golden`` says how the files are made."""

import struct
from collections.abc import Callable

import pytest

from tests import wire
from tests.golden import CASES, FOLDER, payload


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kernel_set", ["host", "reference"])
def test_payload(name: str, kernel_set: str, use_kernels: Callable[[str], None]) -> None:
    use_kernels(kernel_set)
    assert payload(CASES[name]) == (FOLDER / f"{name}.bin").read_bytes()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "indices" in case])
def test_files_say_what_the_format_says(name: str) -> None:
    """The tests' own reader finds the inputs in the files: the files were not only written, they are right."""
    case = CASES[name]
    payload = (FOLDER / f"{name}.bin").read_bytes()
    assert len(payload) == wire.nbytes(case["elements"], case["capacity"], case["wire"])
    assert payload[:2] == bytes([1, wire.WIRES.index(case["wire"])])
    assert payload[2:4] == b"\0\0"
    assert struct.unpack("<III", payload[4:16]) == (len(case["indices"]), case["elements"], case["capacity"])
    _, entries = wire.read(payload)
    assert list(entries) == case["indices"]
    bits = {"float32": 24, "bfloat16": 8, "float16": 11, "range8": 4}[case["wire"]]
    for value, written in zip(map(float.fromhex, case["values"]), entries.values(), strict=True):
        assert abs(value - written) <= max(abs(value) * 2.0**-bits, 2.0**-25 if case["wire"] == "float16" else 0)


def test_every_file_has_its_case() -> None:
    assert {path.stem for path in FOLDER.glob("*.bin")} == set(CASES)
