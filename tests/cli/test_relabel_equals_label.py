"""Relabelling equals labelling: a run labelled anew from stored views beside a fresh run of its photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cdul_fast
from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.pseudo_labels import AGGREGATORS
from cdul_fast.scoring.relabelling import relabel_run

PHOTOS = Path(cdul_fast.__file__).parent / "assets" / "demo" / "photos"
# Embeddings are stored in float16: half a unit in the last place of 96 components stays below this on a
# cosine; the scores follow at scale 15.
FLOAT16_COSINES = 1e-3
FLOAT16_SCORES = 5e-3


def label(out: Path, **changes: Any) -> Run:
    config = cdul_fast.LabelConfig(
        source=str(PHOTOS),
        out=str(out),
        model="tiny",
        limit=6,
        shard_size=4,
        report=False,
        quiet=True,
        **changes,
    )
    cdul_fast.label_images(config)
    return open_run(out)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return label(tmp_path_factory.mktemp("relabel") / "run")


def labels(run: Run) -> list[list[str]]:
    found: list[list[str]] = run.table(["labels"])["labels"].to_pylist()
    return found


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_every_aggregator_to_the_byte(base: Run, tmp_path: Path, aggregator: str) -> None:
    settings: dict[str, Any] = {"aggregator": aggregator, "scale": 12.5, "zeta": 0.05, "lam": 0.25}
    fresh = label(tmp_path / "fresh", **settings)
    again = relabel_run(base, tmp_path / "again", **settings).open()
    assert again.scores()[0] == fresh.scores()[0]
    assert again.scores()[1].tobytes() == fresh.scores()[1].tobytes()
    assert labels(again) == labels(fresh)
    assert again.info["thresholds"] == fresh.info["thresholds"]


def test_new_classes_to_float16(base: Run, tmp_path: Path) -> None:
    file = tmp_path / "classes.yaml"
    file.write_text("dog: []\nowl: ['an owl']\nwhale: []\n", encoding="utf-8")
    fresh = label(tmp_path / "fresh", classes=str(file))
    again = relabel_run(base, tmp_path / "again", classes=file).open()
    assert again.classes == fresh.classes == ["dog", "owl", "whale"]
    for mine, theirs in zip(again.shards, fresh.shards, strict=True):
        np.testing.assert_allclose(mine.cosines(), theirs.cosines(), atol=FLOAT16_COSINES)
    np.testing.assert_allclose(again.scores()[1], fresh.scores()[1], atol=FLOAT16_SCORES)
    np.testing.assert_array_equal(again.texts(), fresh.texts())


def test_names_the_run_has_already(base: Run, tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("\n".join(base.classes[10:20]), encoding="utf-8")
    fresh = label(tmp_path / "fresh", classes=str(file))
    again = relabel_run(base, tmp_path / "again", classes=file).open()
    # The matrix product of fewer classes may add in another order.
    np.testing.assert_allclose(again.scores()[1], fresh.scores()[1], atol=1e-6)
