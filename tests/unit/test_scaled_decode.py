"""Views of photos that are decoded at a part of their size."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cdul_fast.execution.work import ViewSpec, crop_views
from cdul_fast.views import view_boxes, view_count, view_fits


def spec(size: int, grid: int = 3, grid2: int = 0, overlap: float = 0.0, *, scaled: bool = True) -> ViewSpec:
    fits = tuple(view_fits(view_count(grid, grid2)))
    return ViewSpec(grid, overlap, grid2, fits, size, (0,) * 3, (1,) * 3, "float32", 10**9, False, scaled)


def jpeg(width: int, height: int) -> bytes:
    """A smooth picture: what differs then is where views begin, not what decoders make of noise."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    colours = [127 + 100 * np.sin(9 * x + c) * np.cos(7 * y - c) for c in range(3)]
    stream = io.BytesIO()
    Image.fromarray(np.stack(colours, -1).astype(np.uint8)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.mark.parametrize(("grid", "grid2"), [(3, 0), (0, 0), (2, 4), (5, 0)])
@pytest.mark.parametrize("overlap", [0.0, 0.25])
@pytest.mark.parametrize("photo", [(400, 300), (401, 767), (1000, 240), (1600, 1199)])
def test_no_view_has_fewer_pixels_than_it_is_made(
    photo: tuple[int, int], overlap: float, grid: int, grid2: int
) -> None:
    size = 32
    pixels = spec(size, grid, grid2, overlap).decode(jpeg(*photo)).pixels
    assert pixels is not None
    height, width = pixels.shape[:2]
    boxes = view_boxes(width, height, grid=grid, grid2=grid2, overlap=overlap)
    assert min((boxes[:, 2] - boxes[:, 0]).min(), (boxes[:, 3] - boxes[:, 1]).min()) >= size
    # And no larger than that asks for.
    again = (min(height, width) + 1) // 2
    assert again < size * max(grid, grid2, 1) or min(height, width) == -(-min(photo) // 8)


def test_views_show_the_same() -> None:
    data = jpeg(1600, 1200)
    whole, scaled = spec(64, scaled=False), spec(64)
    pixels = [one.decode(data).pixels for one in (whole, scaled)]
    assert pixels[0].shape == (1200, 1600, 3) and pixels[1].shape == (300, 400, 3)
    views = np.empty((2, 10, 3, 64, 64), np.float32)
    for at, one in enumerate((whole, scaled)):
        crop_views(pixels[at], one, views[at])
    # A shift by one pixel of 64 would be 0.05.
    assert np.abs(views[0] - views[1]).max() < 0.02
