"""Runs from cosines that somebody has already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdul_fast import ops
from cdul_fast.data import from_cosines, open_run
from cdul_fast.data.truth import Truth
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.scoring.evaluation import evaluate_run
from cdul_fast.scoring.label_comparison import compare_label_quality
from cdul_fast.scoring.metrics import average_precision
from cdul_fast.scoring.relabelling import relabel_run
from cdul_fast.scoring.sweeps import sweep

CLASSES = ["cat", "dog", "cup"]


def arrays(photos: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    spread = np.sort(rng.normal(0.2, 0.03, (3, photos, 3)).astype(np.float32), axis=0)
    return [spread[1], spread[2], spread[0]]


def build(out: Path, **changes: Any) -> Any:
    ids = changes.pop("ids", [f"photo {i}" for i in range(7)])
    root = changes.pop("images_root", None)
    return from_cosines(ids, CLASSES, *changes.pop("cosines", arrays(len(ids))), root, out, **changes)


def test_all_rows_are_kept_without_a_folder(tmp_path: Path) -> None:
    run = build(tmp_path / "run", shard_size=3)
    assert run.view_layout == "global,max,min" and len(run.shards) == 3
    paths, scores = run.scores()
    assert paths == [f"photo {i}" for i in range(7)]
    whole, largest, _ = arrays()
    np.testing.assert_array_equal(scores, ops.aggregate(np.stack([whole, largest], axis=1)))
    assert run.counts == {"ok": 7} and not run.missing_shards
    assert run.info["thresholds"]["rule"] == "calibrated"
    assert all(run.table(["labels"])["labels"].to_pylist())


def test_photos_are_found_by_path_name_and_stem_and_others_are_missing(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    for name in ("a.jpg", "deep/b.jpg", "deep/c.png"):
        (photos / name).write_bytes(b"x")
    run = build(tmp_path / "run", ids=["gone", "a.jpg", "deep/b.jpg", "c"], images_root=photos, shard_size=2)
    table = run.table().to_pydict()
    assert table["path"] == ["gone", "a.jpg", "deep/b.jpg", "deep/c.png"]
    assert table["status"] == ["missing", "ok", "ok", "ok"]
    assert table["scores"][0] is None and table["labels"][0] == []
    np.testing.assert_array_equal(run.shards[1].cosines()[:, 0], arrays(4)[0][2:])
    assert run.photo("deep/c.png") == photos / "deep/c.png"
    assert run.counts == {"missing": 1, "ok": 3}


def test_ids_that_fit_several_photos_or_none_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        (tmp_path / "photos" / folder / "x.jpg").write_bytes(b"x")
    with pytest.raises(ValueError, match="'x' fits several photos"):
        build(tmp_path / "run", ids=["x"], images_root=tmp_path / "photos")
    with pytest.raises(CdulError, match="none of the 1 photos"):
        build(tmp_path / "run", ids=["y"], images_root=tmp_path / "photos")
    assert not (tmp_path / "run").exists()


def test_relabelling_and_comparing_work_but_for_the_mean(tmp_path: Path) -> None:
    run = build(tmp_path / "run", shard_size=3)
    new = relabel_run(run, tmp_path / "new", zeta=0.3, scale=50.0).open()
    assert new.view_layout == "global,max,min"
    np.testing.assert_array_equal(new.scores()[1], sweep(run, [{"zeta": 0.3, "scale": 50.0}]).scores[0])
    with pytest.raises(ConfigError, match="can give global, max, cdul"):
        relabel_run(run, tmp_path / "other", aggregator="mean")
    truth = Truth(tuple(run.scores()[0]), tuple(frozenset({CLASSES[i % 3]}) for i in range(7)), "t")
    result = compare_label_quality(run, truth)
    assert "mean" not in result.average_precision and result.columns()["mean"] == [None] * 4
    assert "mean (not available)" in result._repr_html_()
    assert result.to_dict()["methods"]["mean"] is None
    assert evaluate_run(run, truth).photos == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ["a", "a"]}, "ids must be unique, 'a' stands there twice"),
        ({"ids": []}, "ids must not be empty"),
        ({"cosines": arrays(6)}, r"global_cos must be \[7, 3\]"),
        ({"cosines": [*arrays()[:2], arrays()[2] * np.nan]}, "local_min_cos must hold finite"),
        ({"aggregator": "mean"}, "aggregator 'mean' needs"),
        ({"zeta": 2.0}, "zeta must lie in 0..1"),
        ({"shard_size": 0}, "shard_size must be at least 1"),
    ],
)
def test_wrong_calls_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_something_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("x", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds something already"):
        build(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]


# Macro AP in % that the data's own description gives: scale -> whole photo alone, fused with the best tile.
REFERENCE = {20.0: (85.5, 89.3), 50.0: (85.0, 88.9), 100.0: (84.0, 87.8)}


def test_the_reference_figures_of_the_real_scores(shared_data: Path, tmp_path: Path) -> None:
    data = np.load(shared_data / "voc12_clip_scores.npz")
    labels = data["labels"].astype(np.int8)
    views = np.stack([data["global_cos"], data["local_max_cos"]], axis=1)
    run = from_cosines(
        data["ids"],
        data["classes"],
        data["global_cos"],
        data["local_max_cos"],
        data["local_min_cos"],
        None,
        tmp_path / "run",
    )
    wanted = [{"aggregator": name, "scale": scale} for scale in REFERENCE for name in ("global", "cdul")]
    stored = iter(sweep(open_run(run.path), wanted).scores)
    for scale, expected in REFERENCE.items():
        for aggregator, figure in zip(("global", "cdul"), expected, strict=True):
            scores = ops.aggregate(views, aggregator=aggregator, scale=scale)
            np.testing.assert_array_equal(next(stored), scores)
            assert np.mean(average_precision(scores, labels)) * 100 == pytest.approx(figure, abs=0.05)
