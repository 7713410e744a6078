"""Runs beside their truth: evaluate, sweep and compare."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from run_factory import CLASSES, make_run
from sklearn.metrics import average_precision_score

import cdul_fast
from cdul_fast.data.run_dir import open_run
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.pseudo_labels import LabelSettings, soft_labels
from cdul_fast.scoring.evaluation import evaluate_run
from cdul_fast.scoring.label_comparison import ZETAS, compare_label_quality
from cdul_fast.scoring.sweeps import sweep


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation")
    return make_run(folder / "run", photos=60, shard_size=16, write_photos=False, seed=4)


@pytest.fixture(scope="module")
def truth_path(run_path: Path) -> Path:
    """Every class but the last is held by the photos whose global cosine is high, with some noise."""
    run = open_run(run_path)
    cosines = np.concatenate([shard.cosines()[:, 0] for shard in run.shards])
    noise = np.random.default_rng(0).normal(0, 0.01, cosines.shape)
    held = cosines + noise > 0.205
    lines = ["image,labels"]
    for path, row in zip(run.scores()[0], held, strict=True):
        names = [name for name, one in zip(CLASSES[:-1], row, strict=False) if one]
        lines.append(f"{path},{';'.join(names)}")
    file = run_path.parent / "truth.csv"
    file.write_text("\n".join([*lines[:-3], "elsewhere.jpg,cat;zebra"]), encoding="utf-8")
    return file


def test_figures_are_scikit_learns(run_path: Path, truth_path: Path) -> None:
    run, result = open_run(run_path), evaluate_run(run_path, truth_path)
    paths, scores = run.scores()
    held = {
        line.split(",")[0]: line.split(",")[1].split(";") for line in truth_path.read_text().splitlines()[1:]
    }
    rows = [row for row, path in enumerate(paths) if path in held]
    targets = np.array([[name in held[paths[row]] for name in CLASSES] for row in rows])
    expected = [average_precision_score(targets[:, c], scores[rows][:, c]) for c in range(len(CLASSES) - 1)]
    np.testing.assert_allclose(result.average_precision[:-1], expected, atol=1e-6)
    assert result.mean_average_precision == pytest.approx(np.mean(expected), abs=1e-6)
    # The factory labels what scores 0.2 or more.
    chosen = scores[rows] >= 0.2
    hits = (chosen & targets).sum(axis=0)
    held_by = np.maximum(targets.sum(axis=0), 1)
    np.testing.assert_allclose(result.recall[:-1], (hits / held_by)[:-1])
    some = chosen.any(axis=0)
    np.testing.assert_allclose(result.precision[some], hits[some] / chosen.sum(axis=0)[some])
    assert result.photos == len(rows) == 57


def test_what_takes_no_part_is_named(run_path: Path, truth_path: Path) -> None:
    result = evaluate_run(run_path, truth_path)
    assert result.left_out == (CLASSES[-1],)
    assert np.isnan(result.average_precision[-1])
    assert result.unknown == ("zebra",)
    assert len(result.run_only) == 3 and result.truth_only == ("elsewhere.jpg",)
    text = "\n".join(result.summary())
    for part in (CLASSES[-1], "zebra", "3 scored photos without truth", "elsewhere.jpg"):
        assert part in text


def test_results_have_notebook_manners(
    run_path: Path, truth_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = cdul_fast.evaluate_run(run_path, truth_path)
    assert "mAP" in repr(result)
    assert result.to_arrow().num_rows == len(CLASSES)
    frame = result.to_pandas()
    assert frame["ap"].isna().sum() == 1 and list(frame["class"]) == list(CLASSES)
    result.show(2)
    shown = capsys.readouterr().out
    assert CLASSES[1] in shown and CLASSES[5] not in shown and "mAP" in shown
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["classes"][CLASSES[-1]]["ap"] is None


def test_hostile_names_stay_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = ["<script>x</script>", "[red]b[/red]", "c\x1b[31md"]
    run = make_run(tmp_path / "run", photos=5, classes=classes, write_photos=False, failures=())
    path = open_run(run).scores()[0][0]
    (tmp_path / "t.csv").write_text(
        f'image,labels\n{path},"<script>x</script>;[red]b[/red]"\n', encoding="utf-8"
    )
    result = evaluate_run(run, tmp_path / "t.csv")
    assert "<script>" not in result._repr_html_() and "&lt;script&gt;" in result._repr_html_()
    result.show()
    shown = capsys.readouterr().out
    assert "[red]b[/red]" in shown and "\x1b[31md" not in shown


def test_missing_shards_are_named(run_path: Path, truth_path: Path, tmp_path: Path) -> None:
    assert not evaluate_run(run_path, truth_path).missing_shards
    shutil.copytree(run_path, tmp_path / "hole")
    (tmp_path / "hole" / "labels-00001.parquet").unlink()
    for result in (
        evaluate_run(tmp_path / "hole", truth_path),
        compare_label_quality(tmp_path / "hole", truth_path),
    ):
        assert result.photos < 57 and "labels-00001.parquet" in "\n".join(result.summary())


def test_predictions_without_views_are_marked_too(run_path: Path, truth_path: Path, tmp_path: Path) -> None:
    shutil.copytree(run_path, tmp_path / "predictions")
    for path in (tmp_path / "predictions").glob("*.safetensors"):
        path.unlink()
    result = evaluate_run(tmp_path / "predictions", truth_path)
    assert result.mean_average_precision == evaluate_run(run_path, truth_path).mean_average_precision
    assert not result.missing_shards


def test_a_truth_without_common_classes_or_photos_is_refused(run_path: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.csv").write_text("image,labels\na.jpg,zebra\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="share no class"):
        evaluate_run(run_path, tmp_path / "classes.csv")
    (tmp_path / "photos.csv").write_text("image,labels\nnowhere.jpg,cat\n", encoding="utf-8")
    with pytest.raises(CdulError, match="share no photo") as caught:
        evaluate_run(run_path, tmp_path / "photos.csv")
    assert not isinstance(caught.value, ConfigError)


def test_a_sweep_gives_each_settings_own_scores(run_path: Path, truth_path: Path) -> None:
    run = open_run(run_path)
    wanted = [{"aggregator": "mean"}, {"zeta": 0.4}, LabelSettings("max", 20.0, lam=1.0)]
    result = sweep(run, wanted, truth=truth_path)
    cosines = np.concatenate([shard.cosines() for shard in run.shards])
    for scores, setting in zip(result.scores, result.settings, strict=True):
        np.testing.assert_array_equal(scores, soft_labels(cosines, setting))
    assert [s.aggregator for s in result.settings] == ["mean", "cdul", "max"]
    assert result.settings[1] == LabelSettings("cdul", 100.0, 0.4)
    assert list(result.paths) == run.scores()[0]
    assert result.mean_average_precision is not None
    assert result.to_pandas()["map"].between(0.1, 1.0).all()
    assert "3 settings" in repr(result) and "map %" in result._repr_html_()
    with pytest.raises(ConfigError, match="zeta"):
        sweep(run, [{"zeta": 2.0}])


def test_methods_stand_side_by_side(run_path: Path, truth_path: Path) -> None:
    result = compare_label_quality(run_path, truth_path, published="coco2014")
    marks = result.mean_average_precision
    assert list(marks) == ["clip", "global", "mean", "max", "cdul"]
    assert marks["global"] == pytest.approx(
        compare_label_quality(run_path, truth_path, zeta=0.5).mean_average_precision["global"]
    )
    # zeta 0 is among those tried, and there cdul is max.
    assert marks["cdul"] >= marks["max"]
    assert set(result.zeta_marks) == set(ZETAS) and result.zeta_marks[0.0] == pytest.approx(marks["max"])
    assert "on this very truth" in result.summary()[1]
    assert result.columns()["global"][1] == pytest.approx(0.654)
    figures = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert figures["published"]["cdul"] == pytest.approx(0.728)
    assert figures["methods"]["mean"]["classes"][CLASSES[-1]] is None


def test_zeta_given_is_zeta_used(run_path: Path, truth_path: Path) -> None:
    result = compare_label_quality(run_path, truth_path, zeta=0.5, scale=30.0)
    swept = sweep(run_path, [{"zeta": 0.5, "scale": 30.0}], truth=truth_path)
    assert swept.mean_average_precision is not None
    assert result.mean_average_precision["cdul"] == pytest.approx(swept.mean_average_precision[0])
    assert (result.zeta, result.scale, result.zeta_marks) == (0.5, 30.0, {})


def test_a_single_object_truth_ranks_clip_by_raw_cosines(run_path: Path, truth_path: Path) -> None:
    run, result = open_run(run_path), compare_label_quality(run_path, truth_path)
    cosines = np.concatenate([shard.cosines()[:, 0] for shard in run.shards])
    held = {
        line.split(",")[0]: line.split(",")[1].split(";") for line in truth_path.read_text().splitlines()[1:]
    }
    paths = run.scores()[0]
    rows = [row for row, path in enumerate(paths) if path in held]
    target = ["dog" in held[paths[row]] for row in rows]
    assert result.average_precision["clip"][1] == pytest.approx(
        average_precision_score(target, cosines[rows, 1]), abs=1e-6
    )
