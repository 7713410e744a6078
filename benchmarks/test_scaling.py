"""Time and peak memory against photos, classes, grid, threads and photo size; a fitted exponent for each.

The encoder is a stub, so that what is measured is ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def _photos(folder: Path, count: int, width: int, height: int) -> Path:
    """``count`` names for 16 different JPEGs."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(min(16, count)):
        coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(
            folder / f"{i:06d}.jpg"
        )
    for i in range(16, count):
        (folder / f"{i:06d}.jpg").hardlink_to(folder / f"{i % 16:06d}.jpg")
    return folder


def _run(folder: Path, **settings: int) -> dict[str, float]:
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.scaling_run", str(folder), str(folder) + "-run", *flags]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of log(value) over log(size), from the upper half of the sizes, where fixed costs fade."""
    half = len(sizes) // 2
    return round(float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0]), 2)


def _record(benchmark: Any, sizes: list[int], runs: list[dict[str, float]]) -> None:
    benchmark.pedantic(lambda: None, rounds=1)
    benchmark.extra_info.update(
        sizes=sizes,
        seconds=[round(run["seconds"], 2) for run in runs],
        peak_memory_mib=[round(run["peak_memory_mib"]) for run in runs],
        exponent_of_time=_exponent(sizes, [run["seconds"] for run in runs]),
        exponent_of_memory=_exponent(sizes, [run["peak_memory_mib"] for run in runs]),
    )


def test_photos(benchmark: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Target: peak memory at 20,000 photos within 5 % of that at 500."""
    quick = request.config.getoption("--quick")
    sizes = [100, 500, 2000] if quick else [100, 500, 2000, 20000]
    runs = [_run(_photos(tmp_path / str(size), size, 120, 90)) for size in sizes]
    _record(benchmark, sizes, runs)
    benchmark.extra_info["memory of the last over 500 photos"] = round(
        runs[-1]["peak_memory_mib"] / runs[1]["peak_memory_mib"], 3
    )


def test_classes(benchmark: Any, tmp_path: Path) -> None:
    folder = _photos(tmp_path / "photos", 300, 120, 90)
    sizes = [20, 100, 1000, 10000]
    _record(benchmark, sizes, [_run(folder, classes=size) for size in sizes])


@pytest.mark.slow
def test_grid(benchmark: Any, tmp_path: Path) -> None:
    folder = _photos(tmp_path / "photos", 300, 240, 180)
    sizes = [1, 2, 3, 5, 7, 10]
    _record(benchmark, [size**2 + 1 for size in sizes], [_run(folder, grid=size) for size in sizes])


@pytest.mark.slow
def test_threads(benchmark: Any, tmp_path: Path) -> None:
    folder = _photos(tmp_path / "photos", 1000, 500, 375)
    sizes = [1, 2]
    _record(benchmark, sizes, [_run(folder, threads=size) for size in sizes])


@pytest.mark.slow
def test_photo_size(benchmark: Any, tmp_path: Path) -> None:
    """In pixels: 0.03, 0.19, 0.75, 3 and 12 million."""
    shapes = [(200, 150), (500, 375), (1000, 750), (2000, 1500), (4000, 3000)]
    folders = [_photos(tmp_path / str(w), 60, w, h) for w, h in shapes]
    _record(benchmark, [w * h for w, h in shapes], [_run(folder) for folder in folders])
