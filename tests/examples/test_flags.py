from pathlib import Path

import flags
import pytest

import hvd_compress

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_is_valid(path: Path) -> None:
    compressor = hvd_compress.from_config(path)
    assert hvd_compress.from_config(compressor.to_config()).to_config() == compressor.to_config()
    assert path.stem.startswith(compressor.name)


def test_there_is_a_configuration_for_every_compressor() -> None:
    assert {hvd_compress.from_config(path).name for path in CONFIGS} == set(hvd_compress.compressor_names())


def test_overrides() -> None:
    compressor = flags.compression_of("sidco", 0.02, ["fit=pareto", "stages=3", "error_feedback=false"])
    assert repr(compressor) == "SIDCo(ratio=0.02, error_feedback=False, fit='pareto', stages=3)"
    warm = flags.compression_of("topk", settings=["ratio={schedule: warmup, final: 0.001, every: 7}"])
    assert warm is not None
    assert warm.to_config()["ratio"]["every"] == 7


def test_the_optimizer_has_no_momentum_where_the_compressor_has() -> None:
    assert flags.parse("", ["--compression", "dgc"])[0].momentum == 0
    assert flags.parse("", ["--compression", "sidco"])[0].momentum == 0.9
    assert flags.parse("", ["--compression", "dgc", "--momentum", "0.5"])[0].momentum == 0.5


def test_weight_decay_goes_where_the_momentum_is() -> None:
    for name, of_the_optimizer in (("dgc", 0.0), ("sidco", 0.01), ("none", 0.01)):
        chosen, compressor = flags.parse("", ["--compression", name, "--weight-decay", "0.01"])
        assert chosen.optimizer_decay == of_the_optimizer
        assert getattr(compressor, "weight_decay", 0.0) == 0.01 - of_the_optimizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compression", "sidko"], "did you mean 'sidco'"),
        (["--compression", "missing.yaml"], "missing.yaml"),
        (["--compression", "sidco", "--ratio", "2"], "ratio must be in"),
        (["--compression", "sidco", "--set", "fitt=pareto"], "did you mean 'fit'"),
        (["--compression", "sidco", "--set", "fit"], "KEY=VALUE"),
        (["--compression", "sidco", "--set", "fit={"], "not valid YAML"),
        (["--compression", "dense", "--ratio", "0.1"], "unknown key 'ratio'"),
        (["--ratio", "0.1"], "takes no parameters"),
        (["--epochs", "0"], "at least 1"),
        (["--lr", "nan"], "positive number"),
        (["--epoch", "3"], "unrecognized arguments: --epoch"),
        (["--resume"], "needs --checkpoint"),
        (["--stop-after", "1"], "needs --checkpoint"),
        (["--record", str(Path(__file__).parent)], "must be a file, and is a folder"),
        (["--record", f"{__file__}/run.json"], "its folder cannot be made"),
        (["--tensorboard", __file__], "must be a folder"),
        (["--data", "digits", "--data-dir", "x"], "--data-dir is for Fashion-MNIST"),
    ],
)
def test_wrong_flags_end_with_status_2_and_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        flags.parse("", arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_only_the_first_rank_complains(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setattr(flags.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as end:
        flags.parse("", ["--nonsense"])
    assert end.value.code == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("flag", ["--record", "--checkpoint"])
def test_the_folder_of_what_is_written_is_made(flag: str, tmp_path: Path) -> None:
    flags.parse("", [flag, str(tmp_path / "runs" / "more" / "none.json")])
    assert (tmp_path / "runs" / "more").is_dir()
