"""A small labelled run of generated photos, on which training commands can be seen to work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

# Models this small gain nothing from a second thread, and lose much where other work shares the machine.
torch.set_num_threads(1)

CLASSES = ("red", "green", "blue")
COLOURS = np.array([[220, 40, 40], [40, 200, 60], [50, 60, 220]])


def write_photos(folder: Path, count: int, seed: int) -> np.ndarray:
    """Grey photos with a coloured square per class present; returns the truth [count, 3]."""
    from PIL import Image

    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    truth = (generator.random((count, 3)) < 0.45).astype(np.int8)
    truth[truth.sum(1) == 0, 0] = 1
    lines = ["image,labels"]
    for number in range(count):
        pixels = generator.integers(90, 150, (64, 72, 3)).astype(np.uint8)
        for place in np.flatnonzero(truth[number]):
            left, top = generator.integers(0, 44), generator.integers(0, 36)
            pixels[top : top + 26, left : left + 26] = COLOURS[place]
        name = f"{folder.name}_{number:03d}.png"
        Image.fromarray(pixels).save(folder / name)
        labels = ";".join(CLASSES[place] for place in np.flatnonzero(truth[number]))
        lines.append(f"{name},{labels}")
    folder.with_suffix(".csv").write_text("\n".join(lines) + "\n")
    return truth


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run/, photos/ and photos.csv, val/ and val.csv."""
    from cdul_fast.data import from_cosines

    base = tmp_path_factory.mktemp("toy")
    truth = write_photos(base / "photos", 36, seed=1)
    write_photos(base / "val", 24, seed=2)
    generator = np.random.default_rng(3)
    cosines = 0.2 + 0.03 * truth + generator.normal(0, 0.01, truth.shape)
    ids = [f"photos_{number:03d}" for number in range(36)]
    from_cosines(ids, CLASSES, cosines, cosines + 0.01, cosines - 0.01, base / "photos", base / "run")
    return base
