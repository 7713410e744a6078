"""What the tests of crop_resize share: photos, levels, open_clip's own transform."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from PIL import Image

from cdul_fast.ops import best_cpu_level

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
LEVELS = ("baseline", "avx2", "avx512")
FITS = {"center_crop": "shortest", "squash": "squash", "letterbox": "longest"}


def machine_levels():
    """The instruction sets that this machine has, the plainest first."""
    return LEVELS[: LEVELS.index(best_cpu_level()) + 1]


def skip_unless_present(level):
    if level not in machine_levels():
        pytest.skip(f"this processor lacks {level}")


@cache
def photo(width, height, seed=0):
    """Noise with many pixels at 0 and 255: every byte value, sharp edges, and overshoot to clip."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise[rng.random((height, width)) < 0.2] = 255
    noise[rng.random((height, width)) < 0.2] = 0
    noise.flags.writeable = False
    return noise


def grid_boxes(width, height, grid=3):
    """The whole photo and its tiles."""
    boxes = [(0, 0, width, height)]
    tile_width, tile_height = max(1, width // grid), max(1, height // grid)
    for row in range(grid):
        for column in range(grid):
            x0, y0 = min(column * tile_width, width - 1), min(row * tile_height, height - 1)
            boxes.append((x0, y0, min(x0 + tile_width, width), min(y0 + tile_height, height)))
    return boxes


@cache
def open_clip_views(width, height, boxes, size, fit):
    """open_clip's inference transform of crops of ``photo(width, height)``: float32 [M, 3, size, size]."""
    from open_clip.transform import image_transform

    transform = image_transform(size, is_train=False, mean=MEAN, std=STD, resize_mode=FITS[fit])
    image = Image.fromarray(photo(width, height))
    return np.stack([transform(image.crop(box)).numpy() for box in boxes])
