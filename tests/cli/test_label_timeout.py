"""Photos whose reading hangs, and readers that die, in whole runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_runs import Label, scores_of
from stub_label import StubEncoder

import cdul_fast
from cdul_fast import encoders
from cdul_fast.data import source
from cdul_fast.execution import readers, work


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of photos whose reading hangs until the test ends or the name is taken out."""
    names: set[str] = set()
    end = threading.Event()
    read = source.read_photo

    def read_or_hang(path: str | os.PathLike[str]) -> bytes:
        while Path(path).name in names and not end.wait(0.01):
            pass
        return read(path)

    monkeypatch.setattr(source, "read_photo", read_or_hang)
    monkeypatch.setattr(readers, "_GRACE_SECONDS", 0.05)
    yield names
    end.set()


@pytest.mark.parametrize("threads", ["1", "3"])
def test_a_photo_that_hangs_has_a_row_and_the_run_goes_on(
    label: Label, photos: Path, tmp_path: Path, hanging: set[str], threads: str
) -> None:
    assert label(photos, out="good") == 0
    hanging |= {"0004.jpg", "0005.jpg"}
    arguments = [photos, "--photo-timeout", "0.4", "--batch-size", "3", "--threads", threads]
    assert label(*arguments) == 0
    rows = {row["path"]: row for row in cdul_fast.open_run(tmp_path / "run").table().to_pylist()}
    assert {path for path, row in rows.items() if row["status"] != "ok"} == hanging
    assert rows["0004.jpg"]["status"] == "timeout"
    assert rows["0004.jpg"]["error"] == "not read and decoded within 0.4 s (--photo-timeout)"
    assert rows["0004.jpg"]["labels"] == []
    expected = scores_of(tmp_path / "good")
    for path, scores in scores_of(tmp_path / "run").items():
        np.testing.assert_allclose(scores, expected[path], atol=1e-5, rtol=0)
    # The limit is free: a later call may give more time to what failed.
    hanging.clear()
    assert label(photos, "--photo-timeout", "5", "--retry-failed") == 0
    assert cdul_fast.open_run(tmp_path / "run").counts == {"ok": 12}


def test_a_photo_that_comes_back_late_writes_nothing(
    label: Label, photos: Path, tmp_path: Path, hanging: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its views would land in a buffer that holds those of other photos by then."""
    assert label(photos, out="good") == 0
    hanging.add("0000.jpg")
    crops: list[str] = []
    crop = work.crop_views

    def crop_and_count(*arguments: Any) -> None:
        crops.append(threading.current_thread().name)
        if len(crops) == 9:  # four buffers of two photos hold seven others: the ninth comes after the limit
            hanging.clear()
            time.sleep(0.3)  # for the late one to be read and decoded
        crop(*arguments)

    monkeypatch.setattr(work, "crop_views", crop_and_count)
    assert label(photos, "--photo-timeout", "0.3", "--batch-size", "2", "--threads", "2") == 0
    assert cdul_fast.open_run(tmp_path / "run").counts == {"ok": 11, "timeout": 1}
    assert len(crops) == 11
    expected = scores_of(tmp_path / "good")
    for path, scores in scores_of(tmp_path / "run").items():
        np.testing.assert_allclose(scores, expected[path], atol=1e-5, rtol=0)


def test_a_dead_mount_stops_the_run_and_the_same_command_goes_on(
    label: Label, photos: Path, tmp_path: Path, hanging: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    hanging |= {f"{i:04d}.jpg" for i in range(2, 12)}
    arguments = [photos, "--photo-timeout", "0.05", "--batch-size", "2", "--threads", "2"]
    assert label(*arguments) == 1
    err = capsys.readouterr().err
    assert "9 photos at a time were not read and decoded within 0.05 s" in err
    assert "the same command goes on from there" in err
    hanging.clear()
    assert label(*arguments[:1], "--batch-size", "2") == 0
    err = capsys.readouterr().err
    assert "kept " in err
    counts = cdul_fast.open_run(tmp_path / "run").counts
    assert sum(counts.values()) == 12
    assert counts["ok"] >= 2


def test_a_reader_that_dies_costs_one_photo(
    label: Label, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = source.read_photo

    def read_or_die(path: str | os.PathLike[str]) -> bytes:
        if Path(path).name == "0007.jpg":
            raise SystemExit("the thread ends here")
        return read(path)

    monkeypatch.setattr(source, "read_photo", read_or_die)
    assert label(photos, "--threads", "1") == 0
    rows = {row["path"]: row for row in cdul_fast.open_run(tmp_path / "run").table().to_pylist()}
    assert rows["0007.jpg"]["status"] == "decode_error"
    assert "SystemExit" in rows["0007.jpg"]["error"]
    assert sum(row["status"] == "ok" for row in rows.values()) == 11


def test_calibration_does_not_wait_for_a_photo_that_hangs(
    label: Label, photos: Path, tmp_path: Path, hanging: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging.add("0000.jpg")
    shapes = []

    def create(*_: object, **settings: Any) -> StubEncoder:
        encoder = StubEncoder()
        shapes.append(settings["calibration"](encoder).shape)
        return encoder

    monkeypatch.setattr(encoders, "create_encoder", create)
    assert label(photos, "--photo-timeout", "0.2") == 0
    assert shapes == [(110, 3, 32, 32)]
