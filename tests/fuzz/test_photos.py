"""A sample of what ``python tests/fuzz/photos.py`` does with ten thousand photos."""

from __future__ import annotations

from pathlib import Path

import pytest
from photos import DEMO, check


def test_mutated_demo_photos_have_one_row_each() -> None:
    counts = check(sorted(DEMO.glob("*.jpg")), 150, seed=1)
    assert sum(counts.values()) == 150
    assert counts["ok"] > 20
    assert counts["decode_error"] > 20


def test_mutated_real_photos_have_one_row_each(shared_data: Path) -> None:
    photos = sorted((shared_data / "coco_photos" / "images").glob("*.jpg"))
    if not photos:
        pytest.skip("needs the real photos in ../shared/data/coco_photos, which are absent")
    counts = check(photos, 150, seed=2)
    assert sum(counts.values()) == 150
