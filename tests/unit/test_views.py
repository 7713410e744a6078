"""View boxes: inside the photo, never empty, as many as promised."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdul_fast.views import view_boxes, view_count, view_fits

SIDES = st.integers(1, 5000)


@given(SIDES, SIDES, st.integers(0, 12), st.floats(0, 1), st.integers(0, 5))
def test_boxes_lie_inside_and_are_never_empty(
    width: int, height: int, grid: int, overlap: float, grid2: int
) -> None:
    boxes = view_boxes(width, height, grid=grid, overlap=overlap, grid2=grid2)
    assert boxes.dtype == np.int32
    assert boxes.shape == (view_count(grid, grid2), 4)
    assert boxes[0].tolist() == [0, 0, width, height]
    x0, y0, x1, y1 = boxes.T
    assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= width).all() and (y1 <= height).all()
    assert (x1 > x0).all() and (y1 > y0).all()


@given(st.integers(3, 5000), st.integers(3, 5000), st.integers(1, 3))
def test_plain_tiles_are_equal_disjoint_and_drop_the_remainder(width: int, height: int, grid: int) -> None:
    tiles = view_boxes(width, height, grid=grid)[1:].reshape(grid, grid, 4)
    w, h = width // grid, height // grid
    for row in range(grid):
        for column in range(grid):
            assert tiles[row, column].tolist() == [column * w, row * h, (column + 1) * w, (row + 1) * h]


def test_the_usual_photo() -> None:
    boxes = view_boxes(500, 375)
    assert boxes[[0, 1, 2, 4, 9]].tolist() == [
        [0, 0, 500, 375],
        [0, 0, 166, 125],
        [166, 0, 332, 125],
        [0, 125, 166, 250],
        [332, 250, 498, 375],
    ]


def test_fewer_pixels_than_tiles_repeat_the_last_pixel() -> None:
    assert (view_boxes(1, 1) == [0, 0, 1, 1]).all()
    assert view_boxes(2, 1)[1:4].tolist() == [[0, 0, 1, 1], [1, 0, 2, 1], [1, 0, 2, 1]]
    assert view_boxes(1, 4000)[[1, 4, 9]].tolist() == [
        [0, 0, 1, 1333],
        [0, 1333, 1, 2666],
        [0, 2666, 1, 3999],
    ]


def test_overlap_is_a_share_of_a_tile() -> None:
    tiles = view_boxes(300, 300, overlap=0.2)[1:]
    # Tiles of 100 grow by 10 on each side, so neighbours share 20 pixels; the photo's edge stays the edge.
    assert tiles[0].tolist() == [0, 0, 110, 110]
    assert tiles[4].tolist() == [90, 90, 210, 210]
    assert tiles[8].tolist() == [190, 190, 300, 300]


def test_a_second_grid_follows_the_first() -> None:
    both = view_boxes(400, 400, grid=3, grid2=2)
    assert (both[:10] == view_boxes(400, 400, grid=3)).all()
    assert (both[10:] == view_boxes(400, 400, grid=2)[1:]).all()


def test_fits_treat_the_whole_image_apart() -> None:
    assert view_fits(3, "letterbox") == ["letterbox", "center_crop", "center_crop"]
    assert view_fits(1) == ["center_crop"]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: view_boxes(0, 5), "width"),
        (lambda: view_boxes(5, 5, grid=-1), "grid"),
        (lambda: view_boxes(5, 5, grid2=-1), "grid2"),
        (lambda: view_boxes(5, 5, overlap=1.1), "overlap"),
        (lambda: view_boxes(5, 5, overlap=float("nan")), "overlap"),
        (lambda: view_fits(0), "count"),
        (lambda: view_fits(2, "crop"), "global_fit"),
    ],
)
def test_wrong_calls_name_the_argument(call: Callable[[], object], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        call()
