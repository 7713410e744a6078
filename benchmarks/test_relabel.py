"""Other settings for 100,000 stored photos of ten views and 80 classes: no photo is decoded again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cdul_fast
from benchmarks.timing import Race
from tests.run_factory import make_run


def test_relabel(race: Race, rounds: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Target: under 2 seconds for 100,000 photos."""
    photos = 10_000 if request.config.getoption("--quick") else 100_000
    cosines = np.random.default_rng(0).normal(0.2, 0.03, (photos, 10, 80)).astype(np.float32)
    run = make_run(
        tmp_path / "run", photos=photos, classes=[f"class {i}" for i in range(80)], write_photos=False,
        embeddings=False, cosines=cosines,
    )  # fmt: skip
    out = tmp_path / "other"

    def relabel(**settings: Any) -> Any:
        shutil.rmtree(out, ignore_errors=True)
        return cdul_fast.relabel_run(run, out, aggregator="mean", **settings)

    relabel(threshold=0.2)
    assert len(cdul_fast.open_run(out).scores()[0]) == photos
    race.run(
        relabel,
        {"a fixed threshold": lambda: relabel(threshold=0.2)},
        rounds=rounds(5),
        subject="relabel, calibrated",
        notes={"photos": photos, "target, seconds": 2.0},
    )
