from pathlib import Path

from hvd_compress.cli import compare
from tests.cli.recorded import write

PNG = b"\x89PNG"


def test_files_are_compared_with_the_first(command, tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.json", "plain", 1000, data={"name": "digits", "note": "no network"}),
        write(tmp_path / "b.json", "small", 10, complete=False, data={"name": "digits", "note": "no network"}),
    ]
    picture = tmp_path / "c.png"
    ran = command("compare", *files, "--plot", picture)
    assert ran.code == 0, ran.err
    for shown in (
        "mlp, 250 parameters, digits, 2 ranks",
        "100x",
        "87.50 %",
        "13.50 ms",
        "no network: accuracies mean nothing",
        "small was cut off after epoch 2",
    ):
        assert shown in ran.words
    assert picture.read_bytes().startswith(PNG)


def test_of_a_folder_the_first_is_the_one_that_sends_most(command, tmp_path: Path) -> None:
    write(tmp_path / "runs" / "a.json", "tiny", 10)
    write(tmp_path / "runs" / "b.json", "plain", 1000)
    (tmp_path / "runs" / "notes.json").write_text("{}")
    ran = command("compare", tmp_path / "runs")
    assert ran.code == 0
    assert ran.out.index("plain") < ran.out.index("tiny")
    assert "left out, not records" in ran.err
    assert "notes.json" in ran.err


def test_experiments_are_not_mixed(command, tmp_path: Path) -> None:
    write(tmp_path / "a.json", "plain", 1000)
    write(tmp_path / "b.json", "plain", 100, flags={"seed": 1, "epochs": 3})
    write(tmp_path / "c.json", "plain", 1000, ranks=4)
    first, second = command("compare", tmp_path, "--plot", tmp_path / "x.svg", "--json").json
    assert [row["label"] for row in first["rows"]] == ["plain, seed 0", "plain, seed 1"]
    assert [row["smaller"] for row in first["rows"]] == [1, 10]
    assert first["warnings"] == ["The runs differ in epochs."]
    assert (second["ranks"], len(second["rows"]), second["warnings"]) == (4, 1, [])
    assert "<svg" in (tmp_path / "x.svg").read_text()


def test_a_run_that_sends_nothing(tmp_path: Path, command) -> None:
    row = command("compare", write(tmp_path / "a.json", "alone", 0), "--json").json[0]["rows"][0]
    assert row["smaller"] is None
    assert command("compare", tmp_path / "a.json", "--plot", tmp_path / "a.png").code == 0


def test_a_run_without_a_step(command, tmp_path: Path) -> None:
    steps = {key: [] for key in ("sent_bytes", "compute", "compress", "wait", "decompress")}
    path = write(tmp_path / "none.json", "failed", 0, steps=steps)
    ran = command("compare", path)
    assert (ran.code, ran.out) == (2, "")
    assert f"{path} is the record of a run that took no step" in ran.err
    write(tmp_path / "a.json", "plain", 1000)
    ran = command("compare", tmp_path)
    assert ran.code == 0
    assert "plain" in ran.out
    assert "none.json" in ran.err


def test_wrong_usage(command, tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "missing.json", "missing.json cannot be read"),
        (tmp_path, "holds no record"),
    ):
        ran = command("compare", path)
        assert ran.code == 2
        assert ran.out == ""
        assert message in " ".join(ran.err.split())


def test_smooth() -> None:
    assert compare.smooth([3.0] * 20) == [3.0] * 20
    assert compare.smooth([0.0, 3.0, 6.0, 9.0], window=3) == [1.5, 3.0, 6.0, 7.5]
    assert compare.smooth([]) == []
