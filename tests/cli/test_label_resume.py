"""Runs that go on, are refused, begin again, or are cut into parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from label_runs import Label, score_bytes, scores_of
from photo_zoo import make_photos
from stub_label import StubEncoder

import cdul_fast
from cdul_fast import encoders


def test_a_finished_run_is_kept_as_it_is(
    label: Label,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert label(photos) == 0
    before = {
        path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*") if path.suffix != ".log"
    }

    def no_encoder(*_: object, **__: object) -> None:
        raise AssertionError("a finished run needs no encoder")

    monkeypatch.setattr(encoders, "create_encoder", no_encoder)
    capsys.readouterr()
    assert label(photos, "--threads", "1", "--quiet") == 0
    assert label(photos) == 0
    assert "kept 12 of 12 rows" in capsys.readouterr().err
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.*") if path.suffix != ".log"}
    assert before == after


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (["--grid", "2"], "grid"),
        (["--zeta", "0.5"], "zeta"),
        (["--shard-size", "5"], "shard_size"),
        (["--limit", "5"], "limit"),
        (["--exif-rotate"], "exif_rotate"),
        (["--decode", "scaled"], "decode"),
        (["--template", "imagenet"], "template"),
        (["--pretrained", "other"], "pretrained"),
        (["--backend", "torch"], "backend"),
    ],
)
def test_a_changed_setting_is_refused_by_name(
    label: Label,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: list[str],
    name: str,
) -> None:
    assert label(photos) == 0
    if name == "backend":
        (tmp_path / "run" / "views-00000.safetensors").unlink()  # something to do, so that a model is loaded
    stored = score_bytes(tmp_path / "run")
    capsys.readouterr()
    code = label(photos, *change)
    err = capsys.readouterr().err
    if name == "backend":
        assert code == 0, "the stub has one backend whatever it is asked for"
        return
    assert code == 2
    assert f"another {name} " in err
    assert len(err.strip().splitlines()) == 1
    assert score_bytes(tmp_path / "run") == stored
    assert label(photos, *change, "--overwrite") == 0


def test_changed_classes_photos_and_weights_are_refused(
    label: Label,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert label(photos) == 0
    (tmp_path / "other.txt").write_text("person\ndog\ncat\ntrain\n")
    assert label(photos, classes="other.txt") == 2
    assert "another classes" in capsys.readouterr().err
    (tmp_path / "prompts.yaml").write_text("{person: [p], dog: [d], cat: [c], bus: [b]}")
    assert label(photos, classes="prompts.yaml") == 2
    assert "another classes" in capsys.readouterr().err
    make_photos(photos, 1, start=50)
    assert label(photos) == 2
    assert "another source (12 photos, now 13 photos)" in capsys.readouterr().err
    (photos / "0050.jpg").unlink()
    (photos / "0003.jpg").rename(photos / "0033.jpg")
    assert label(photos) == 2
    assert "another source" in capsys.readouterr().err
    (photos / "0033.jpg").rename(photos / "0003.jpg")
    (tmp_path / "run" / "labels-00000.parquet").unlink()

    def other_weights(*_: object, **__: object) -> StubEncoder:
        encoder = StubEncoder()
        encoder.fingerprint = "other"
        return encoder

    monkeypatch.setattr(encoders, "create_encoder", other_weights)
    assert label(photos) == 2
    assert "another model" in capsys.readouterr().err


def test_a_resumed_run_uses_the_recorded_backend(
    label: Label, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert label(photos) == 0
    (tmp_path / "run" / "labels-00000.parquet").unlink()
    asked = {}

    def create(*_: object, **settings: object) -> StubEncoder:
        asked.update(settings)
        return StubEncoder()

    monkeypatch.setattr(encoders, "create_encoder", create)
    assert label(photos) == 0
    assert (asked["backend"], asked["precision"]) == ("stub", "fp32")


def test_overwrite_removes_results_and_nothing_else(label: Label, photos: Path, tmp_path: Path) -> None:
    assert label(photos, "--shard-size", "3") == 0
    mine = tmp_path / "run" / "labels-of-mine.txt"
    mine.write_text("keep")
    assert label(photos, "--limit", "4", "--overwrite") == 0
    assert len(cdul_fast.open_run(tmp_path / "run").shards) == 1
    assert mine.read_text() == "keep"


def test_retry_failed_reads_only_what_failed(label: Label, photos: Path, tmp_path: Path) -> None:
    good = (photos / "0004.jpg").read_bytes()
    (photos / "0004.jpg").write_bytes(good[:200])
    (photos / "0009.jpg").unlink()
    (photos / "0009.jpg").symlink_to("nowhere")
    assert label(photos, "--shard-size", "6") == 0
    before = scores_of(tmp_path / "run")
    assert cdul_fast.open_run(tmp_path / "run").counts == {"ok": 10, "decode_error": 1, "missing": 1}
    assert label(photos, "--shard-size", "6") == 0
    assert cdul_fast.open_run(tmp_path / "run").counts == {"ok": 10, "decode_error": 1, "missing": 1}
    (photos / "0004.jpg").write_bytes(good)
    # What was ok is not read again: an empty file in its place changes nothing.
    (photos / "0000.jpg").write_bytes(b"")
    assert label(photos, "--shard-size", "6", "--retry-failed") == 0
    run = cdul_fast.open_run(tmp_path / "run")
    assert run.counts == {"ok": 11, "missing": 1}
    after = scores_of(tmp_path / "run")
    assert list(after) == [f"{i:04d}.jpg" for i in range(12) if i != 9]
    for path, scores in before.items():
        np.testing.assert_array_equal(after[path], scores)
    cosines = np.concatenate([shard.cosines() for shard in run.shards])
    assert len(cosines) == 11
    assert np.isfinite(cosines).all()


def test_parts_equal_one_run(
    label: Label, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(photos, "--shard-size", "3") == 0
    for i in (3, 1):
        assert label(photos, "--shard-size", "3", "--shard", f"{i}/3", out="parts") == 0
    run = cdul_fast.open_run(tmp_path / "parts")
    assert run.missing_shards == ["part 2 of 3 (no run-2of3.json)"]
    assert label(photos, "--shard-size", "3", "--shard", "2/3", out="parts") == 0
    whole, parts = cdul_fast.open_run(tmp_path / "run"), cdul_fast.open_run(tmp_path / "parts")
    assert parts.missing_shards == []
    assert parts.counts == whole.counts == {"ok": 12}
    columns = ["path", "status", "scores", "labels"]
    assert parts.table(columns).to_pylist() == whole.table(columns).to_pylist()
    assert parts.info["thresholds"] == whole.info["thresholds"]
    (tmp_path / "parts" / "labels-2of3-00001.parquet").unlink()
    assert cdul_fast.open_run(tmp_path / "parts").missing_shards == ["labels-2of3-00001.parquet"]
    capsys.readouterr()
    assert label(photos, "--shard-size", "3", "--shard", "2/4", out="parts") == 2
    assert "holds another run" in capsys.readouterr().err
    assert label(photos, "--shard-size", "3", out="parts") == 2


def test_leftovers_of_a_killed_run_are_removed(label: Label, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".tmp-77-labels-00000.parquet").write_bytes(b"half")
    (folder / ".tmp-77-other").write_bytes(b"not ours")
    assert label(photos) == 0
    assert not (folder / ".tmp-77-labels-00000.parquet").exists()
    assert (folder / ".tmp-77-other").exists()


def test_a_folder_with_another_kind_of_run_is_refused(
    label: Label, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert label(photos) == 0
    (tmp_path / "run" / "manifest.json").unlink()
    assert label(photos) == 2
    assert "did not make" in capsys.readouterr().err
    assert label(photos, "--overwrite") == 0


def test_more_rows_do_not_get_in_among_relabelled_ones(
    label: Label, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cdul_fast.data.run_dir import open_run
    from cdul_fast.data.sinks import write_json

    (photos / "0004.jpg").write_bytes(b"x")
    assert label(photos) == 0
    info = open_run(tmp_path / "run").info
    write_json(tmp_path / "run" / "run.json", info | {"provenance": {"relabelled": "here"}})
    assert label(photos) == 0
    assert label(photos, "--retry-failed") == 2
    assert "relabelled in place" in capsys.readouterr().err
