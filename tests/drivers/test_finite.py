"""Whether gradients are finite: alike on the host and on a device, where the host waits once."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from hvd_compress.drivers.torch.finite import FiniteCheck, if_finite, is_finite  # noqa: E402

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BAD = (torch.nan, torch.inf, -torch.inf)


@pytest.fixture(params=["host", "device"], autouse=True)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "device":
        monkeypatch.setenv("HVD_COMPRESS_KERNELS", "device")
    return str(request.param)


def largest(dtype: torch.dtype) -> torch.Tensor:
    """Finite elements, whose sum is not finite."""
    return torch.full((5,), torch.finfo(dtype).max, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_looked_at_together(dtype: torch.dtype) -> None:
    check = FiniteCheck()
    assert check()
    check.add(largest(dtype))
    check.add(torch.arange(3))  # integers always are
    check.add(torch.zeros(0, dtype=dtype))
    assert check()
    for bad in BAD:
        for sparse in (False, True):
            x = torch.ones(2, 2, dtype=dtype)
            x[1, 0] = bad
            check.add(x.to_sparse() if sparse else x)
            check.add(largest(dtype))
            assert not check()
    assert check()  # it begins anew
    check.add(torch.full((2,), torch.nan, dtype=dtype))
    check.forget()
    assert check()


def test_gradients_of_several_types_are_looked_at_together() -> None:
    check = FiniteCheck()
    for bad in (None, *DTYPES):
        for dtype in DTYPES:
            check.add(largest(dtype))
            if dtype == bad:
                check.add(torch.full((1,), torch.inf, dtype=dtype))
        assert check() is (bad is None)


def test_the_host_waits_once(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[str] = []
    for name in ("__bool__", "__float__", "item"):
        original = getattr(torch.Tensor, name)

        def counted(tensor: Any, name: str = name, original: Any = original) -> Any:
            waits.append(name)
            return original(tensor)

        monkeypatch.setattr(torch.Tensor, name, counted)
    check = FiniteCheck()
    for _ in range(4):
        check.add(torch.ones(3))
    assert len(waits) == (4 if place == "host" else 0)
    assert check()
    assert len(waits) == (4 if place == "host" else 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_gradient(dtype: torch.dtype) -> None:
    for finite in (largest(dtype), torch.zeros(0, dtype=dtype), torch.ones(2, 3, dtype=dtype)):
        assert is_finite(finite)
        assert torch.equal(if_finite(finite), finite)
    for bad in BAD:
        x = torch.ones(2, 3, dtype=dtype)
        x[1, 2] = bad
        assert not is_finite(x)
        zeros = if_finite(x)
        assert zeros.dtype == dtype
        assert torch.equal(zeros, torch.zeros_like(x))
