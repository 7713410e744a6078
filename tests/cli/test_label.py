"""What the label command writes: rows, scores, labels and files."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from label_runs import Label, score_bytes, scores_of
from photo_zoo import ZOO, make_photos, make_zoo
from PIL import Image
from stub_label import StubEncoder

import cdul_fast
from cdul_fast import encoders


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
    from cdul_fast.pseudo_labels import names_of
    from cdul_fast.scoring.calibration import calibrate

    assert label(photos, "--shard-size", "5") == 0
    run = cdul_fast.open_run(tmp_path / "run")
    scores = run.scores()[1]
    assert run.table(["labels"]).column("labels").to_pylist() == names_of(
        calibrate(scores).select(scores), run.classes
    )


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
