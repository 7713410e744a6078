"""crop_resize against open_clip's own transform and against the readable reference, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from cdul_fast.ops import best_cpu_level, crop_resize, force_cpu_level
from cdul_fast.reference import crop_resize as reference

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
LEVELS = ("baseline", "avx2", "avx512")
FITS = {"center_crop": "shortest", "squash": "squash", "letterbox": "longest"}


@pytest.fixture(params=LEVELS)
def level(request):
    """Runs a test on each instruction set that this machine has."""
    if LEVELS.index(request.param) > LEVELS.index(best_cpu_level()):
        pytest.skip(f"this processor lacks {request.param}")
    with force_cpu_level(request.param):
        yield request.param


def photo(width, height, seed=0):
    """Noise over a gradient: every byte value, sharp edges, and overshoot to clip."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    noise[rng.random((height, width)) < 0.2] = 255
    noise[rng.random((height, width)) < 0.2] = 0
    return noise


def open_clip_transform(size, fit):
    from open_clip.transform import image_transform

    return image_transform(size, is_train=False, mean=MEAN, std=STD, resize_mode=FITS[fit])


def grid_boxes(width, height, grid=3):
    boxes = [(0, 0, width, height)]
    tile_width, tile_height = max(1, width // grid), max(1, height // grid)
    for row in range(grid):
        for column in range(grid):
            x0, y0 = min(column * tile_width, width - 1), min(row * tile_height, height - 1)
            boxes.append((x0, y0, min(x0 + tile_width, width), min(y0 + tile_height, height)))
    return boxes


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (500, 375, 224),
        (375, 500, 224),
        (223, 331, 64),
        (17, 23, 48),
        (120, 700, 96),
        (700, 120, 96),
        (64, 64, 64),
    ],
)
def test_equals_open_clip(level, width, height, size, fit):
    image = photo(width, height)
    transform = open_clip_transform(size, fit)
    boxes = grid_boxes(width, height)
    expected = np.stack([transform(Image.fromarray(image).crop(box)).numpy() for box in boxes])
    result = crop_resize(image, np.array(boxes), size, fit=fit, mean=MEAN, std=STD)
    np.testing.assert_array_equal(result.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 3), (3, 200), (200, 3), (17, 17), (97, 41)])
@pytest.mark.parametrize("size", [1, 7, 33])
def test_equals_the_reference(level, width, height, size, fit):
    image = photo(width, height, seed=1)
    box = (0, 0, width, height)
    result = crop_resize(image, [box], size, fit=fit, dtype="uint8")
    np.testing.assert_array_equal(result[0], reference.crop_resize_uint8(image, box, size, fit=fit))
