"""The comparison of methods: its table, its files, and CLIP alone beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from cdul_fast.data import from_cosines
from cdul_fast.data.run_dir import open_run
from cdul_fast.errors import ConfigError
from cdul_fast.training.comparison import CompareConfig, compare_methods, table
from cdul_fast.training.config import TrainConfig
from cdul_fast.training.dataset import labelled_photos
from cdul_fast.training.model_dir import load_classifier
from cdul_fast.training.recipes import PAPER, Recipe
from cdul_fast.training.runner import train_on_run


def config(toy_run: Path, out: Path, **more) -> CompareConfig:
    given = {
        "run": str(toy_run / "run"),
        "truth": str(toy_run / "photos.csv"),
        "test": str(toy_run / "val.csv"),
        "least_positives": 3,
        "methods": "soft,bce",
        "seeds": "0,1",
        "epochs": 2,
        "backbone": "test_resnet",
        "weights": "none",
        "image_size": 32,
        "out": str(out),
        "threads": 1,
        **more,
    }
    return CompareConfig(**given)


@pytest.fixture(scope="module")
def compared(toy_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare")
    return out, compare_methods(config(toy_run, out))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_table_has_a_column_for_every_data_set_of_the_paper(compared):
    head, _, *lines = table(compared[1]).splitlines()
    columns = cells(head)
    assert columns[-4:] == ["paper, VOC2012", "paper, VOC2007", "paper, COCO", "paper, NUS"]
    assert [cells(line)[1] for line in lines[:2]] == ["BCE (`bce`)", "soft labels, fixed (`soft`)"]
    assert cells(lines[0])[-4:] == ["90.1", "91.3", "78.5", "50.7"]
    assert cells(lines[1])[-4:] == ["-"] * 4
    assert all(len(cells(line)) == len(columns) for line in lines)


def test_published_figures_are_the_papers():
    none = None
    figures = {
        "bce_ls": (91.6, 92.6, 79.4, 51.7), "bce": (90.1, 91.3, 78.5, 50.7), "sarb": (none, 85.7, 72.5, none),
        "asl": (none, 82.9, 69.7, none), "sst": (none, 81.5, 68.1, none), "ll_r": (89.7, 90.6, 72.6, 47.4),
        "g2netpl": (89.5, 89.9, 72.5, 48.5), "an": (85.5, 86.5, 65.1, 40.8),
        "an_ls": (86.8, 87.9, 65.5, 41.3), "wan": (84.2, 86.2, 63.9, 40.1),
        "partial_bce": (81.3, 83.1, 63.2, 39.4),
        "role": (82.6, 84.6, 67.1, 43.2), "cdul": (88.6, 89.0, 69.2, 44.0),
    }  # fmt: skip
    for method, row in figures.items():
        keys = ("voc2012", "voc2007", "coco", "nus")
        assert PAPER[method][1] == {k: v for k, v in zip(keys, row, strict=True) if v is not None}, method
    assert all(not PAPER[method][1] for method in PAPER.keys() - figures.keys())


def test_results_and_models_are_kept(compared):
    out, rows = compared
    stored = json.loads((out / "comparison.json").read_text())
    assert stored["rows"] == rows and stored["config"]["methods"] == "soft,bce"
    for row in rows[:2]:
        scores = [run["map"] for run in row["runs"]]
        assert row["map_mean"] == pytest.approx(np.mean(scores))
        assert row["map_spread"] == pytest.approx(np.std(scores, ddof=1))
        for seed in (0, 1):
            assert (out / f"{row['method']}-seed{seed}" / "model.json").is_file()


def test_clip_alone_is_not_available_without_scores(compared):
    rows = compared[1]
    (row,) = [row for row in rows if row["method"] == "zeroshot"]
    assert row["missing"].startswith("no CLIP scores for the test photos") and row["runs"] == []
    last = table(rows).splitlines()[-1]
    assert "not available: no CLIP scores for the test photos" in last and "(`zeroshot`)" in last


def test_clip_alone_from_a_run_of_the_test_photos(toy_run, tmp_path):
    truth = labelled_photos(str(toy_run / "val.csv"), ("red", "green", "blue")).truth
    generator = np.random.default_rng(5)
    shape = truth.shape
    whole = 0.2 + 0.02 * truth + generator.normal(0, 0.02, shape)
    most = whole + generator.random(shape) * 0.05
    # In another order than the test photos have.
    order = generator.permutation(len(truth))
    ids = [f"val_{number:03d}" for number in order]
    classes = ("red", "green", "blue")
    arrays = (whole[order], most[order], whole[order] - 0.01)
    from_cosines(ids, classes, *arrays, toy_run / "val", tmp_path / "run", scale=30.0)
    rows = compare_methods(
        config(toy_run, tmp_path / "out", methods="bce", seeds="0", epochs=1, test_run=str(tmp_path / "run"))
    )
    found = {row["variant"]: row["map_mean"] for row in rows if row["method"] == "zeroshot"}

    def softmax(cosines):
        raised = np.exp(30 * (cosines - cosines.max(1, keepdims=True)))
        return raised / raised.sum(1, keepdims=True)

    fused = (softmax(whole) + softmax(most)) / 2
    for variant, scores in {"cosine": whole, "softmax": softmax(whole), "final": fused}.items():
        wanted = 100 * average_precision_score(truth, scores.astype(np.float32), average="macro")
        assert found[variant] == pytest.approx(wanted, abs=0.05), variant
    assert len({round(value, 3) for value in found.values()}) == 3, "three rankings, three figures"
    lines = table(rows).splitlines()
    assert sum("(`zeroshot`)" in line for line in lines) == 3
    assert f"| {found['final']:.1f} |" in lines[-1] and "final scores" in lines[-1]


def test_clip_alone_needs_all_test_photos_and_the_same_classes(toy_run, tmp_path):
    ids = [f"val_{number:03d}" for number in range(20)]
    some = np.random.default_rng(0).random((20, 3))
    from_cosines(ids, ("red", "green", "blue"), some, some, some, toy_run / "val", tmp_path / "part")
    few = {"methods": "bce", "seeds": "0", "epochs": 1}
    rows = compare_methods(config(toy_run, tmp_path / "out", **few, test_run=str(tmp_path / "part")))
    assert "CLIP scores for 20 of 24 test photos alone" in rows[-1]["missing"]
    from_cosines(ids, ("red", "green", "pink"), some, some, some, toy_run / "val", tmp_path / "pink")
    with pytest.raises(ConfigError, match="other classes than the training photos"):
        compare_methods(config(toy_run, tmp_path / "out", **few, test_run=str(tmp_path / "pink")))


def test_clip_alone_labels_the_test_photos_as_the_training_photos(toy_run, tmp_path):
    """With the embedded model CLIP can be run: the rows come without a run of the test photos."""
    from cdul_fast.config import LabelConfig
    from cdul_fast.pipeline import label_images

    (tmp_path / "classes.txt").write_text("red\ngreen\nblue\n")
    quiet = {"classes": str(tmp_path / "classes.txt"), "model": "tiny", "quiet": True, "report": False}
    made = label_images(
        LabelConfig(source=str(toy_run / "photos"), out=str(tmp_path / "train"), grid=2, **quiet)
    )
    few = {"methods": "bce", "seeds": "0", "epochs": 1, "run": str(made.path)}
    rows = compare_methods(config(toy_run, tmp_path / "out", **few))
    assert [row.get("variant") for row in rows[1:]] == ["cosine", "softmax", "final"]
    val = str(toy_run / "val")
    direct = label_images(LabelConfig(source=val, out=str(tmp_path / "direct"), grid=2, **quiet))
    paths, scores = direct.run.scores()
    truth = labelled_photos(str(toy_run / "val.csv"), ("red", "green", "blue")).truth
    assert paths == sorted(paths) and len(paths) == len(truth)
    wanted = 100 * average_precision_score(truth, scores, average="macro")
    assert rows[-1]["map_mean"] == pytest.approx(wanted, abs=0.05)
    assert len(compare_methods(config(toy_run, tmp_path / "out", **few, zeroshot=False))) == 1


def test_without_seeds_or_known_methods_it_says_so(toy_run, tmp_path):
    with pytest.raises(ConfigError, match="--methods wants names among"):
        config(toy_run, tmp_path, methods="cdull")
    with pytest.raises(ConfigError, match="--seeds wants whole numbers"):
        config(toy_run, tmp_path, seeds="a")
    with pytest.raises(ConfigError, match=r"--options wants method\.name=value .* got 'warmup=1'"):
        config(toy_run, tmp_path, options="warmup=1")
    with pytest.raises(ConfigError, match="--finetune needs --epochs"):
        config(toy_run, tmp_path, finetune=True, epochs=None)


def test_threads_are_those_of_the_heads_too(toy_run, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        compare_methods(config(toy_run, tmp_path, methods="soft", seeds="0"))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_options_take_the_place_of_the_recipes(toy_run, tmp_path):
    given = config(toy_run, tmp_path, options="cdul.warmup=3,bce_ls.smoothing=0.2")
    assert given.recipe("cdul").options["warmup"] == "3" and given.recipe("cdul").options["sigma"] == 0.95
    assert given.recipe("bce_ls").options == {"smoothing": "0.2"} and given.recipe("soft").options == {}


def sweep_record(path: Path, scaling: str) -> str:
    """A record of two trials of ``soft``, the second the better one."""
    trials = [
        {"lr": lr, "weight_decay": 0.0, "label_scale": 50.0, "epochs": 2, "options": {}, "validation": scores}
        for lr, scores in ((0.5, [60.0, 50.0]), (0.25, [40.0, 71.0]))
    ]
    path.write_text(json.dumps({"feature_scaling": scaling, "methods": {"soft": {"trials": trials}}}))
    return str(path)


def test_recipes_of_a_sweep_are_its_best_trials(toy_run, tmp_path):
    record = sweep_record(tmp_path / "sweep.json", "none")
    given = config(toy_run, tmp_path, recipes=record, feature_scaling="none", epochs=None)
    assert given.recipe("soft") == Recipe(0.25, 0.0, 50.0, 2, {})
    with pytest.raises(ConfigError, match=r"sweep\.json has no trials of bce;"):
        given.recipe("bce")
    with pytest.raises(ConfigError, match="measured with --feature-scaling none, this is standardise"):
        config(toy_run, tmp_path, recipes=record).recipe("soft")
    for content in (
        "[]",
        "{",
        '{"feature_scaling": "none", "methods": {"soft": {"trials": []}}}',
        "[" * 5000,
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ConfigError, match=r"bad\.json has no trials of soft"):
            config(toy_run, tmp_path, recipes=str(tmp_path / "bad.json")).recipe("soft")
    with pytest.raises(ConfigError, match="No such file"):
        config(toy_run, tmp_path, recipes=str(tmp_path / "absent.json")).recipe("soft")


@pytest.mark.parametrize("scaling", ["standardise", "none"])
def test_features_are_scaled_as_asked(toy_run, tmp_path, scaling):
    """In the comparison and in training on a frozen backbone; predictions carry the scaling with them."""
    few = {"methods": "soft", "seeds": "0", "epochs": 1, "zeroshot": False, "feature_scaling": scaling}
    compare_methods(config(toy_run, tmp_path / "compare", **few))
    train_on_run(
        TrainConfig(
            run=str(toy_run / "run"), out=str(tmp_path / "train"), method="soft", backbone="test_resnet",
            weights="none", image_size=32, freeze_backbone=True, feature_scaling=scaling, epochs=1,
            tensorboard=False, cam_photos=0, report=False, quiet=True, threads=1,
        )
    )  # fmt: skip
    for folder in (tmp_path / "compare" / "soft-seed0", tmp_path / "train"):
        scales = load_classifier(folder)[0].network.scaling
        identity = bool((scales.mean == 0).all() and (scales.factor == 1).all())
        assert identity == (scaling == "none"), folder


def test_whole_networks_are_trained_and_judged_once(toy_run, tmp_path):
    few = {
        "methods": "soft,cdul",
        "seeds": "0",
        "epochs": 3,
        "batch_size": 12,
        "finetune": True,
        "lr": 1e-2,
        "options": "cdul.warmup=1,cdul.step=0.5,cdul.sigma=0.5",
        "zeroshot": False,
    }
    rows = compare_methods(config(toy_run, tmp_path, **few))
    assert [row["method"] for row in rows] == ["soft", "cdul"]
    truth = labelled_photos(str(toy_run / "val.csv"), ("red", "green", "blue")).truth
    for row in rows:
        (run,) = row["runs"]
        folder = tmp_path / f"{row['method']}-seed0"
        paths, scores = open_run(folder / "test").scores()
        assert [Path(path).name for path in paths] == [f"val_{number:03d}.png" for number in range(24)]
        wanted = 100 * average_precision_score(truth, scores, average="macro")
        assert run["map"] == pytest.approx(wanted, abs=0.05)
        assert run["epochs"] == 3 and len(run["losses"]) == 3 and run["losses"][-1] < run["losses"][0]
        stages = run["stages"]
        for stage in ("load", "forward", "backward", "step", "decode", "augment"):
            assert stages[stage] > 0, stage
        assert run["limiting_stage"] in {"network", *stages} and run["images_per_second"] > 0
    soft, cdul = (row["runs"][0] for row in rows)
    assert soft["labels_after"] == soft["labels_before"]
    assert cdul["labels_after"] != cdul["labels_before"], "labels move after the warm-up of one epoch"
    again = compare_methods(config(toy_run, tmp_path, **few))
    assert [row["map_mean"] for row in again] == [row["map_mean"] for row in rows]
    assert json.loads((tmp_path / "comparison.json").read_text())["rows"] == again
