import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import hvd_compress
from hvd_compress import Compressor, SIDCo, TopK, from_config, registry
from tests.simulation import Simulation


def test_built_in_names() -> None:
    """Each name is its class's own, and the public classes are all there."""
    for name in registry.BUILT_IN:
        cls = registry.get(name)
        assert issubclass(cls, Compressor)
        assert cls.name == name
        assert getattr(hvd_compress, cls.__name__) is cls
    assert set(registry.BUILT_IN) <= set(registry.names())
    assert registry.names() == sorted(registry.names())
    assert hvd_compress.compressor_names() == registry.names()


@pytest.mark.parametrize(
    ("wrong", "right"), [("sidko", "sidco"), ("top-k", "topk"), ("TOPK", ""), ("quux", ""), ("nope", "")]
)
def test_unknown_name(wrong: str, right: str) -> None:
    hint = rf" \(did you mean '{right}'\?\); " if right else "; "
    for ask in (registry.get, from_config, lambda name: from_config({"name": name})):
        with pytest.raises(ValueError, match=rf"unknown compressor '{wrong}'{hint}there are .*dense.*topk"):
            ask(wrong)


def test_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: sidco\nratio: {schedule: warmup, final: 0.001}\nfit: pareto\n", encoding="utf-8")
    for path in (file, str(file)):
        compressor = from_config(path)
        assert isinstance(compressor, SIDCo)
        assert compressor.to_config() == {
            "name": "sidco",
            "fit": "pareto",
            "ratio": {"schedule": "warmup", "final": 0.001, "start": 0.25, "factor": 0.25, "every": 100},
        }


def test_config_is_not_changed() -> None:
    config: dict[str, Any] = {"name": "topk", "ratio": {"schedule": "warmup", "final": 0.1}}
    from_config(config)
    assert config == {"name": "topk", "ratio": {"schedule": "warmup", "final": 0.1}}


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("name: [", ValueError, "mine.yaml is not valid YAML"),
        ("- name: topk", TypeError, "mine.yaml must be a mapping with the key 'name', got list"),
        ("", TypeError, "mine.yaml must be a mapping with the key 'name', got NoneType"),
        ("ratio: 0.1", ValueError, "mine.yaml needs the key 'name': one of .*topk"),
        ("name: 3", ValueError, "mine.yaml needs the key 'name'"),
        (
            "name: topk\nration: 0.1",
            ValueError,
            r"unknown key 'ration' for compressor 'topk' \(did you mean 'ratio'\?\)",
        ),
        ("name: topk\n1: 0.1", ValueError, "unknown key 1 for compressor 'topk'"),
        ("name: topk\nratio: 0.1\nratio: 0.2", ValueError, "mine.yaml is not valid YAML: 'ratio' is there twice"),
        ("name: topk\n1: 0.1\n0x1: 3", ValueError, "mine.yaml is not valid YAML: 1 is there twice"),
        ("name: topk\nratio: {final: 1, final: 1}", ValueError, "mine.yaml is not valid YAML: 'final' is there twice"),
        ("name: topk\nratio: &a 0.1\nseed: *a", ValueError, r"mine.yaml is not valid YAML: aliases \(\*a\) are not"),
        ("name: topk\nratio: " + "[" * 20_000, ValueError, "mine.yaml is not valid YAML: more than 16 levels"),
        ("name: topk\nratio: " + "{a: " * 500, ValueError, "mine.yaml is not valid YAML: more than 16 levels"),
        ("name: topk\nratio: [" + "1, " * 30_000 + "1]", ValueError, "mine.yaml is larger than 65536 bytes"),
        ("name: topk\nratio: [" + "1, " * 3000 + "1]", TypeError, r"mine.yaml: ratio must be a number.*1, \.\.\.\]$"),
        ("name: topk\nratio: 2001-02-31", ValueError, "mine.yaml is not valid YAML: day is out of range"),
        ("name: topk\nseed: " + "9" * 5000, ValueError, "mine.yaml is not valid YAML: Exceeds the limit"),
        (
            "name: topk\nprocess_set: 5",
            TypeError,
            "mine.yaml: process_set must be one of Horovod's process sets, got 5",
        ),
        ("name: sidco\nstages: 1000000", ValueError, "mine.yaml: stages must be from 1 to 32, got 1000000"),
        ("name: topk\nratio: {schedule: [1]}", ValueError, "mine.yaml: a schedule needs 'schedule'"),
        (
            "name: topk\nratio: 1e-3",
            TypeError,
            "ratio must be a number.*got '1e-3'; YAML takes 1e-3 for text, write 1.0e-3",
        ),
    ],
    ids=lambda value: f"{value:.30}" if isinstance(value, str) else "",
)
def test_bad_files(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=message):
        from_config(file)


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes("name: topk  # größer".encode("latin-1"))
    with pytest.raises(ValueError, match=r"mine\.yaml is not UTF-8: byte 16 is 0xf6"):
        from_config(file)
    file.write_text("name: topk", encoding="utf-8-sig")  # as some editors save
    assert isinstance(from_config(file), TopK)


def test_aliases_that_make_a_short_file_a_large_value(tmp_path: Path) -> None:
    """In a file they are not taken at all; a value like that from Python is not written out in a message."""
    laughs: Any = "ha"
    lines = ["a0: &a0 ha"]
    for level in range(1, 12):
        laughs = [laughs] * 10
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    file = tmp_path / "laughs.yaml"
    file.write_text("\n".join([*lines, "name: topk", "ratio: *a11"]), encoding="utf-8")
    with pytest.raises(ValueError, match=r"laughs\.yaml is not valid YAML: aliases \(\*a0\) are not taken"):
        from_config(file)
    for name, argument in (("topk", "ratio"), ("topk", "nonfinite"), ("lgc", "encoder"), ("lgc", "dense")):
        with pytest.raises((TypeError, ValueError), match=argument) as caught:
            from_config({"name": name, argument: laughs})
        assert len(str(caught.value)) < 20_000


def test_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", str(tmp_path / "none.yml"), tmp_path / "topk"):
        with pytest.raises(FileNotFoundError):
            from_config(path)


def test_a_folder_of_the_same_name_is_no_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "topk").mkdir()
    monkeypatch.chdir(tmp_path)
    assert isinstance(from_config("topk"), TopK)


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution that brings a compressor."""
    (tmp_path / "elsewhere.py").write_text(
        textwrap.dedent(
            """
            import hvd_compress

            @hvd_compress.compressor_dataclass
            class Halves(hvd_compress.Compressor):
                name = "halves"
                schedule = (hvd_compress.AllReduce,)
                factor: float = 0.5

                def exchange(self, bucket):
                    total = yield hvd_compress.AllReduce(bucket.values)
                    return total * bucket.values.dtype.type(self.factor / bucket.workers)
            """
        ),
        encoding="utf-8",
    )
    info = tmp_path / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(
        "[hvd_compress.compressors]\nhalves = elsewhere:Halves\nbroken = elsewhere:Missing\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "elsewhere", raising=False)


@pytest.mark.usefixtures("third_party")
def test_entry_points() -> None:
    assert "halves" in registry.names()
    compressor = from_config({"name": "halves", "factor": 0.25, "min_numel": 1})
    assert repr(compressor) == "Halves(factor=0.25, min_numel=1)"
    assert compressor.to_config() == {"name": "halves", "factor": 0.25, "min_numel": 1}
    mean = Simulation(compressor, 2).step({"w": [[4.0], [8.0]]})["w"]
    assert mean.tolist() == [1.5]
    with pytest.raises(ValueError, match=r"did you mean 'halves'"):
        registry.get("halvs")
    with pytest.raises(AttributeError, match="Missing"):
        registry.get("broken")


@pytest.mark.usefixtures("third_party")
def test_a_class_by_its_place(tmp_path: Path) -> None:
    """Wherever a compressor is named: by itself, in a file, as a candidate, around another one."""
    (tmp_path / "elsewhere.py").open("a").write("\nclass Nameless(Halves): pass\nwrong = 3\n")
    assert registry.get("elsewhere:Halves").name == "halves"
    assert repr(from_config("elsewhere:Halves", factor=0.25)) == "Halves(factor=0.25)"
    file = tmp_path / "mine.yaml"
    file.write_text("name: elsewhere:Nameless\nfactor: 2.0\n", encoding="utf-8")
    config = {"name": "elsewhere:Nameless", "factor": 2.0}
    assert from_config(file).to_config() == config  # not the name that its base has
    assert repr(from_config(from_config(file).to_config(), factor=1.0)) == "Nameless(factor=1.0)"
    around = from_config({"name": "two-level", "compressor": config})
    assert around.to_config()["compressor"] == config
    assert repr(hvd_compress.Auto(candidates=["elsewhere:Nameless"]).candidates) == "(Nameless(),)"
    for place, message in (
        ("nowhere:Halves", "there is no module nowhere; it must be installed, or its folder in PYTHONPATH"),
        ("elsewhere:Missing", "there is no such class"),
        ("elsewhere:", "there is no such class"),
        (":Halves", "there is no such class"),
        (".elsewhere:Halves", "write the module's whole name"),
        ("./elsewhere:Halves", "write the module's whole name"),
        ("elsewhere:wrong", "3 is not a class derived from Compressor"),
    ):
        with pytest.raises(ValueError, match=message):
            from_config(place)


def test_arguments_beside_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: sidco\nratio: 0.1\nfit: pareto\n", encoding="utf-8")
    assert repr(from_config(file, ratio=0.02)) == "SIDCo(ratio=0.02, fit='pareto')"
    assert repr(from_config("sidco", ratio={"schedule": "warmup", "final": 0.001})).startswith("SIDCo(ratio=WarmUp(")
    with pytest.raises(ValueError, match=r"unknown key 'ration' for compressor 'sidco' \(did you mean 'ratio'"):
        from_config("sidco", ration=0.1)


@pytest.mark.usefixtures("third_party")
def test_built_in_names_cannot_be_taken_over(tmp_path: Path) -> None:
    (tmp_path / "elsewhere-1.0.dist-info" / "entry_points.txt").write_text(
        "[hvd_compress.compressors]\ntopk = elsewhere:Halves\n", encoding="utf-8"
    )
    assert registry.get("topk") is TopK
    assert registry.names().count("topk") == 1
