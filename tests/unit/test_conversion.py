"""A run in the files of other programs, read back by those programs where they are installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow.parquet as pq
import pytest
from gs_server import gs_bucket
from PIL import Image
from run_factory import CLASSES, make_run
from s3_server import s3_bucket

import cdul_fast
from cdul_fast.cli import run_main
from cdul_fast.convert import main
from cdul_fast.data.conversion import convert_run
from cdul_fast.data.truth import load_truth
from cdul_fast.errors import CdulError, ConfigError

NAMES = ["a/plain.jpg", "b & c?#[1].jpg", "ü café.jpg", "<x>'\".jpg", "e.jpg"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", photos=len(NAMES), names=NAMES, shard_size=2, write_photos=True)


def stored(run: Path) -> list[dict[str, Any]]:
    return [row for row in cdul_fast.open_run(run).table().to_pylist() if row["status"] == "ok"]


@pytest.mark.parametrize("photos", ["link", "copy"])
def test_an_image_folder_is_read_by_load_dataset(run: Path, tmp_path: Path, photos: str) -> None:
    datasets = pytest.importorskip("datasets")
    result = convert_run(run, "imagefolder", tmp_path / "out", photos=photos)
    assert (result.rows, result.left_out) == (5, 1)
    assert "1 photos without scores left out" in result.summary()
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache")
    )
    rows = stored(run)
    assert loaded["path"][:] == [row["path"] for row in rows]
    assert loaded["labels"][:] == [row["labels"] for row in rows]
    np.testing.assert_array_equal(np.float32(loaded["scores"][:]), np.float32([r["scores"] for r in rows]))
    for row, image in zip(rows, loaded["image"][:], strict=True):
        assert image.size == (row["width"], row["height"])
        with Image.open(cdul_fast.open_run(run).photo(row["path"])) as photo:
            np.testing.assert_array_equal(np.asarray(image), np.asarray(photo))
    assert (tmp_path / "out" / "classes.txt").read_text().splitlines() == list(CLASSES)
    links = [path.is_symlink() for path in (tmp_path / "out" / "photos").rglob("*.jpg")]
    assert links == [photos == "link"] * 5


def test_an_image_folder_needs_its_photos(run: Path, tmp_path: Path) -> None:
    cdul_fast.open_run(run).photo("e.jpg").unlink()
    with pytest.raises(CdulError, match=r"e\.jpg: No such file"):
        convert_run(run, "imagefolder", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def check_tasks(run: Path, folder: Path, before: str) -> list[dict[str, Any]]:
    tasks = json.loads((folder / "tasks.json").read_text())
    rows = stored(run)
    assert len(tasks) == len(rows)
    for task, row in zip(tasks, rows, strict=True):
        (prediction,) = task["predictions"]
        chosen = prediction["result"][0]["value"]["choices"] if prediction["result"] else []
        assert chosen == row["labels"]
        scores = [row["scores"][CLASSES.index(name)] for name in chosen]
        assert prediction["score"] == pytest.approx(np.mean(scores) if scores else 0.0, abs=1e-6)
        assert task["data"]["path"] == row["path"]
        assert task["data"]["image"].startswith(before)
        assert not set(task["data"]["image"][len(before) :]) & set(' "<>#?')
    return tasks


def test_label_studio(run: Path, tmp_path: Path) -> None:
    convert_run(run, "labelstudio", tmp_path / "out", photo_url="https://host/photos/")
    tasks = check_tasks(run, tmp_path / "out", "https://host/photos/")
    assert unquote(tasks[1]["data"]["image"]).endswith("/" + NAMES[1])
    convert_run(run, "labelstudio", tmp_path / "local")
    check_tasks(run, tmp_path / "local", "/data/local-files/?d=")


def test_label_studio_takes_the_tasks(tmp_path: Path) -> None:
    sdk = pytest.importorskip("label_studio_sdk.label_interface")
    classes = ["cat", 'quoted "dog" & <co>', "bus"]
    run = make_run(tmp_path / "run", photos=6, classes=classes, config={"threshold": 0.3})
    convert_run(run, "labelstudio", tmp_path / "out")
    interface = sdk.LabelInterface((tmp_path / "out" / "label_config.xml").read_text())
    interface.validate()
    assert list(interface.get_control("labels").labels) == classes
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert any(task["predictions"][0]["result"] for task in tasks)
    for task in tasks:
        assert interface.validate_task({"data": task["data"]})
        for prediction in task["predictions"]:
            assert interface.validate_prediction(prediction)
    wrong = json.loads(json.dumps(next(t for t in tasks if t["predictions"][0]["result"])))
    wrong["predictions"][0]["result"][0]["value"]["choices"] = ["no such class"]
    assert not interface.validate_prediction(wrong["predictions"][0])


def test_coco(run: Path, tmp_path: Path) -> None:
    result = convert_run(run, "coco", tmp_path / "deep" / "coco.json")
    assert result.rows == 5
    content = json.loads((tmp_path / "deep" / "coco.json").read_text())
    rows = stored(run)
    assert [image["file_name"] for image in content["images"]] == [row["path"] for row in rows]
    assert [(i["width"], i["height"]) for i in content["images"]] == [(r["width"], r["height"]) for r in rows]
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert list(names.values()) == list(CLASSES)
    found: dict[int, dict[str, float]] = {image["id"]: {} for image in content["images"]}
    for annotation in content["annotations"]:
        found[annotation["image_id"]][names[annotation["category_id"]]] = annotation["score"]
    wanted = [{name: row["scores"][CLASSES.index(name)] for name in row["labels"]} for row in rows]
    assert [{k: np.float32(v) for k, v in one.items()} for one in found.values()] == wanted
    truth = load_truth(tmp_path / "deep" / "coco.json")
    by_name = dict(zip(truth.images, truth.labels, strict=True))
    for row in rows:
        assert by_name.get(row["path"], frozenset()) == set(row["labels"])
    with pytest.raises(ConfigError, match="exists already"):
        convert_run(run, "coco", tmp_path / "deep" / "coco.json")


def test_parquet_to_a_folder(run: Path, tmp_path: Path) -> None:
    result = convert_run(run, "parquet", tmp_path / "out")
    assert (result.rows, result.left_out) == (6, 0)
    table = pq.read_table(tmp_path / "out", partitioning=None)
    assert table.to_pylist() == cdul_fast.open_run(run).table().to_pylist()
    assert json.loads((tmp_path / "out" / "_run.json").read_text())["classes"] == list(CLASSES)


@pytest.mark.parametrize("server", [s3_bucket, gs_bucket])
def test_parquet_to_a_bucket(run: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with server("results", {}, monkeypatch) as url:
        assert run_main(main, [str(run), "--to", "parquet", "--out", f"{url}/deep/run"]) == 0
        import fsspec

        system = fsspec.filesystem(url.partition(":")[0])
        names = system.ls("results/deep/run", detail=False)
        assert [name.rpartition("/")[2] for name in names] == [
            "_run.json",
            *(f"labels-{i:05d}.parquet" for i in range(3)),
        ]
        rows: list[dict[str, Any]] = []
        for name in names[1:]:
            with system.open(name) as file:
                rows += pq.read_table(file).to_pylist()
        assert rows == cdul_fast.open_run(run).table().to_pylist()
        with pytest.raises(ConfigError, match="holds a run already"):
            convert_run(run, "parquet", f"{url}/deep/run")


def test_fiftyone_files(run: Path, tmp_path: Path) -> None:
    convert_run(run, "fiftyone", tmp_path / "out")
    data = json.loads((tmp_path / "out" / "data.json").read_text())
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert labels["classes"] == list(CLASSES)
    opened = cdul_fast.open_run(run)
    for key, row in zip(data, stored(run), strict=True):
        assert data[key] == str(opened.photo(row["path"]))
        found = {entry["label"]: np.float32(entry["confidence"]) for entry in labels["labels"][key]}
        assert found == {name: np.float32(row["scores"][CLASSES.index(name)]) for name in row["labels"]}


def test_fiftyone_reads_the_files(tmp_path: Path) -> None:
    importers = pytest.importorskip("fiftyone.utils.data.importers")
    run = make_run(tmp_path / "run", photos=6, config={"threshold": 0.15})
    convert_run(run, "fiftyone", tmp_path / "out")
    importer = importers.FiftyOneImageClassificationDatasetImporter(
        str(tmp_path / "out"), data_path="data.json", labels_path="labels.json"
    )
    with importer:
        read = list(importer)
    opened = cdul_fast.open_run(run)
    for (path, _, found), row in zip(read, stored(run), strict=True):
        assert path == str(opened.photo(row["path"]))
        assert [c.label for c in (found.classifications if found else [])] == row["labels"]


def test_fiftyone_samples(tmp_path: Path) -> None:
    pytest.importorskip("fiftyone")
    from cdul_fast.data.conversion import fiftyone_samples

    run = make_run(tmp_path / "run", photos=6, config={"threshold": 0.15})
    opened = cdul_fast.open_run(run)
    for sample, row in zip(fiftyone_samples(opened, "found"), stored(run), strict=True):
        assert sample.filepath == str(opened.photo(row["path"]))
        given = {c.label: np.float32(c.confidence) for c in sample["found"].classifications}
        assert given == {name: np.float32(row["scores"][CLASSES.index(name)]) for name in row["labels"]}


def test_wrong_calls(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for arguments, why in (
        (["--to", "coco"], "--out is missing"),
        (["--out", "x"], "--to is missing"),
        (["--to", "voc", "--out", "x"], "--to"),
        (["--to", "fiftyone", "--out", str(tmp_path / "full")], "holds something already"),
        (["--to", "coco", "--out", "s3://bucket/x.json"], "only parquet"),
    ):
        assert run_main(main, [str(run), *arguments]) == 2
        assert why in capsys.readouterr().err
    assert run_main(main, [str(run), "--to", "coco", "--out", str(tmp_path / "c.json")]) == 0
    assert "5 rows written" in capsys.readouterr().out
