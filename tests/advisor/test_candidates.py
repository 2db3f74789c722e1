from collections.abc import Callable

import pytest

from hvd_compress import Compressor, TopK, TwoLevel, WarmUp, registry
from hvd_compress.advisor import candidates, catalogue, configurations


def test_all_configurations_and_compressors_are_candidates_in_their_last_state() -> None:
    found = candidates.for_advice()
    assert set(found) == {*configurations.files(), *registry.names()} - {"auto", "lgc", "lgc-gather"}
    assert found["sidco-0.001"].ratio == 0.001
    assert candidates.steady(TopK(WarmUp(0.02))).ratio == 0.02


def test_what_has_phases_cannot_be_timed() -> None:
    assert len(candidates.for_benchmark()) == len(registry.BUILT_IN) - 2
    with pytest.raises(ValueError, match="what lgc sends and costs changes from phase to phase"):
        candidates.for_benchmark(["topk", "lgc"])


def test_what_cannot_be_loaded_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """LGC without torch, say; it is named by ``list``, with what to install."""
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "torch" else found(name, *rest))
    assert len(candidates.for_benchmark()) == len(registry.BUILT_IN) - 2
    assert "lgc" not in candidates.for_advice()
    assert "pip install 'hvd-compress[lgc]'" in catalogue.entry("lgc").error


@pytest.mark.parametrize("choose", [candidates.for_benchmark, candidates.for_advice])
def test_each_compressor_is_made_once(
    monkeypatch: pytest.MonkeyPatch, choose: Callable[[], dict[str, Compressor]]
) -> None:
    made = []
    make = registry.from_config
    monkeypatch.setattr(registry, "from_config", lambda config: made.append(config) or make(config))
    chosen = choose()
    assert len(chosen) > 10
    wrapped = sum(isinstance(compressor, TwoLevel) for compressor in chosen.values())
    assert len(made) <= len(set(map(repr, made))) + wrapped


def test_what_a_third_party_cannot_load_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def names() -> list[str]:
        return ["broken", "topk"]

    def get(name: str) -> type[Compressor]:
        if name == "broken":
            raise AttributeError("module 'strangers' has no attribute 'Missing'")
        return TopK

    monkeypatch.setattr(registry, "names", names)
    monkeypatch.setattr(registry, "get", get)
    assert list(candidates.for_benchmark()) == ["TopK()"]
    assert "broken" not in candidates.for_advice()
    with pytest.raises(AttributeError):
        candidates.for_benchmark(["broken"])
