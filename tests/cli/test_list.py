import sys
import textwrap
from pathlib import Path

import pytest
import yaml

import hvd_compress
from hvd_compress import registry

CHECKOUT = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution that brings a compressor, one that needs an argument, and two that are broken."""
    (tmp_path / "strangers.py").write_text(
        textwrap.dedent(
            '''
            import hvd_compress

            @hvd_compress.compressor_dataclass
            class Plain(hvd_compress.Dense):
                name = "plain"
                factors: tuple = (1, 2)

            @hvd_compress.compressor_dataclass
            class Needy(hvd_compress.Dense):
                """Needs [a] factor.

                Args:
                    factor: what it multiplies
                        by: a number.

                Tuning: 2.
                """
                name = "needy"
                factor: float
            '''
        )
    )
    info = tmp_path / "strangers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[hvd_compress.compressors]\nplain = strangers:Plain\nneedy = strangers:Needy\n"
        "broken = strangers:Missing\ngone = nowhere:Gone\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "strangers", raising=False)


def test_all_of_them(command) -> None:
    ran = command("list")
    assert ran.code == 0
    for name in registry.BUILT_IN:
        assert name in ran.out
    found = {entry["name"]: entry for entry in command("list", "--json").json}
    assert set(found) == set(registry.names())
    sidco = found["sidco"]
    assert sidco["summary"].startswith("Send the elements above a threshold")
    assert sidco["advice"].startswith('leave stages="auto"')
    assert sidco["collectives"] == ["AllGather"]
    assert sidco["memory"]
    parameters = {parameter["name"]: parameter for parameter in sidco["parameters"]}
    assert list(parameters)[:3] == ["ratio", "fit", "stages"]
    assert parameters["ratio"]["default"] == 0.01
    assert parameters["wire"]["description"].startswith("type of the values on the wire")


def test_one(command) -> None:
    ran = command("list", "dgc")
    assert ran.code == 0
    assert "Top-k of a momentum-corrected velocity" in ran.out
    assert "Tuning: the momentum you would give the optimizer" in ran.out
    assert "beta, in [0, 1)." in ran.out
    assert command("list", "dgc", "--json").json["name"] == "dgc"


def test_unknown_names_are_wrong_usage(command) -> None:
    for arguments in (["sidko"], ["--config", "sidko"]):
        ran = command("list", *arguments)
        assert ran.code == 2
        assert ran.out == ""
        assert "'sidko' (did you mean 'sidco'?)" in ran.err
    assert command("list", "topk", "--config", "topk").code == 2
    assert "did you mean" not in command("list", "nope").err  # half of its letters are topk's


@pytest.mark.usefixtures("third_party")
def test_third_parties(command) -> None:
    ran = command("list")
    assert ran.code == 0
    assert "plain (strangers)" in ran.words or "(strangers)" in ran.words
    assert (
        "cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"
        in {e["name"]: e["error"] for e in command("list", "--json").json}["gone"]
    )
    plain = command("list", "plain", "--json").json
    assert plain["summary"] == ""
    assert plain["parameters"][0] == {"name": "factors", "default": [1, 2], "required": False, "description": ""}
    needy = command("list", "needy")
    assert "Needs [a] factor." in needy.out
    assert "(required)" in needy.out
    broken = command("list", "broken")
    assert broken.code == 1
    assert "cannot be loaded: AttributeError" in broken.out
    assert command("list", "--config", "broken").code == 2


@pytest.mark.usefixtures("third_party")
def test_a_configuration_for_what_has_no_file(command) -> None:
    text = command("list", "--config", "needy").out
    assert text.startswith("# Needs [a] factor.\n# 2.\nname: needy\n\n# what it multiplies by: a number.\nfactor:  # ")
    plain = yaml.safe_load(command("list", "--config", "plain").out)
    assert plain["factors"] == [1, 2]
    assert repr(hvd_compress.from_config(plain)) == "Plain(factors=[1, 2])"


@pytest.mark.parametrize("path", sorted(CHECKOUT.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_files_of_the_checkout_are_what_is_printed(command, path: Path) -> None:
    assert command("list", "--config", path.stem).out == path.read_text()
    ran = command("list", "--config", path.stem, "--json").json
    assert hvd_compress.from_config(ran["config"]).to_config() == hvd_compress.from_config(path).to_config()


def test_a_class_by_its_place(command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "by_place.py").write_text(
        'import hvd_compress\nclass Mine(hvd_compress.TopK):\n    """Mine alone."""\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    ran = command("list", "by_place:Mine")
    assert ran.code == 0
    assert "by_place:Mine (by_place.Mine)" in ran.words
    assert "Mine alone." in ran.words
    assert "\nname: by_place:Mine\n" in command("list", "--config", "by_place:Mine").out
    ran = command("list", "by_place:Yours")
    assert ran.code == 1
    assert "there is no such class" in ran.words
