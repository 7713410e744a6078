"""Arguments and settings files of the label command."""

from __future__ import annotations

from pathlib import Path

import pytest
from label_runs import Label

import cdul_fast
from cdul_fast.cli import run_main
from cdul_fast.label import main


def test_dry_run_writes_nothing(
    label: Label, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(photos, "--dry-run", "--shard-size", "5") == 0
    out = capsys.readouterr().out
    assert "12 photos" in out
    assert "3 shards" in out
    assert "120 in all" in out
    assert not (tmp_path / "run").exists()


def test_config_file_flags_and_print_config(
    label: Label, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text(f"source: {photos}\ngrid: 2\nzeta: 0.25\n")
    assert label("--config", tmp_path / "c.yaml", "--grid", "1", "--preset", "paper", "--print-config") == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    import yaml

    shown = yaml.safe_load(printed)
    assert (shown["grid"], shown["zeta"], shown["model"]) == (1, 0.25, "stub")
    assert run_main(main, ["--config", str(tmp_path / "printed.yaml")]) == 0
    run = cdul_fast.open_run(tmp_path / "run")
    assert (run.config["grid"], run.config["zeta"]) == (1, 0.25)
    assert run.shards[0].cosines().shape[1] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "many"], "--grid"),
        (["--grid", "0"], "--grid"),
        (["--overlap", "nan"], "--overlap"),
        (["--scale", "1e300"], "--scale"),
        (["--aggregator", "median"], "--aggregator"),
        (["--shard", "4/3"], "--shard"),
        (["--bogus"], "--bogus"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--list", "list.txt"], "source or --list"),
        (["--overwrite", "--retry-failed"], "--retry-failed"),
        (["--format", "voc"], "JPEGImages"),
        (["--split", "train"], "--split"),
        (["--preset", "worst"], "preset"),
        (["--top-k", "1", "--expected-labels", "2"], "--expected-labels"),
    ],
)
def test_bad_arguments_get_one_line_and_code_2(
    label: Label, photos: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert label(photos, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grid: [1", "not a YAML file"),
        ("- 1", "mapping"),
        ("grids: 3", "grids"),
        ("grid: x", "grid"),
        ("config: a.yaml", "config"),
        ("a" * (1 << 21), "larger than"),
        ("lam: .nan", "--lam"),
        ("limit: 100000000000000000000000000000", "--limit"),
        ("&a [*a, *a]", "aliases are not read"),
    ],
)
def test_bad_config_files(
    label: Label, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert label(photos, "--config", tmp_path / "c.yaml") == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_what_cannot_be_started(
    label: Label, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(tmp_path / "nowhere") == 2
    assert "no such file or folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert label(tmp_path / "empty") == 1
    assert "no photos found" in capsys.readouterr().err
    assert label(photos, classes=None) == 2
    assert "--classes is missing" in capsys.readouterr().err
    assert label(photos, classes="absent.txt") == 2
    assert "absent.txt" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert label(photos, out="file") == 1
    assert "cannot make the folder" in capsys.readouterr().err
