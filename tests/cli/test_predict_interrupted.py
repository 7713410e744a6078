"""Predictions that are killed, interrupted, resumed and cut into parts, as processes of their own."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from killing import assert_same_results, begin, complete, kill_until_done, score_bytes, wait_for
from photo_zoo import make_photos
from stub_predict import command

import cdul_fast
from cdul_fast.cli import run_main
from cdul_fast.predict import main
from cdul_fast.training.model_dir import ModelInfo, build_network, write_model


def arguments(folder: Path, out: str, *more: str, delay: float = 0.03) -> list[str]:
    given = [folder / "model", folder / "photos", "--out", folder / out, "--threads", "1", "--no-report"]
    return command(delay, *given, "--shard-size", "40", "--batch-size", "4", *more)


def finish(folder: Path, out: str, *more: str) -> tuple[int, str, str]:
    return complete(arguments(folder, out, *more))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights, photos (three of them bad), and unbroken predictions ``whole``."""
    folder = tmp_path_factory.mktemp("predict")
    photos = make_photos(folder / "photos", 150)
    (photos / "0010.jpg").write_bytes(b"no photo")
    (photos / "0077.jpg").write_bytes((photos / "0077.jpg").read_bytes()[:150])
    (photos / "0120.jpg").write_bytes(b"")
    info = ModelInfo(("person", "dog", "cat"), "test_resnet", "bce", {}, 64)
    torch.manual_seed(0)
    (folder / "model").mkdir()
    write_model(folder / "model", info, build_network(info))
    code, stdout, stderr = finish(folder, "whole")
    assert code == 0, stderr
    assert stdout.startswith("147 of 150 photos scored; failed: 2 decode_error, 1 unsupported; ")
    return folder


def test_killed_at_random_moments(work: Path) -> None:
    kills = kill_until_done(lambda: begin(arguments(work, "killed")), work / "killed", 6, 3, longest=6.0)
    assert kills > 1, "the predictions are too quick to be killed"
    code, _, stderr = finish(work, "killed")
    assert code == 0, stderr
    assert "kept" in stderr, "nothing survived all these kills"
    assert_same_results(work / "killed", work / "whole")


def test_killed_late_loses_at_most_a_second(work: Path) -> None:
    process = begin(arguments(work, "late", "--shard-size", "150", delay=0.1))
    wait_for(work / "late" / "journal-00000.bin", process)
    time.sleep(2.0)
    process.kill()
    process.communicate(timeout=60)
    # Two calls at a time of 4 photos and 0.1 s: 80 photos a second; the last half second may be lost.
    code, _, stderr = finish(work, "late", "--shard-size", "150")
    assert code == 0, stderr
    assert int(stderr.split("kept ")[1].split()[0]) >= 40
    assert score_bytes(work / "late") == score_bytes(work / "whole")


def test_interrupted_says_how_to_go_on(work: Path) -> None:
    process = begin(arguments(work, "stopped", delay=0.2))
    wait_for(work / "stopped" / "journal-00000.bin", process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in stderr and "Traceback" not in stderr


def test_a_second_process_on_the_folder_refuses(work: Path) -> None:
    process = begin(arguments(work, "locked", delay=0.5))
    wait_for(work / "locked" / "manifest.json", process)
    code, _, stderr = finish(work, "locked")
    process.kill()
    process.communicate(timeout=60)
    assert code == 1
    assert f"another run is writing to {work / 'locked'} (process {process.pid})" in stderr


def predict(folder: Path, out: str, *more: str, model: str = "model") -> int:
    """The command in this process; returns its exit code."""
    given = [folder / model, folder / "photos", "--out", folder / out, "--threads", "1", "--no-report"]
    return run_main(main, [*map(str, given), "--shard-size", "40", "--batch-size", "4", *more])


def test_parts_equal_one_run(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part, missing in (("2/3", True), ("1/3", True), ("3/3", False)):
        assert predict(work, "parts", "--shard", part) == 0
        assert ("still missing" in capsys.readouterr().err) == missing
    run = cdul_fast.open_run(work / "parts")
    assert run.missing_shards == [] and run.counts == {"decode_error": 2, "ok": 147, "unsupported": 1}
    assert all(info is not None and info["finished"] for info in run.parts.values())
    assert_same_results(work / "parts", work / "whole")


def test_failed_photos_are_read_again(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--quiet", "--limit", "12")
    assert predict(work, "retry", *given, "--max-failure-rate", "0.05") == 3
    assert capsys.readouterr().err == (
        "error: 8.3% of the photos failed, more than --max-failure-rate 5.0% allows\n"
    )
    photo = work / "photos" / "0010.jpg"
    before = photo.read_bytes()
    try:
        photo.write_bytes((work / "photos" / "0001.jpg").read_bytes())
        assert predict(work, "retry", *given) == 0
        assert cdul_fast.open_run(work / "retry").counts == {"ok": 11, "unsupported": 1}
        assert predict(work, "retry", *given, "--retry-failed") == 0
        assert cdul_fast.open_run(work / "retry").counts == {"ok": 12}
    finally:
        photo.write_bytes(before)


def test_the_record_has_time_by_stage(work: Path) -> None:
    info = json.loads((work / "whole" / "run.json").read_text())
    assert {"read", "decode", "crop", "encode", "write"} <= info["stages"].keys()
    assert info["finished"] and info["limiting_stage"] == "encode"
    assert info["model"]["kind"] == "classifier" and info["thresholds"] == {"rule": "fixed", "value": 0.5}
    assert not list((work / "whole").glob("views-*"))
    log = (work / "whole" / "run.log").read_text()
    assert "0010.jpg: unsupported" in log and "summary" in log


def test_the_model_may_not_change(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = ModelInfo(("person", "dog", "cat"), "test_resnet", "bce", {}, 64)
    torch.manual_seed(1)
    (work / "other").mkdir()
    write_model(work / "other", info, build_network(info))
    assert predict(work, "whole", model="other") == 2
    assert "began with another model (other weights, now these weights)" in capsys.readouterr().err
