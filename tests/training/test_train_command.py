"""The train command: learning, resuming after a kill, refusing changed settings, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.training.config import TrainConfig
from cdul_fast.training.runner import train_on_run

QUIET = {"quiet": True, "tensorboard": False, "cam_photos": 0, "report": False}


def config(toy_run: Path, out: Path, **more) -> TrainConfig:
    given = {
        "run": str(toy_run / "run"),
        "out": str(out),
        "backbone": "test_vit",
        "weights": "none",
        "image_size": 160,
        "epochs": 2,
        "batch_size": 8,
        "lr": 1e-3,
        "deterministic": True,
        "threads": 1,
        "precision": "fp32",
        **QUIET,
        **more,
    }
    return TrainConfig(**given)


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last.safetensors")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for k, v in checkpoint(folder).items() if k.startswith("network.")}


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    assert first.keys() == second.keys()
    return max((first[key].double() - second[key].double()).abs().max().item() for key in first)


def test_frozen_training_learns_and_records(toy_run, tmp_path):
    result = train_on_run(
        config(
            toy_run,
            tmp_path / "m",
            backbone="test_resnet",
            freeze_backbone=True,
            epochs=30,
            truth=str(toy_run / "photos.csv"),
            val=str(toy_run / "val.csv"),
            lr=3e-3,
            method_options="warmup=5,step=0.1",
        )
    )
    last = result.history[-1]
    assert len(result.history) == 30 and last["loss"] < result.history[0]["loss"]
    assert last["map"] > 70, "colours are easy even for random features"
    assert {"label_map", "label_positives", "label_changed", "ap", "lr"} <= last.keys()
    stored = json.loads((tmp_path / "m" / "history.json").read_text())
    assert stored["history"] == result.history and stored["limiting_stage"] in {"network", *stored["seconds"]}
    assert {path.name for path in (tmp_path / "m").iterdir()} >= {
        "model.json",
        "config.json",
        "last.safetensors",
        "best.safetensors",
        "backbone.safetensors",
        "observed.npz",
    }
    assert len(list((tmp_path / "m").glob("latent-*.f32"))) == 1, "old versions are gone"


class Killed(Exception):
    pass


FAST = {"backbone": "test_resnet", "image_size": 48, "precision": "bf16", "channels_last": True}


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("cdul", {}),
        ("an", {"dropout": 0.5}),
        ("role", {}),
        ("ll_cp", {}),
        ("sst", {}),
        ("sarb", {}),
        ("cdul", FAST),
    ],
    ids=lambda v: str(v)[:9],
)
@pytest.mark.parametrize("stop", [3, 7])
def test_a_kill_at_any_step_changes_nothing(toy_run, tmp_path, monkeypatch, method, more, stop):
    from cdul_fast.training.loop import Loop

    options = {"cdul": "warmup=1,source=seen", "sarb": "start=1,refresh=1"}.get(method)
    same = {"method": method, "epochs": 2, "flip": True, "crop_scale": 0.5, "checkpoint_every": 1, **more}
    if method == "cdul":
        same["ema"] = 0.9
    if method in ("ll_cp", "sst", "sarb"):
        same["truth"] = str(toy_run / "photos.csv")
    # Co-occurrence learns from pairs of known labels, blends need known positives: a tenth has neither here.
    same |= {"sst": {"observe": "all"}, "sarb": {"observe": "one"}}.get(method, {})
    train_on_run(config(toy_run, tmp_path / "whole", method_options=options, **same))

    done = [0]
    real = Loop._step

    def step(self, made):
        if done[0] == stop:
            raise Killed
        done[0] += 1
        real(self, made)

    monkeypatch.setattr(Loop, "_step", step)
    broken = config(toy_run, tmp_path / "broken", method_options=options, **same)
    with pytest.raises(Killed):
        train_on_run(broken)
    monkeypatch.setattr(Loop, "_step", real)
    result = train_on_run(broken)
    # Network, average, optimiser and what the method knows: the last two may show in later epochs alone.
    assert largest_difference(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "broken")) == 0.0
    whole = json.loads((tmp_path / "whole" / "history.json").read_text())["history"]
    assert [e["loss"] for e in whole] == [e["loss"] for e in result.history]
    steps = [json.loads((tmp_path / name / "run.json").read_text())["steps"] for name in ("whole", "broken")]
    assert steps[1] == steps[0] - stop, "no step was done twice"
    if method == "cdul":
        first, second = (next((tmp_path / n).glob("latent-*.f32")) for n in ("whole", "broken"))
        assert first.name == second.name and first.read_bytes() == second.read_bytes()


def test_a_finished_model_is_left_as_it_is(toy_run, tmp_path):
    settings = config(toy_run, tmp_path / "m", epochs=1)
    first = train_on_run(settings)
    before = (tmp_path / "m" / "last.safetensors").read_bytes()
    assert train_on_run(settings).history == first.history
    assert (tmp_path / "m" / "last.safetensors").read_bytes() == before


def test_changed_settings_are_named_and_overwrite_starts_again(toy_run, tmp_path):
    train_on_run(config(toy_run, tmp_path / "m", epochs=1))
    with pytest.raises(ConfigError, match=r"lr 0\.001, now it is 0\.1"):
        train_on_run(config(toy_run, tmp_path / "m", epochs=1, lr=0.1))
    train_on_run(config(toy_run, tmp_path / "m", epochs=1, lr=0.1, overwrite=True))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(CdulError, match="not a model directory"):
        train_on_run(config(toy_run, tmp_path / "other", overwrite=True))
    assert (tmp_path / "other" / "mine.txt").exists()


def test_a_damaged_checkpoint_is_named(toy_run, tmp_path):
    settings = config(toy_run, tmp_path / "m", epochs=1)
    train_on_run(settings)
    (tmp_path / "m" / "last.safetensors").write_bytes(b"broken")
    with pytest.raises(CdulError, match=r"last\.safetensors is missing or damaged"):
        train_on_run(settings)


def test_budgets_are_stored_and_need_truth(toy_run, tmp_path):
    with pytest.raises(ConfigError, match="observe one needs the true labels"):
        train_on_run(config(toy_run, tmp_path / "a", method="ll_r"))
    train_on_run(config(toy_run, tmp_path / "b", method="ll_r", truth=str(toy_run / "photos.csv"), epochs=1))
    with np.load(tmp_path / "b" / "observed.npz") as kept:
        assert kept["budget"] == "one" and (kept["observed"].sum(1) == 1).all()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"method": "x"}, "--method wants"),
        ({"out": None}, "--out is missing"),
        ({"run": None}, "run directory is missing"),
        ({"lr": -1.0}, "--lr wants"),
        ({"crop_scale": 0.0}, "--crop-scale wants"),
        ({"method_options": "sigma"}, "--method-options wants name=value"),
        ({"compile": True, "freeze_backbone": True}, "--compile"),
    ],
)
def test_wrong_settings_name_the_flag(given, named):
    with pytest.raises(ConfigError, match=named):
        TrainConfig(**{"run": "r", "out": "o", **given})


def test_wrong_method_settings_and_photos_are_user_errors(toy_run, tmp_path):
    with pytest.raises(ConfigError, match="no setting 'sgma'"):
        train_on_run(config(toy_run, tmp_path / "a", method_options="sgma=1"))
    with pytest.raises(ConfigError, match="overshoot"):
        train_on_run(config(toy_run, tmp_path / "b", method_options="sigma=0.1,step=0.6"))
    with pytest.raises(ConfigError, match="neither a timm model"):
        train_on_run(config(toy_run, tmp_path / "c", backbone="nosuchnet"))


@pytest.mark.parametrize("method", ["cdul", "epr", "role", "sarb"])
def test_two_processes_equal_one(toy_run, tmp_path, method):
    """EPR's penalty, ROLE's labels and SARB's blends need the whole batch; CDUL's labels are sharded."""
    arguments = [
        str(toy_run / "run"), "--backbone", "test_vit", "--weights", "none", "--image-size", "160",
        "--epochs", "2", "--batch-size", "9", "--lr", "1e-3", "--method", method, "--deterministic",
        "--optimizer", "sgd", "--no-tensorboard", "--cam-photos", "0", "--no-report", "--quiet",
        "--threads", "1", "--truth", str(toy_run / "photos.csv"), "--precision", "fp32",
    ]  # fmt: skip
    if method == "cdul":
        arguments += ["--method-options", "warmup=1"]
    if method == "sarb":
        arguments += ["--method-options", "start=1,refresh=1,width=8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    one, two = tmp_path / "one", tmp_path / "two"
    command = [sys.executable, "-m", "cdul_fast.train", *arguments]
    subprocess.run([*command, "--out", str(one)], check=True, env=environment, timeout=280)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*torchrun, "-m", "cdul_fast.train", *arguments, "--out", str(two)],
        check=True,
        env=environment,
        timeout=280,
    )
    assert largest_difference(weights(one), weights(two)) < 1e-4
    if method == "cdul":
        first, second = (np.fromfile(next(f.glob("latent-*.f32")), "<f4") for f in (one, two))
        assert np.abs(first - second).max() < 1e-4


def test_the_log_goes_on_over_resumed_training(toy_run, tmp_path):
    out = tmp_path / "m"
    train_on_run(config(toy_run, out, backbone="test_resnet", freeze_backbone=True, epochs=2, lr=1e-3))
    log = (out / "train.log").read_text()
    for part in (
        "settings {",
        "epoch 1/2, loss",
        "epoch 2, seconds: load",
        "features of 36 photos",
        "summary",
    ):
        assert part in log, log
    train_on_run(config(toy_run, out, backbone="test_resnet", freeze_backbone=True, epochs=2, lr=1e-3))
    again = (out / "train.log").read_text()
    assert again.startswith(log) and "going on after epoch 2" in again
    train_on_run(
        config(toy_run, out, backbone="test_resnet", freeze_backbone=True, epochs=1, lr=1e-3, overwrite=True)
    )
    assert "going on" not in (out / "train.log").read_text()


def test_a_second_training_on_the_folder_refuses(toy_run, tmp_path):
    from cdul_fast.data.lock import locked

    out = tmp_path / "m"
    out.mkdir()
    with locked(out), pytest.raises(CdulError, match=r"another run is writing to .*m \(process \d+\)"):
        train_on_run(config(toy_run, out, epochs=1, overwrite=True))
    assert not (out / "config.json").exists() and not (out / "train.log").exists()
    train_on_run(config(toy_run, out, epochs=1))  # the lock is free again


def test_the_record_tells_the_time_by_stage(toy_run, tmp_path, monkeypatch):
    from cdul_fast.training import batches

    real = batches.read_pixels

    def slow(path):
        time.sleep(0.01)
        return real(path)

    monkeypatch.setattr(batches, "read_pixels", slow)
    out = tmp_path / "m"
    result = train_on_run(
        config(toy_run, out, backbone="test_resnet", image_size=32, epochs=2, val=str(toy_run / "val.csv"))
    )
    record = json.loads((out / "run.json").read_text())
    stages = record["stages"]
    assert stages.keys() == {
        *("features", "load", "forward", "backward", "step", "labels", "evaluate", "decode", "augment")
    }
    # Every photo is read once an epoch; the readers run ahead, so waiting for them is part of that time.
    assert stages["decode"] >= 2 * 36 * 0.01 and stages["augment"] > 0
    # Waiting for photos is load wherever it happens, in evaluation and before a label step too.
    assert stages["load"] > 2 * 36 * 0.01 + 2 * 24 * 0.01 and record["limiting_stage"] == "load"
    assert all(stages[name] > 0 for name in ("forward", "backward", "step", "evaluate"))
    in_a_row = sum(result.seconds.values())
    assert in_a_row <= record["seconds"], "stages follow one another, and what is in one is in no other"
    assert record["photos"] == 36 and record["steps"] == 2 * 5
    epochs = json.loads((out / "history.json").read_text())["history"]
    for stage in ("load", "forward", "backward", "evaluate"):
        total = sum(entry["stages"][stage] for entry in epochs)
        assert total == pytest.approx(result.seconds[stage], abs=0.01)
    before = (out / "run.json").read_bytes()
    train_on_run(
        config(toy_run, out, backbone="test_resnet", image_size=32, epochs=2, val=str(toy_run / "val.csv"))
    )
    assert (out / "run.json").read_bytes() == before, "a call without work keeps the record of the work"


@pytest.mark.parametrize("slow", ["loader", "network"])
def test_the_limiting_stage_is_what_is_slow(toy_run, tmp_path, monkeypatch, slow):
    """CDUL with evaluation: photos are read for the steps, the label step and the evaluation."""
    from cdul_fast.training import batches
    from cdul_fast.training.loop import Network

    owner, name, seconds = {
        "loader": (batches, "read_pixels", 0.01),
        "network": (Network, "forward", 0.1),
    }[slow]
    real = getattr(owner, name)

    def slower(*given):
        time.sleep(seconds)
        return real(*given)

    monkeypatch.setattr(owner, name, slower)
    more = {"backbone": "test_resnet", "image_size": 32, "method_options": "warmup=1", "epochs": 2}
    train_on_run(config(toy_run, tmp_path / "m", val=str(toy_run / "val.csv"), **more))
    record = json.loads((tmp_path / "m" / "run.json").read_text())
    stages = record["stages"]
    computed = stages["forward"] + stages["backward"] + stages["step"]
    if slow == "loader":
        assert record["limiting_stage"] == "load"
        # Every photo once an epoch for steps, for the label step and, the others, for evaluation. The first
        # batches of each are waited for in full; some of the rest are read while the network computes.
        everything = 2 * (36 + 36 + 24) * seconds
        assert 0.5 * everything < stages["load"] < stages["load"] + computed
        assert stages["labels"] + stages["evaluate"] < 0.5 * stages["load"]
        assert record["images_per_second"] < 1 / seconds
    else:
        assert record["limiting_stage"] == "network"
        assert computed >= 2 * 5 * seconds and stages["labels"] >= 2 * seconds <= stages["evaluate"]
        assert stages["load"] < 0.5 * computed
        assert record["images_per_second"] < 36 / (5 * seconds)


def test_soft_labels_have_the_scale_of_the_run(toy_run, tmp_path):
    """End to end the run's own; a recipe's is in proportion to it, for it was measured at CLIP's 100."""
    from cdul_fast.data import from_cosines
    from cdul_fast.data.run_dir import open_run
    from cdul_fast.training.dataset import open_photos
    from cdul_fast.training.recipes import resolved_recipe

    cosines = np.random.default_rng(0).uniform(0.1, 0.3, (36, 3))
    ids = [f"photos_{number:03d}" for number in range(36)]
    classes = ("red", "green", "blue")
    from_cosines(ids, classes, cosines, cosines, cosines, toy_run / "photos", tmp_path / "run", scale=15.0)

    def softmax(scale):
        raised = np.exp(scale * (cosines - cosines.max(1, keepdims=True)))
        return raised / raised.sum(1, keepdims=True)

    def soft(**more):
        given = config(toy_run, tmp_path / "m", run=str(tmp_path / "run"), **more)
        return open_photos(given, resolved_recipe(given).label_scale)[0].soft

    assert open_run(tmp_path / "run").scores()[1] == pytest.approx(softmax(15), abs=1e-4)
    assert soft() == pytest.approx(softmax(15), abs=1e-4)
    assert soft(freeze_backbone=True, method="cdul") == pytest.approx(softmax(30), abs=1e-4)
    assert soft(freeze_backbone=True, method="soft") == pytest.approx(softmax(15), abs=1e-4)
    assert soft(freeze_backbone=True, label_scale=50.0) == pytest.approx(softmax(50), abs=1e-4)


def test_training_that_diverges_says_so(toy_run, tmp_path):
    wild = {"optimizer": "sgd", "lr": 100.0, "weight_decay": 100.0, "epochs": 3, "image_size": 32}
    with pytest.raises(CdulError, match=r"loss of epoch \d is not a finite number"):
        train_on_run(config(toy_run, tmp_path / "m", backbone="test_resnet", **wild))


def voc_folder(base: Path, photos: Path, count: int) -> Path:
    """Photos as a VOC data set of one split, in which every ``red`` is marked difficult."""
    root = base / "VOC2012"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True)
    ids = [f"val_{number:03d}" for number in range(count)]
    (root / "ImageSets" / "Main" / "val.txt").write_text("\n".join(ids))
    for one in ids:
        (root / "JPEGImages" / f"{one}.jpg").write_bytes((photos / f"{one}.png").read_bytes())
        objects = [("person", 0), ("dog", 1)]
        marks = "".join(
            f"<object><name>{name}</name><difficult>{hard}</difficult></object>" for name, hard in objects
        )
        (root / "Annotations" / f"{one}.xml").write_text(f"<annotation>{marks}</annotation>")
    return root


@pytest.mark.parametrize(("given", "dogs"), [("absent", 0), ("present", 6), ("ignore", -6)])
def test_difficult_objects_count_as_asked(toy_run, tmp_path, given, dogs):
    from cdul_fast.training.dataset import labelled_photos

    root = voc_folder(tmp_path, toy_run / "val", 6)
    found = labelled_photos(str(root), ("person", "dog"), None, "val", given)
    assert len(found.photos) == 6 and all(photo.is_file() for photo in found.photos)
    assert found.truth.sum(0).tolist() == [6, dogs]
