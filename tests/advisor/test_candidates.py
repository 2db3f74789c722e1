import pytest

from hvd_compress import TopK, WarmUp, registry
from hvd_compress.advisor import candidates, catalogue, configurations


def test_all_configurations_and_compressors_are_candidates_in_their_last_state() -> None:
    found = candidates.for_advice()
    assert set(found) == {*configurations.files(), *registry.names()} - {"lgc", "lgc-gather"}
    assert found["sidco-0.001"].ratio == 0.001
    assert candidates.steady(TopK(WarmUp(0.02))).ratio == 0.02


def test_what_has_phases_cannot_be_timed() -> None:
    assert len(candidates.for_benchmark()) == len(registry.BUILT_IN) - 1
    with pytest.raises(ValueError, match="what lgc sends and costs changes from phase to phase"):
        candidates.for_benchmark(["topk", "lgc"])


def test_what_cannot_be_loaded_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """LGC without torch, say; it is named by ``list``, with what to install."""
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "torch" else found(name, *rest))
    assert len(candidates.for_benchmark()) == len(registry.BUILT_IN) - 1
    assert "lgc" not in candidates.for_advice()
    assert "pip install 'hvd-compress[lgc]'" in catalogue.entry("lgc").error
