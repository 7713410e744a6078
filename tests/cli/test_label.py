from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from photo_zoo import ZOO, make_photos, make_zoo
from PIL import Image
from stub_label import StubEncoder, create_stub

import cdul_fast
from cdul_fast import encoders
from cdul_fast.cli import run_main
from cdul_fast.data.lock import locked
from cdul_fast.label import main

Label = Callable[..., int]


@pytest.fixture
def label(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Label:
    """The command in process, with the stub encoder, four classes and a run directory ``run``."""
    monkeypatch.setattr(encoders, "create_encoder", create_stub, raising=False)
    (tmp_path / "classes.txt").write_text("person\ndog\ncat\nbus\n")

    def run(*arguments: str | Path, out: str = "run", classes: str | None = "classes.txt") -> int:
        given = [str(a) for a in arguments] + ["--model", "stub", "--out", str(tmp_path / out), "--no-report"]
        if classes is not None:
            given += ["--classes", str(tmp_path / classes)]
        return run_main(main, given)

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos", 12)


def scores_of(folder: Path) -> dict[str, np.ndarray]:
    paths, scores = cdul_fast.open_run(folder).scores()
    return dict(zip(paths, scores, strict=True))


def score_bytes(folder: Path) -> list[bytes]:
    """The score columns of all shards, to the byte."""
    shards = cdul_fast.open_run(folder).shards
    return [shard.table(["scores"]).column("scores").combine_chunks().flatten().to_numpy().tobytes()
            for shard in shards]  # fmt: skip


def test_the_zoo_has_one_row_each_with_the_right_status(label: Label, tmp_path: Path) -> None:
    assert label(make_zoo(tmp_path / "zoo")) == 0
    run = cdul_fast.open_run(tmp_path / "run")
    rows = run.table().to_pylist()
    assert {row["path"]: row["status"] for row in rows} == ZOO
    assert [row["path"] for row in rows] == sorted(ZOO)
    for row in rows:
        ok = row["status"] == "ok"
        assert (row["scores"] is not None) == ok
        assert (row["error"] is None) == ok
        assert ok or row["labels"] == []
    by_path = {row["path"]: row for row in rows}
    assert (by_path["tall.jpg"]["width"], by_path["tall.jpg"]["height"]) == (1, 4000)
    assert (by_path["huge.png"]["width"], by_path["huge.png"]["height"]) == (60000, 60000)
    assert by_path["link.jpg"]["scores"] == by_path["plain.jpg"]["scores"]
    assert run.counts == {"ok": 14, "missing": 1, "unsupported": 2, "decode_error": 2, "too_large": 1}
    n_ok = run.counts["ok"]
    assert run.shards[0].cosines().shape == (n_ok, 10, 4)
    embeddings = run.shards[0].embeddings()
    assert embeddings is not None
    assert (embeddings.shape, embeddings.dtype) == ((n_ok, 10, 16), np.float16)


def test_scores_are_those_of_the_reference(label: Label, photos: Path, tmp_path: Path) -> None:
    """The whole way by hand for one photo: Pillow crops, the stub, softmax, maximum, mean."""
    from cdul_fast.views import view_boxes

    assert label(photos) == 0
    image = Image.open(photos / "0003.jpg").convert("RGB")
    encoder = StubEncoder()
    views = []
    for box in view_boxes(*image.size):
        tile = image.crop(tuple(int(v) for v in box))
        short = min(tile.size)
        size = [max(32, int(32 * side / short)) for side in tile.size]
        size[tile.size.index(short)] = 32
        tile = tile.resize(tuple(size), Image.Resampling.BICUBIC)
        left, top = round((size[0] - 32) / 2), round((size[1] - 32) / 2)
        tile = tile.crop((left, top, left + 32, top + 32))
        views.append(((np.asarray(tile, np.float32) / 255 - 0.5) / 0.25).transpose(2, 0, 1))
    texts = encoder.embed_texts([f"a photo of a {name}." for name in ("person", "dog", "cat", "bus")])
    cosines = encoder.embed_images(np.stack(views)) @ texts.T
    soft = np.exp(100 * (cosines - cosines.max(axis=1, keepdims=True)))
    soft /= soft.sum(axis=1, keepdims=True)
    expected = (soft[0] + soft[1:].max(axis=0)) / 2
    np.testing.assert_allclose(scores_of(tmp_path / "run")["0003.jpg"], expected, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        ["--batch-size", "1"],
        ["--batch-size", "5", "--threads", "1"],
        ["--threads", "7"],
        ["--shard-size", "5"],
        ["--no-embeddings"],
    ],
)
def test_scores_do_not_depend_on_how_the_work_is_cut(
    label: Label, photos: Path, tmp_path: Path, settings: list[str]
) -> None:
    assert label(photos) == 0
    assert label(photos, *settings, out="other") == 0
    first, other = scores_of(tmp_path / "run"), scores_of(tmp_path / "other")
    assert first.keys() == other.keys()
    for path in first:
        np.testing.assert_allclose(first[path], other[path], atol=1e-5, rtol=0)


def test_scores_do_not_depend_on_the_order(label: Label, photos: Path, tmp_path: Path) -> None:
    names = [f"{i:04d}.jpg" for i in (7, 3, 11, 0)]
    (tmp_path / "list.txt").write_text("\n".join(names) + "\n\n")
    assert label("--list", tmp_path / "list.txt", "--images", photos) == 0
    assert label(photos, out="all") == 0
    listed, everything = scores_of(tmp_path / "run"), scores_of(tmp_path / "all")
    assert list(listed) == names
    for name in names:
        np.testing.assert_allclose(listed[name], everything[name], atol=1e-5, rtol=0)


def test_a_list_from_standard_input_with_any_name(
    label: Label, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = os.fsencode(tmp_path) + b"/photos/line\nend \xff.jpg"
    with open(odd, "wb") as file:  # noqa: PTH123
        file.write((photos / "0000.jpg").read_bytes())
    names = [b"0000.jpg", odd, b"0000.jpg", b"\xfe-absent.jpg"]
    stream = io.TextIOWrapper(io.BytesIO(b"\0".join(names) + b"\0"))
    monkeypatch.setattr(sys, "stdin", stream)
    assert label("--list", "-", "--images", photos) == 0
    run = cdul_fast.open_run(tmp_path / "run")
    rows = run.table().to_pylist()
    assert [row["path"] for row in rows] == [
        "0000.jpg",
        "line\nend \\xff.jpg",
        "0000.jpg",
        "\\xfe-absent.jpg",
    ]
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "missing"]
    assert rows[0]["scores"] == rows[1]["scores"] == rows[2]["scores"]
    assert os.fsencode(run.photo(rows[1]["path"])) == odd
    assert "\nend" not in (tmp_path / "run" / "run.log").read_text()


def test_glob(label: Label, photos: Path, tmp_path: Path) -> None:
    make_photos(photos / "more", 2, start=100)
    assert label(f"{photos}/**/*1.jpg") == 0
    assert list(scores_of(tmp_path / "run")) == ["0001.jpg", "0011.jpg", "more/0101.jpg"]


def test_limit_and_one_photo(label: Label, photos: Path, tmp_path: Path) -> None:
    assert label(photos, "--limit", "3") == 0
    assert len(scores_of(tmp_path / "run")) == 3
    assert label(photos / "0004.jpg", out="one") == 0
    assert list(scores_of(tmp_path / "one")) == ["0004.jpg"]


def test_files_and_their_metadata(label: Label, photos: Path, tmp_path: Path) -> None:
    assert label(photos, "--shard-size", "5") == 0
    folder = tmp_path / "run"
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    shards = [f"labels-0000{i}.parquet" for i in range(3)] + [f"views-0000{i}.safetensors" for i in range(3)]
    assert names == sorted([*shards, "manifest.json", "run.json", "run.log", "texts.safetensors"])
    metadata = pq.read_schema(folder / "labels-00001.parquet").metadata
    assert json.loads(metadata[b"classes"]) == ["person", "dog", "cat", "bus"]
    assert json.loads(metadata[b"config"])["grid"] == 3
    assert metadata[b"version"].decode() == cdul_fast.__version__
    info = json.loads((folder / "run.json").read_text())
    assert info["counts"] == {"ok": 12}
    assert info["limiting_stage"] in info["stages"]
    assert info["peak_memory_mib"] > 10
    assert {"read", "decode", "crop", "encode", "aggregate", "write"} <= info["stages"].keys()
    assert info["thresholds"]["rule"] == "calibrated"
    assert info["config"]["max_pixels"] == 200_000_000
    assert cdul_fast.open_run(folder).missing_shards == []


def test_labels_follow_threshold_and_top_k(label: Label, photos: Path, tmp_path: Path) -> None:
    assert label(photos, "--threshold", "0.3") == 0
    assert label(photos, "--top-k", "2", out="two") == 0
    classes = ["person", "dog", "cat", "bus"]
    for row in cdul_fast.open_run(tmp_path / "run").table().to_pylist():
        assert row["labels"] == [
            c for c, s in zip(classes, row["scores"], strict=True) if s >= np.float32(0.3)
        ]
    for row in cdul_fast.open_run(tmp_path / "two").table().to_pylist():
        # By value: scores of equal value may go either way.
        chosen = sorted(row["scores"][classes.index(name)] for name in row["labels"])
        assert chosen == sorted(row["scores"])[-2:]


def test_default_labels_are_the_calibrated_ones(label: Label, photos: Path, tmp_path: Path) -> None:
    from cdul_fast.calibration import calibrate
    from cdul_fast.pseudo_labels import names_of

    assert label(photos, "--shard-size", "5") == 0
    run = cdul_fast.open_run(tmp_path / "run")
    scores = run.scores()[1]
    assert run.table(["labels"]).column("labels").to_pylist() == names_of(
        calibrate(scores).select(scores), run.classes
    )


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


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (["--grid", "2"], "grid"),
        (["--zeta", "0.5"], "zeta"),
        (["--shard-size", "5"], "shard_size"),
        (["--limit", "5"], "limit"),
        (["--exif-rotate"], "exif_rotate"),
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
    from cdul_fast import pipeline

    opened = pipeline._open_inputs

    def open_and_delete(config: cdul_fast.LabelConfig) -> object:
        source = opened(config)
        (photos / "0007.jpg").unlink()
        return source

    monkeypatch.setattr(pipeline, "_open_inputs", open_and_delete)
    assert label(photos) == 0
    assert cdul_fast.open_run(tmp_path / "run").counts == {"missing": 1, "ok": 11}


def test_the_python_call(
    label: Label, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = cdul_fast.LabelConfig(
        source=str(photos),
        classes=str(tmp_path / "classes.txt"),
        model="stub",
        out=str(tmp_path / "call"),
        report=False,
        quiet=True,
    )
    result = cdul_fast.label_images(config)
    assert capsys.readouterr() == ("", "")
    assert result.path == tmp_path / "call"
    assert result.counts == {"ok": 12}
    assert result.kept == 0
    assert result.images_per_second > 0
    assert len(result.to_pandas()) == result.to_arrow().num_rows == 12
    assert cdul_fast.label_images(config).kept == 12


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
        ("&a [*a, *a]", "mapping"),
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


def test_sources_that_name_their_classes(label: Label, photos: Path, tmp_path: Path) -> None:
    content = {
        "images": [{"id": i, "file_name": f"{i:04d}.jpg"} for i in (5, 2)],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}, {"id": 9, "name": "cat"}],
        "annotations": [],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    assert label(tmp_path / "coco.json", "--images", photos, classes=None) == 0
    run = cdul_fast.open_run(tmp_path / "run")
    assert run.classes == ["person", "dog", "cat"]
    assert run.root == photos
    assert run.table(["path"]).column("path").to_pylist() == ["0005.jpg", "0002.jpg"]
    # Classes that are given win over the source's own.
    assert label(tmp_path / "coco.json", "--images", photos, out="own") == 0
    assert cdul_fast.open_run(tmp_path / "own").classes == ["person", "dog", "cat", "bus"]


def test_photos_held_in_parquet_equal_those_in_files(label: Label, photos: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    files = sorted(photos.iterdir())
    table = pa.table({"path": [f.name for f in files], "bytes": [f.read_bytes() for f in files]})
    pq.write_table(table, tmp_path / "photos.parquet", row_group_size=5)
    assert label(photos) == 0
    assert label(tmp_path / "photos.parquet", "--threads", "3", out="held") == 0
    assert score_bytes(tmp_path / "held") == score_bytes(tmp_path / "run")


def test_int8_is_calibrated_on_views_of_the_run(
    label: Label, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "0000.jpg").write_bytes(b"no photo")
    seen = []

    def create(*_: object, **settings: Any) -> StubEncoder:
        encoder = StubEncoder()
        seen.append(settings["calibration"](encoder))
        return encoder

    monkeypatch.setattr(encoders, "create_encoder", create)
    assert label(photos) == 0
    assert label(photos, "--shard", "2/3", out="part") == 0
    assert (seen[0].shape, seen[0].dtype) == ((110, 3, 32, 32), np.float32)
    assert np.isfinite(seen[0]).all()
    np.testing.assert_array_equal(seen[0], seen[1])
