"""Which parts of a photo CLIP looks at: the whole image, then the tiles of one or two grids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FITS = ("center_crop", "squash", "letterbox")


def view_boxes(
    width: int, height: int, *, grid: int = 3, overlap: float = 0.0, grid2: int = 0
) -> npt.NDArray[np.int32]:
    """The boxes of a photo's views, the whole image first.

    A grid of n has n x n tiles of ``max(1, floor(width / n))`` by ``max(1, floor(height / n))`` pixels, row
    by row from the top left; the remainder at the right and at the bottom is dropped. In a photo with fewer
    pixels than tiles along a side, the last tiles repeat its last pixel.

    Args:
        width: of the photo, in pixels, 1 or more.
        height: of the photo, in pixels, 1 or more.
        grid: tiles along each side; 0 leaves the whole image alone.
        overlap: how much neighbouring tiles share, as a share of a tile, 0 to 1: each tile grows by half of
            it on every side, rounded down to whole pixels and kept inside the photo.
        grid2: a second grid whose tiles follow the first one's; 0 for none.

    Returns:
        [1 + grid**2 + grid2**2, 4] as x0, y0, x1, y1 in pixels, x1 and y1 exclusive.

    Raises:
        ValueError: a size below 1, a negative grid, or an overlap outside 0 to 1.
    """
    if width < 1 or height < 1:
        raise ValueError(f"width and height must be 1 or more, got {width} x {height}")
    for name, value in (("grid", grid), ("grid2", grid2)):
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, got {value}")
    if not 0.0 <= overlap <= 1.0:
        raise ValueError(f"overlap must lie in 0 to 1, got {overlap}")
    whole = np.array([[0, 0, width, height]], np.int32)
    tiles = [_tiles(width, height, count, overlap) for count in (grid, grid2) if count]
    return np.concatenate([whole, *tiles])


def view_fits(count: int, global_fit: str = "center_crop") -> list[str]:
    """How each of ``count`` views becomes square: ``global_fit`` for the whole image, centre crop for tiles.

    Raises:
        ValueError: the fit is none of ``center_crop``, ``squash``, ``letterbox``, or there is no view.
    """
    if global_fit not in FITS:
        raise ValueError(f"global_fit must be one of {', '.join(FITS)}, got {global_fit!r}")
    if count < 1:
        raise ValueError(f"count must be 1 or more, got {count}")
    return [global_fit] + ["center_crop"] * (count - 1)


def view_count(grid: int = 3, grid2: int = 0) -> int:
    """How many views :func:`view_boxes` gives."""
    return 1 + grid * grid + grid2 * grid2


def _tiles(width: int, height: int, count: int, overlap: float) -> npt.NDArray[np.int32]:
    x0, x1 = _spans(width, count, overlap)
    y0, y1 = _spans(height, count, overlap)
    columns, rows = np.tile(np.arange(count), count), np.repeat(np.arange(count), count)
    return np.stack([x0[columns], y0[rows], x1[columns], y1[rows]], axis=1).astype(np.int32)


def _spans(length: int, count: int, overlap: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    tile = max(1, length // count)
    start = np.minimum(np.arange(count, dtype=np.int64) * tile, length - tile)
    grow = int(overlap * tile / 2)
    return np.maximum(start - grow, 0), np.minimum(start + tile + grow, length)
