"""Memory does not grow with the number of photos."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def peak(folder: Path, photos: int) -> float:
    """MiB of a process that labels so many photos with a stub encoder."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "0.jpg")
    for number in range(1, photos):
        (folder / f"{number}.jpg").hardlink_to(folder / "0.jpg")
    command = [sys.executable, "-m", "benchmarks.scaling_run", str(folder), f"{folder}-run"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.splitlines()[-1])["peak_memory_mib"])


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a child is Linux's VmHWM")
def test_many_shards_need_the_memory_of_few(tmp_path: Path) -> None:
    assert peak(tmp_path / "many", 5 * 1024) < 1.08 * peak(tmp_path / "few", 512)
