"""How crop_resize may be called: kinds of arrays, lists, fits by box, threads, out, and what it refuses."""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import threading

import numpy as np
import pytest
import torch
from crop_cases import LEVELS, MEAN, STD, grid_boxes, machine_levels, photo
from crop_cases import skip_unless_present as need

from cdul_fast.ops import crop_resize, force_cpu_level

WIDTH, HEIGHT, SIZE = 97, 61, 33
BOXES = grid_boxes(WIDTH, HEIGHT)


@pytest.fixture
def plain():
    """The result that other ways to say the same have to equal."""
    return crop_resize(photo(WIDTH, HEIGHT), BOXES, SIZE, mean=MEAN, std=STD)


def spread_rows(image):
    wide = np.zeros((image.shape[0], image.shape[1] + 7, 3), np.uint8)
    wide[:, 2:-5] = image
    return wide[:, 2:-5]


ARRAYS = {
    "torch": lambda image: torch.from_numpy(image.copy()),
    "rows apart": spread_rows,
    "rows backwards": lambda image: image[::-1].copy()[::-1],
    "columns backwards": lambda image: image[:, ::-1].copy()[:, ::-1],
    "channels backwards": lambda image: image[:, :, ::-1].copy()[:, :, ::-1],
    "Fortran order": np.asfortranarray,
    "torch, channels first": lambda image: torch.from_numpy(image.transpose(2, 0, 1).copy()).permute(1, 2, 0),
    "torch, rows apart": lambda image: torch.from_numpy(spread_rows(image)),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("level", LEVELS)
def test_any_memory_layout_gives_the_same(plain, kind, level):
    need(level)
    with force_cpu_level(level):
        result = crop_resize(ARRAYS[kind](photo(WIDTH, HEIGHT)), BOXES, SIZE, mean=MEAN, std=STD)
    assert isinstance(result, torch.Tensor) == kind.startswith("torch")
    np.testing.assert_array_equal(np.asarray(result), plain)


@pytest.mark.parametrize("threads", [None, 1, 2, 5])
@pytest.mark.parametrize("count", [1, 10])
def test_threads_do_not_change_the_result(threads, count):
    image, boxes = photo(700, 500), grid_boxes(700, 500)[:count]
    expected = crop_resize(image, boxes, 65, threads=1)
    np.testing.assert_array_equal(crop_resize(image, boxes, 65, threads=threads), expected)


def test_a_list_of_photos_with_the_index_in_the_box(plain):
    other = photo(40, 50, seed=3)
    boxes = [(1, *box) for box in BOXES] + [(0, 3, 4, 30, 44)]
    result = crop_resize([other, photo(WIDTH, HEIGHT)], boxes, SIZE, mean=MEAN, std=STD)
    np.testing.assert_array_equal(result[:-1], plain)
    np.testing.assert_array_equal(result[-1:], crop_resize(other, [(3, 4, 30, 44)], SIZE, mean=MEAN, std=STD))


def test_one_fit_for_each_box():
    image = photo(WIDTH, HEIGHT)
    fits = ["squash", "letterbox", "center_crop"]
    result = crop_resize(image, BOXES[:3], SIZE, fit=fits, dtype="uint8")
    for view, box, fit in zip(result, BOXES, fits, strict=False):
        np.testing.assert_array_equal(view, crop_resize(image, [box], SIZE, fit=fit, dtype="uint8")[0])


@pytest.mark.parametrize("boxes", [[], np.empty((0, 4), np.int64), np.empty((0, 5), np.int32)])
def test_no_boxes_give_an_empty_result(boxes):
    assert crop_resize([photo(5, 5)], boxes, 8).shape == (0, 3, 8, 8)
    assert crop_resize([], [], 8).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8, np.uint64, torch.int32, torch.int64])
def test_boxes_of_any_integer_type(plain, dtype):
    boxes = torch.tensor(BOXES, dtype=dtype) if isinstance(dtype, torch.dtype) else np.array(BOXES, dtype)
    np.testing.assert_array_equal(crop_resize(photo(WIDTH, HEIGHT), boxes, SIZE, mean=MEAN, std=STD), plain)


def test_out_is_filled_and_returned(plain):
    for out in (np.full(plain.shape, np.nan, np.float32), torch.full(plain.shape, torch.nan)):
        assert crop_resize(photo(WIDTH, HEIGHT), BOXES, SIZE, mean=MEAN, std=STD, out=out) is out
        np.testing.assert_array_equal(np.asarray(out), plain)


def test_out_need_not_start_on_a_cache_line():
    image, boxes = photo(90, 70), [(0, 0, 90, 70)] * 40
    expected = crop_resize(image, boxes, 192)  # 17 MB: stored past the caches where it is aligned
    out = np.empty(expected.size + 1, np.float32)[1:].reshape(expected.shape)
    np.testing.assert_array_equal(crop_resize(image, boxes, 192, out=out), expected)


def test_bfloat16_bits_go_into_uint16():
    out = np.zeros((1, 3, 8, 8), np.uint16)
    crop_resize(photo(20, 20), [(0, 0, 20, 20)], 8, dtype="bfloat16", out=out)
    expected = crop_resize(photo(20, 20), [(0, 0, 20, 20)], 8, dtype="bfloat16")
    np.testing.assert_array_equal(out, expected.view(torch.uint16).numpy())


def test_calls_from_several_threads_do_not_disturb_each_other(plain):
    results = [None] * 4

    def call(i):
        for _ in range(20):
            results[i] = crop_resize(photo(WIDTH, HEIGHT), BOXES, SIZE, mean=MEAN, std=STD, threads=2)

    workers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for result in results:
        np.testing.assert_array_equal(result, plain)


def test_tables_are_kept_and_never_mixed_up():
    """More sizes than tables are kept, twice, on each level: every call gets its own."""
    for _ in range(2):
        for size in range(3, 90, 2):
            image = photo(WIDTH, HEIGHT)
            results = []
            for level in machine_levels():
                with force_cpu_level(level):
                    results.append(crop_resize(image, BOXES[:2], size, dtype="uint8"))
            for result in results[1:]:
                np.testing.assert_array_equal(result, results[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_crop(plain):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(
        target=lambda: queue.put(
            crop_resize(photo(WIDTH, HEIGHT), BOXES, SIZE, mean=MEAN, std=STD, threads=2).tobytes()
        )
    )
    child.start()
    assert queue.get(timeout=60) == plain.tobytes()
    child.join()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("fit", ["center_crop", "squash", "letterbox"])
@pytest.mark.parametrize(
    "box", [(0, 0, 30, 20), (13, 7, 14, 8), (40, 11, 97, 61), (5, 3, 60, 61), (50, 0, 53, 60)]
)
def test_what_lies_around_a_box_has_no_influence(level, box, fit):
    need(level)
    x0, y0, x1, y1 = box
    results = []
    for poison in (0, 255):
        image = np.full((HEIGHT, WIDTH, 3), poison, np.uint8)
        image[y0:y1, x0:x1] = photo(WIDTH, HEIGHT)[y0:y1, x0:x1]
        with force_cpu_level(level):
            results.append(crop_resize(image, [box], SIZE, fit=fit, dtype="uint8"))
    np.testing.assert_array_equal(results[0], results[1])


@pytest.fixture
def fenced():
    """Makes copies of photos that end, or begin, at a page that cannot be read."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = mmap.PAGESIZE
    maps = []

    def make(image, *, at_end):
        pages = -(-image.nbytes // page)
        area = mmap.mmap(-1, (pages + 2) * page)
        view = np.frombuffer(area, np.uint8)
        maps.append((area, view.ctypes.data))
        for fence in (0, (pages + 1) * page):
            assert libc.mprotect(ctypes.c_void_p(view.ctypes.data + fence), page, 0) == 0
        start = (pages + 1) * page - image.nbytes if at_end else page
        copy = view[start : start + image.nbytes].reshape(image.shape)
        copy[...] = image
        return copy

    yield make
    for area, address in maps:
        assert libc.mprotect(ctypes.c_void_p(address), len(area), mmap.PROT_READ | mmap.PROT_WRITE) == 0


@pytest.mark.skipif(not hasattr(mmap, "PROT_READ"), reason="needs mprotect")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize(
    ("width", "height"),
    [(1, 1), (2, 3), (5, 4), (16, 16), (17, 9), (21, 40), (64, 3), (97, 61), (30, 200), (333, 40)],
)
def test_no_byte_beyond_the_photo_is_read(level, fenced, at_end, width, height):
    need(level)
    image = fenced(photo(width, height), at_end=at_end)
    # Backwards too: then the last row is the first one, and the end of a row may be the end of the page.
    for view in (image, image[::-1]):
        for fit in ("center_crop", "squash", "letterbox"):
            for size in (7, 40):
                with force_cpu_level(level):
                    result = crop_resize(view, [(0, 0, width, height)], size, fit=fit, dtype="uint8")
                expected = crop_resize(view.copy(), [(0, 0, width, height)], size, fit=fit, dtype="uint8")
                np.testing.assert_array_equal(result, expected)


GOOD = {"images": np.zeros((5, 6, 3), np.uint8), "boxes": [(0, 0, 6, 5)], "size": 4}
TWO = [np.zeros((5, 6, 3), np.uint8)] * 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": "photo.jpg"}, TypeError, "images: got str, expected a NumPy array or a torch tensor"),
        ({"images": np.zeros((5, 6), np.uint8)}, ValueError, r"images: got uint8 of shape \(5, 6\)"),
        ({"images": np.zeros((5, 6, 4), np.uint8)}, ValueError, r"images: got uint8 of shape \(5, 6, 4\)"),
        ({"images": np.zeros((0, 6, 3), np.uint8)}, ValueError, "H and W at least 1"),
        ({"images": np.zeros((5, 6, 3), np.float32)}, ValueError, "images: got float32 .* expected uint8"),
        ({"images": torch.zeros((5, 6, 3))}, ValueError, "images: got float32 .* expected uint8"),
        ({"images": [None]}, TypeError, r"images\[0\]: got NoneType"),
        ({"boxes": [(0.0, 0.0, 6.0, 5.0)]}, TypeError, "boxes: got dtype float64, expected integers"),
        ({"boxes": [(0, 0, 6)]}, ValueError, r"boxes: got shape \(1, 3\), expected \[M, 4\] or \[M, 5\]"),
        ({"boxes": [(0, 0, 6, 6)]}, ValueError, r"boxes\[0\]: got \[0, 0, 6, 6\], expected .* y1 <= 5"),
        ({"boxes": [(0, 0, 6, 5), (3, 0, 3, 5)]}, ValueError, r"boxes\[1\]: got \[3, 0, 3, 5\]"),
        ({"boxes": [(-1, 0, 6, 5)]}, ValueError, r"boxes\[0\]: got \[-1, 0, 6, 5\]"),
        ({"boxes": [(0, 0, 2**62, 5)]}, ValueError, "expected 0 <= x0 < x1 <= 6"),
        ({"images": TWO}, ValueError, r"boxes: got shape \(1, 4\) with 2 images, expected \[M, 5\]"),
        ({"images": TWO, "boxes": [(2, 0, 0, 6, 5)]}, ValueError, r"expected an image index in \[0, 2\)"),
        ({"size": 0}, ValueError, "size: got 0, expected 1 to 16384"),
        ({"size": 16385}, ValueError, "size: got 16385"),
        ({"size": 2**80}, ValueError, "size: got"),
        ({"size": 4.0}, TypeError, "size: got 4.0, expected an integer"),
        ({"fit": "fill"}, ValueError, "fit: got 'fill', expected one of center_crop, squash, letterbox"),
        ({"fit": ["squash", "squash"]}, ValueError, "fit: got 2 fits for 1 boxes"),
        ({"dtype": "float64"}, ValueError, "dtype: got 'float64', expected one of float32"),
        ({"mean": MEAN}, ValueError, "mean and std: got one of them, expected both or neither"),
        ({"mean": MEAN, "std": STD, "dtype": "uint8"}, ValueError, "dtype uint8, which is not normalised"),
        ({"mean": (0.5,), "std": STD}, ValueError, r"mean: got \[0.5\], expected three numbers"),
        ({"mean": MEAN, "std": (1.0, 0.0, 1.0)}, ValueError, "std: got .*, expected three positive numbers"),
        ({"mean": (float("nan"), 0, 0), "std": STD}, ValueError, "mean: got"),
        ({"threads": 0}, ValueError, "threads: got 0, expected at least 1"),
        ({"out": np.zeros((1, 3, 4, 5), np.float32)}, ValueError, "out: got shape"),
        ({"out": np.zeros((1, 3, 4, 4))}, TypeError, "out: got float64"),
        ({"out": np.zeros((1, 3, 4, 8), np.float32)[..., ::2]}, ValueError, "out: not contiguous"),
        ({"out": [0]}, TypeError, "out: got list"),
    ],
)
def test_a_wrong_call_names_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        crop_resize(**{**GOOD, **change})


def test_a_read_only_out_is_refused():
    out = np.zeros((1, 3, 4, 4), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out: read-only"):
        crop_resize(**GOOD, out=out)
