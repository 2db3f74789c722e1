import pytest

from hvd_compress.cli import quantities


@pytest.mark.parametrize(
    "text", ["10gbit", "10Gbit", "10GBIT", "10Gbps", "10Gb/s", "10Gb", "10 gb/s", "10gbit/s", "10Gbits/s", "10000mbit"]
)
def test_rates_as_people_write_them(text: str) -> None:
    assert quantities.bandwidth(text) == 10e9


@pytest.mark.parametrize("text", ["fast", "0gbit", "10", "10g", "-1gbit", "10gbit/h", "10tbit"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match=f"'{text}' is not a rate like 10gbit"):
        quantities.bandwidth(text)


@pytest.mark.parametrize("text", ["1.25GB/s", "1.25GBps", "1.25 gbytes/s"])
def test_bytes_are_not_taken_for_bits(text: str) -> None:
    with pytest.raises(ValueError, match="is a rate in bytes: give it in bits, 10gbit"):
        quantities.bandwidth(text)


@pytest.mark.parametrize("text", ["4000000", "4_000_000", "4,000,000", "4e6", "4E6"])
def test_counts(text: str) -> None:
    assert quantities.count("--size", text) == 4_000_000


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "inf", "nan", "1e400", ""])
def test_what_is_no_count(text: str) -> None:
    with pytest.raises(ValueError, match="--size must be a number of elements"):
        quantities.count("--size", text)


@pytest.mark.parametrize(("text", "seconds"), [("120ms", 0.12), ("50 us", 5e-5), ("0.2S", 0.2)])
def test_times(text: str, seconds: float) -> None:
    assert quantities.seconds(text) == seconds
