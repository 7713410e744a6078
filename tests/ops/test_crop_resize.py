"""crop_resize against open_clip's own transform and against the readable reference, to the bit."""

from __future__ import annotations

import numpy as np
import PIL
import pytest
import torch
from crop_cases import FITS, LEVELS, MEAN, STD, grid_boxes, machine_levels, open_clip_views, photo
from crop_cases import skip_unless_present as need
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cdul_fast.ops import crop_resize, force_cpu_level
from cdul_fast.reference import crop_resize as reference

# open_clip's transform is the reference only with the Pillow whose rules the op keeps.
needs_pillow_13 = pytest.mark.skipif(
    not PIL.__version__.startswith("13.0."), reason=f"Pillow is {PIL.__version__}, the rules are 13.0's"
)


def assert_same_bits(result, expected):
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    np.testing.assert_array_equal(result.view(np.uint8), expected.view(np.uint8))


@needs_pillow_13
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (500, 375, 224),
        (375, 500, 224),
        (223, 331, 64),
        (17, 23, 48),
        (120, 700, 96),  # the vertical pass first
        (700, 120, 96),
        (64, 64, 64),
        (31, 1200, 40),
        (
            70,
            100,
            40,
        ),  # squash loses twice as many rows as columns: the last case of the horizontal pass first
        (1333, 1000, 35),  # windows over several blocks of rows
    ],
)
def test_equals_open_clip(level, width, height, size, fit):
    need(level)
    boxes = tuple(grid_boxes(width, height))
    if fit == "letterbox":  # open_clip fails where a side rounds to nothing
        boxes = tuple(
            b for b in boxes if min(b[2] - b[0], b[3] - b[1]) * size * 2 > max(b[2] - b[0], b[3] - b[1])
        )
    with force_cpu_level(level):
        result = crop_resize(photo(width, height), boxes, size, fit=fit, mean=MEAN, std=STD)
    assert_same_bits(result, open_clip_views(width, height, boxes, size, fit))


@needs_pillow_13
@pytest.mark.parametrize("level", LEVELS)
def test_equals_open_clip_on_a_photograph(level, shared_data):
    from open_clip.transform import image_transform

    need(level)
    path = sorted(shared_data.glob("coco_photos/images/*.jpg"))[0]
    image = Image.open(path).convert("RGB")
    boxes = grid_boxes(*image.size)
    transform = image_transform(224, is_train=False, mean=MEAN, std=STD)
    expected = np.stack([transform(image.crop(box)).numpy() for box in boxes])
    with force_cpu_level(level):
        assert_same_bits(crop_resize(np.asarray(image), boxes, 224, mean=MEAN, std=STD), expected)


@needs_pillow_13
@pytest.mark.parametrize(
    ("width", "height", "new_width", "new_height"),
    [
        (100, 100, 100, 40),
        (100, 100, 90, 80),  # one more row to lose than twice the columns decides the order of the passes
        (100, 100, 90, 79),
        (100, 100, 120, 99),
        (50, 400, 70, 70),
        (7, 1, 3, 9),
    ],
)
def test_the_reference_resizes_as_pillow_does(width, height, new_width, new_height):
    image = photo(width, height)
    expected = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(
        reference.resize_bicubic(image, new_width, new_height), np.asarray(expected)
    )


sides = st.one_of(st.integers(1, 40), st.sampled_from([64, 97, 223, 331, 700]))


@given(
    width=sides,
    height=sides,
    size=st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 97])),
    fit=st.sampled_from(list(FITS)),
    threads=st.sampled_from([1, 2]),
    data=st.data(),
)
@settings(max_examples=120, deadline=None)
def test_any_crop_equals_the_reference_on_every_level(width, height, size, fit, threads, data):
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = (x0, y0, data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height)))
    image = photo(width, height, seed=1)
    expected = reference.crop_resize_uint8(image, box, size, fit=fit)
    for level in machine_levels():
        with force_cpu_level(level):
            result = crop_resize(image, [box], size, fit=fit, dtype="uint8", threads=threads)
        np.testing.assert_array_equal(result[0], expected, err_msg=level)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("fit", ["squash", "letterbox"])
@pytest.mark.parametrize(("width", "height"), [(1, 4000), (4000, 1), (3000, 5)])
def test_extreme_shapes_equal_the_reference(level, width, height, fit):
    need(level)
    box = (0, 0, width, height)
    with force_cpu_level(level):
        result = crop_resize(photo(width, height), [box], 19, fit=fit, dtype="uint8")
    expected = reference.crop_resize_uint8(photo(width, height), box, 19, fit=fit)
    np.testing.assert_array_equal(result[0], expected)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("width", "height"), [(1, 4000), (4000, 1)])
def test_the_centre_of_a_line_equals_the_reference(level, width, height):
    """A line is enlarged to 19 x 76,000 pixels, of which the reference's windows are had without the rest."""
    need(level)
    line = photo(width, height).reshape(-1, 3).astype(np.int64)
    size, long_side = 19, 19 * 4000
    expected = np.empty((size, 3), dtype=np.int64)
    for i in range(size):
        start, weights = reference.window_weights(len(line), long_side, (long_side - size) // 2 + i)
        expected[i] = np.clip((weights @ line[start : start + len(weights)] + (1 << 21)) >> 22, 0, 255)
    assert (long_side - size) % 4 == 1  # half a pixel, to even, is downwards
    with force_cpu_level(level):
        result = crop_resize(photo(width, height), [(0, 0, width, height)], size, dtype="uint8")[0]
    along = result.transpose(0, 2, 1) if width == 1 else result
    np.testing.assert_array_equal(along, np.broadcast_to(expected.T[:, None, :], along.shape))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("mean", "std"),
    [
        (None, None),
        (MEAN, STD),
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.0, -3.0, 1e6), (1e-30, 1e-3, 1e30)),  # beyond what a quotient by reciprocal can do
        ((0.1, 0.2, 0.3), (1e-7, 65504.0, 3e7)),  # float16: infinity, subnormal numbers and zero
    ],
)
@pytest.mark.parametrize("fit", ["center_crop", "letterbox"])
def test_every_pixel_value_in_every_type(level, dtype, mean, std, fit):
    need(level)
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)  # resized to its own size: unchanged
    box = (0, 0, 16, 16) if fit == "center_crop" else (0, 0, 16, 11)  # padding on two sides
    with np.errstate(over="ignore"):
        expected = torch.from_numpy(reference.crop_resize(image, box, 16, fit=fit, mean=mean, std=std))
    with force_cpu_level(level):
        result = crop_resize(torch.from_numpy(image), [box], 16, fit=fit, mean=mean, std=std, dtype=dtype)
    assert result.dtype == getattr(torch, dtype)
    assert torch.equal(result[0].view(torch.uint8), expected.to(result.dtype).view(torch.uint8))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "uint8"])
def test_a_large_output_is_stored_past_the_caches_and_is_the_same(level, dtype):
    need(level)
    boxes = [(0, 0, 90, 70)] * 36  # 36 views at 192 pixels: 16 MB as float32, 4 MB as uint8
    if dtype == "uint8":
        boxes = boxes * 4
    with force_cpu_level(level):
        many = crop_resize(torch.from_numpy(photo(90, 70).copy()), boxes, 192, dtype=dtype)
        one = crop_resize(torch.from_numpy(photo(90, 70).copy()), boxes[:1], 192, dtype=dtype)
    assert all(torch.equal(view, one[0]) for view in many)
