from pathlib import Path

import pytest
import yaml

import hvd_compress
from hvd_compress import registry
from hvd_compress.advisor import catalogue, configurations


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_docstrings_say_what_is_needed(name: str) -> None:
    entry = catalogue.entry(name)
    assert entry.summary.endswith(".")
    assert entry.advice
    for parameter in entry.parameters:
        assert parameter.description, f"{name} does not say what {parameter.name} is"
    assert {p.name for p in entry.parameters} == {*registry.get(name).parameters()} - {"process_set"}


@pytest.mark.parametrize("name", registry.BUILT_IN)
def test_generated_configurations_are_the_defaults(name: str) -> None:
    generated = yaml.safe_load(configurations.generated(catalogue.entry(name)))
    assert hvd_compress.from_config(generated).to_config() == {"name": name}
    assert set(generated) == {"name", *registry.get(name).parameters()} - {"process_set"}


def test_an_installed_package_has_the_files_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "hvd_compress" / "configs"
    inside.mkdir(parents=True)
    (inside / "mine.yaml").write_text("name: topk\n")
    monkeypatch.setattr(configurations, "__file__", str(tmp_path / "hvd_compress" / "advisor" / "configurations.py"))
    assert configurations.text("mine") == "name: topk\n"
