"""Label runs in which something goes wrong."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_runs import Label, score_bytes, scores_of
from photo_zoo import make_photos, make_zoo
from PIL import Image
from stub_label import StubEncoder, create_stub

import cdul_fast
from cdul_fast import encoders
from cdul_fast.data.lock import locked


@pytest.mark.parametrize("damage", ["labels cut", "views cut", "views changed", "views gone", "labels gone"])
def test_a_damaged_shard_is_found_and_redone(
    label: Label, photos: Path, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(photos, "--shard-size", "4") == 0
    folder = tmp_path / "run"
    good = score_bytes(folder)
    kind, what = damage.split()
    path = folder / {"labels": "labels-00001.parquet", "views": "views-00001.safetensors"}[kind]
    data = path.read_bytes()
    if what == "cut":
        path.write_bytes(data[: len(data) * 2 // 3])
    elif what == "changed":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        path.unlink()
    capsys.readouterr()
    assert label(photos, "--shard-size", "4") == 0
    assert "kept 8 of 12 rows" in capsys.readouterr().err
    assert score_bytes(folder) == good
    assert cdul_fast.open_run(folder).missing_shards == []


def test_two_runs_on_one_folder(
    label: Label, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    with locked(tmp_path / "run"):
        assert label(photos) == 1
        assert (
            f"another run is writing to {tmp_path / 'run'} (process {os.getpid()})" in capsys.readouterr().err
        )
    assert label(photos) == 0


def test_too_many_failures(label: Label, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zoo = make_zoo(tmp_path / "zoo")
    assert label(zoo, "--max-failure-rate", "0.25") == 3
    assert "30.0% of the photos failed" in capsys.readouterr().err
    assert label(zoo, "--max-failure-rate", "0.3") == 0


def test_an_encoder_that_fails_on_one_photo(
    label: Label, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    white = np.full((30, 40, 3), 255, np.uint8)
    Image.fromarray(white).save(photos / "0005x.png")
    monkeypatch.setattr(encoders, "create_encoder", lambda *_, **__: StubEncoder(fails_on=2.0))
    assert label(photos) == 0
    rows = {row["path"]: row for row in cdul_fast.open_run(tmp_path / "run").table().to_pylist()}
    assert rows["0005x.png"]["status"] == "encode_error"
    assert "told to fail" in rows["0005x.png"]["error"]
    assert sum(row["status"] == "ok" for row in rows.values()) == 12
    monkeypatch.setattr(encoders, "create_encoder", create_stub)
    assert label(photos, out="good") == 0
    expected = scores_of(tmp_path / "good")
    for path, scores in scores_of(tmp_path / "run").items():
        np.testing.assert_allclose(scores, expected[path], atol=1e-5, rtol=0)


def test_an_encoder_that_fails_on_everything(
    label: Label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "white").mkdir()
    Image.fromarray(np.full((30, 40, 3), 255, np.uint8)).save(tmp_path / "white" / "a.png")
    monkeypatch.setattr(encoders, "create_encoder", lambda *_, **__: StubEncoder(fails_on=2.0))
    assert label(tmp_path / "white") == 1
    assert "the encoder fails on every photo" in capsys.readouterr().err


def test_photos_deleted_while_the_run_is_on(
    label: Label, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdul_fast.execution import session

    opened = session.open_inputs

    def open_and_delete(config: cdul_fast.LabelConfig) -> object:
        source = opened(config)
        (photos / "0007.jpg").unlink()
        return source

    monkeypatch.setattr(session, "open_inputs", open_and_delete)
    assert label(photos) == 0
    assert cdul_fast.open_run(tmp_path / "run").counts == {"missing": 1, "ok": 11}


def test_a_full_disk_says_so(
    label: Label,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cdul_fast.data import shard_work

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard_work, "write_shard", full)
    assert label(photos) == 1
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert "the same command goes on" in err
    monkeypatch.undo()
    monkeypatch.setattr(encoders, "create_encoder", create_stub, raising=False)
    assert label(photos) == 0


def test_the_source_deleted_while_the_run_is_on(
    label: Label, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read is labelled, the rest is missing; the same command refuses until the photos are back."""
    encoder = StubEncoder()
    embed = encoder.embed_images

    def embed_and_delete(pixels: Any) -> np.ndarray:
        if photos.exists():
            photos.rename(tmp_path / "gone")
        return embed(pixels)

    monkeypatch.setattr(encoder, "embed_images", embed_and_delete)
    monkeypatch.setattr(encoders, "create_encoder", lambda *_, **__: encoder)
    arguments = [photos, "--batch-size", "1", "--threads", "1", "--shard-size", "5"]
    assert label(*arguments) == 0
    counts = cdul_fast.open_run(tmp_path / "run").counts
    assert sum(counts.values()) == 12
    assert counts["missing"] >= 5
    assert label(*arguments) == 2
    (tmp_path / "gone").rename(photos)
    monkeypatch.setattr(encoders, "create_encoder", create_stub)
    assert label(*arguments, "--retry-failed") == 0
    assert cdul_fast.open_run(tmp_path / "run").counts == {"ok": 12}


def test_a_clock_that_runs_backwards(
    label: Label, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert label(photos, out="good") == 0
    now = itertools.count(2_000_000_000, -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    monkeypatch.setattr(time, "time_ns", lambda: next(now) * 10**9)
    assert label(photos, "--shard-size", "5") == 0
    (tmp_path / "run" / "labels-00001.parquet").unlink()
    assert label(photos, "--shard-size", "5") == 0
    monkeypatch.undo()
    run = cdul_fast.open_run(tmp_path / "run")
    assert run.counts == {"ok": 12}
    assert run.info["seconds"] >= 0
    expected = scores_of(tmp_path / "good")
    for path, scores in scores_of(tmp_path / "run").items():
        np.testing.assert_allclose(scores, expected[path], atol=1e-5, rtol=0)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB in memory."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this root may not mount a small file system")
    yield folder
    # Lazily: the run that was read may still have files of it mapped.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_small_disk_that_fills_up(
    label: Label, tmp_path: Path, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = make_photos(tmp_path / "photos", 120)
    arguments = [photos, "--shard-size", "20", "--batch-size", "4"]
    assert label(*arguments, out="disk/run") == 1
    err = capsys.readouterr().err
    assert "No space left on device" in err.splitlines()[-1]
    assert "the same command goes on" in err
    # More space, the same command, the same result as on a large disk.
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    assert label(*arguments, out="disk/run") == 0
    assert "kept " in capsys.readouterr().err
    assert label(*arguments, out="large") == 0
    assert score_bytes(small_disk / "run") == score_bytes(tmp_path / "large")
    assert not list((small_disk / "run").glob(".tmp-*"))
