"""Predictions and exports of a trained model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cdul_fast.cli import run_main
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.predict import main
from cdul_fast.training.config import TrainConfig
from cdul_fast.training.exporting import ExportConfig, export_model
from cdul_fast.training.features import load_photo
from cdul_fast.training.model_dir import load_classifier, read_info
from cdul_fast.training.predicting import PredictConfig, predict_photos
from cdul_fast.training.runner import train_on_run


@pytest.fixture(scope="module")
def models(toy_run, tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    common = {
        "run": str(toy_run / "run"), "weights": "none", "image_size": 64, "epochs": 2, "batch_size": 12,
        "lr": 3e-3, "quiet": True, "threads": 1, "tensorboard": False, "cam_photos": 0, "report": False,
        "truth": str(toy_run / "photos.csv"),
    }  # fmt: skip
    made = {}
    for name, more in {
        "frozen": {"backbone": "test_resnet", "freeze_backbone": True},
        "whole": {"backbone": "test_resnet", "ema": 0.5},
        "maps": {
            "backbone": "test_resnet",
            "freeze_backbone": True,
            "method": "sst",
            "map_grid": 2,
            "method_options": "width=32",
        },
    }.items():
        train_on_run(TrainConfig(**{**common, "out": str(base / name), **more}))
        made[name] = base / name
    return made


def predict(model: Path, source: Path, out: Path, **more):
    return predict_photos(
        PredictConfig(
            model=str(model),
            source=str(source),
            out=str(out),
            quiet=True,
            precision="fp32",
            threads=1,
            **more,
        )
    )


@pytest.mark.parametrize("name", ["frozen", "whole", "maps"])
def test_predictions_are_the_classifiers(models, toy_run, tmp_path, name):
    result = predict(models[name], toy_run / "val", tmp_path / "p", report=False)
    assert result.counts == {"ok": 24}
    paths, scores = result.run.scores()
    classifier, info = load_classifier(models[name])
    backbone = classifier.network.backbone.info
    batch = np.empty((24, 3, 64, 64), np.float32)
    for row, path in enumerate(paths):
        load_photo(toy_run / "val" / path, 64, info.fit, backbone.mean, backbone.std, batch[row : row + 1])
    with torch.no_grad():
        wanted = classifier(torch.from_numpy(batch)).numpy()
    assert np.abs(scores - wanted).max() < 1e-4
    assert tuple(result.run.classes) == info.classes == ("red", "green", "blue")


def test_large_photos_are_predicted_from_a_part_of_their_pixels_on_demand(models, tmp_path):
    from PIL import Image

    (tmp_path / "large").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((1024, 768)).save(tmp_path / "large" / "one.jpg")
    full, scaled = (
        predict(models["frozen"], tmp_path / "large", tmp_path / decode, report=False, decode=decode).run
        for decode in ("cpu", "scaled")
    )
    difference = np.abs(full.scores()[1] - scaled.scores()[1]).max()
    assert 0 < difference < 0.01
    assert scaled.table(["width", "height"]).to_pylist() == [{"width": 1024, "height": 768}]
    with pytest.raises(ConfigError, match="another decode"):
        predict(models["frozen"], tmp_path / "large", tmp_path / "cpu", report=False, decode="scaled")


def test_bad_photos_get_a_row_and_labels_obey_the_threshold(models, toy_run, tmp_path):
    source = tmp_path / "photos"
    source.mkdir()
    for name in ("val_000.png", "val_001.png"):
        (source / name).write_bytes((toy_run / "val" / name).read_bytes())
    (source / "broken.jpg").write_bytes(b"no photo")
    (source / "empty.png").write_bytes(b"")
    result = predict(models["frozen"], source, tmp_path / "p", threshold=0.5)
    rows = result.run.table().to_pylist()
    assert {row["path"]: row["status"] for row in rows} == {
        "broken.jpg": "unsupported",
        "empty.png": "decode_error",
        "val_000.png": "ok",
        "val_001.png": "ok",
    }
    for row in rows:
        if row["status"] == "ok":
            scores = dict(zip(result.run.classes, row["scores"], strict=True))
            assert row["labels"] == [name for name, score in scores.items() if score >= 0.5]
        else:
            assert row["labels"] == [] and row["error"]
    assert (tmp_path / "p" / "report.html").stat().st_size > 1000


def test_predictions_go_on_by_shard_and_refuse_other_settings(models, toy_run, tmp_path):
    first = predict(models["frozen"], toy_run / "val", tmp_path / "p", shard_size=10, report=False)
    wanted = first.run.scores()[1]
    (tmp_path / "p" / "labels-00001.parquet").unlink()
    again = predict(models["frozen"], toy_run / "val", tmp_path / "p", shard_size=10, report=False)
    assert again.kept == 14 and np.array_equal(again.run.scores()[1], wanted)
    with pytest.raises(ConfigError, match="began with another threshold"):
        predict(models["frozen"], toy_run / "val", tmp_path / "p", shard_size=10, threshold=0.4)
    other = predict(models["whole"], toy_run / "val", tmp_path / "p", overwrite=True, report=False)
    assert other.kept == 0


def test_evaluate_reads_predictions(models, toy_run, tmp_path):
    from cdul_fast.scoring.evaluation import evaluate_run

    predict(models["frozen"], toy_run / "val", tmp_path / "p", report=False)
    result = evaluate_run(tmp_path / "p", toy_run / "val.csv")
    assert len(result.to_dict()) > 0


@pytest.mark.parametrize("name", ["frozen", "maps"])
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_exports_are_checked(models, tmp_path, name, form):
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[form]
    if form == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    out = tmp_path / f"m{suffix}"
    result = export_model(ExportConfig(model=str(models[name]), format=form, out=str(out)))
    assert out.is_file() and result.largest_difference < 1e-4
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["classes"] == ["red", "green", "blue"] and about["image_size"] == 64
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_export_that_differs_is_not_written(models, tmp_path, monkeypatch):
    from cdul_fast.training import exporting

    real = exporting._openvino_runner
    monkeypatch.setattr(exporting, "_openvino_runner", lambda path: lambda x: real(path)(x) + 0.01)
    with pytest.raises(CdulError, match=r"differs from the original by 0\.01"):
        export_model(
            ExportConfig(model=str(models["frozen"]), format="openvino", out=str(tmp_path / "m.xml"))
        )
    assert not list(tmp_path.iterdir())


def test_predict_has_no_ray_engine(capsys):
    assert run_main(main, ["model/", "photos/", "--out", "p", "--engine", "ray"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unrecognized arguments: --engine ray") and error.count("\n") == 1


def test_no_model_is_one_clear_line(tmp_path):
    with pytest.raises(CdulError, match="holds no trained model"):
        read_info(tmp_path)
    with pytest.raises(ConfigError, match=r"wants a name ending in \.onnx"):
        ExportConfig(model="m", out="x.xml")
