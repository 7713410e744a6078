"""evaluate, relabel and compare_labels from the command line: output, JSON, exit codes, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from run_factory import CLASSES, make_run

from cdul_fast import compare_labels, evaluate, relabel
from cdul_fast.cli import run_main
from cdul_fast.data.run_dir import open_run

COMMANDS = {"evaluate": evaluate.main, "relabel": relabel.main, "compare_labels": compare_labels.main}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    run = make_run(folder / "run", photos=20, shard_size=8, write_photos=False, seed=2)
    rows = [
        f"{path},{CLASSES[int(scores.argmax())]}"
        for path, scores in zip(*open_run(run).scores(), strict=True)
    ]
    (folder / "truth.csv").write_text("\n".join(["image,labels", *rows]), encoding="utf-8")
    (folder / "zebra.csv").write_text("image,labels\na.jpg,zebra\n", encoding="utf-8")
    (folder / "elsewhere.csv").write_text("image,labels\nelsewhere.jpg,cat\n", encoding="utf-8")
    return folder


def call(command: str, *arguments: object) -> int:
    return run_main(COMMANDS[command], [str(argument) for argument in arguments])


def test_evaluate_prints_a_table_and_writes_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = folder / "figures.json"
    assert call("evaluate", folder / "run", "--truth", folder / "truth.csv", "--json", target) == 0
    shown = capsys.readouterr()
    assert "mAP" in shown.out and "precision" in shown.out and not shown.err
    figures = json.loads(target.read_text(encoding="utf-8"))
    assert figures["photos"] == 20 and set(figures["classes"]) == set(CLASSES)
    assert call("evaluate", folder / "run", "--truth", folder / "truth.csv", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == figures


def test_compare_labels_prints_every_method(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("compare_labels", folder / "run", "--truth", folder / "truth.csv")
    assert call(*arguments, "--published", "voc2012", "--json", folder / "methods.json") == 0
    shown = capsys.readouterr().out
    for word in ("clip", "global", "mean", "max", "cdul", "90.3"):
        assert word in shown
    figures = json.loads((folder / "methods.json").read_text(encoding="utf-8"))
    assert figures["methods"]["cdul"]["map"] > 0.5 and figures["zeta_search"]["0"] > 0


def test_relabel_writes_a_new_run(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new"
    assert (
        call("relabel", folder / "run", "--out", out, "--zeta", 0.2, "--aggregator", "max", "--calibrate")
        == 0
    )
    assert "20 photos relabelled, 1 kept without scores" in capsys.readouterr().out
    assert open_run(out).config["aggregator"] == "max"
    assert call("relabel", out, "--in-place", "--top-k", 1) == 0
    assert {len(row) for row in open_run(out).table(["labels"])["labels"].to_pylist()} == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("evaluate", "{}/none", "--truth", "{}/truth.csv"), 1, "no run directory"),
        (("evaluate", "{}/run", "--truth", "{}/none.csv"), 2, "no such file"),
        (("evaluate", "{}/run"), 2, "--truth is missing"),
        (("evaluate", "--truth", "{}/truth.csv"), 2, "the run directory is missing"),
        (("evaluate", "{}/run", "--truth", "{}/zebra.csv"), 2, "share no class"),
        (("evaluate", "{}/run", "--truth", "{}/elsewhere.csv"), 1, "share no photo"),
        (("evaluate", "{}/run", "--truth", "{}/truth.csv", "--wrong", "1"), 2, "--wrong"),
        (("evaluate", "{}/run", "--truth", "{}/truth.csv", "--json", "{}/no/x.json"), 1, "x.json"),
        (("compare_labels", "{}/run", "--truth", "{}/zebra.csv"), 2, "share no class"),
        (("compare_labels", "{}/run", "--truth", "{}/truth.csv", "--published", "x"), 2, "--published"),
        (("compare_labels", "{}/run", "--truth", "{}/truth.csv", "--zeta", "7"), 2, "zeta"),
        (("relabel", "{}/run"), 2, "--out"),
        (("relabel", "{}/none", "--out", "{}/x"), 1, "no run directory"),
        (("relabel", "{}/run", "--out", "{}/run"), 2, "holds something already"),
        (("relabel", "{}/run", "--out", "{}/x", "--scale", "fast"), 2, "--scale"),
        (("relabel", "{}/run", "--out", "{}/x", "--classes", "{}/none.txt"), 2, "none.txt"),
    ],
)
def test_a_wrong_call_gets_one_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    command, *rest = (part.format(folder) for part in arguments)
    assert call(command, *rest) == code
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and shown.err.startswith("error: ")
    assert not (folder / "x").exists()


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_is_grouped(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, "--help") == 0
    shown = capsys.readouterr().out
    for heading in ("Input:", "Output:", "Configuration:"):
        assert heading in shown


def test_it_runs_as_a_module(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cdul_fast.relabel", str(folder / "run"), "--out", str(tmp_path / "new")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "run.json").exists()
