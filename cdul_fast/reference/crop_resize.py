"""The rules of ``ops.crop_resize``, spelled out in NumPy, slow and without Pillow.

What Pillow 13.0 does to 8-bit images, in integers; where open_clip puts its crop; how torchvision scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

COEFF_BITS = 22


def crop_resize(
    image: npt.NDArray[np.uint8],
    box: Sequence[int],
    size: int,
    *,
    fit: str = "center_crop",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> npt.NDArray[np.float32]:
    """One crop as normalised float32.

    Args:
        image: uint8 RGB [H, W, 3].
        box: x0, y0, x1, y1 in pixels, end exclusive, inside the image.
        size: side of the output in pixels.
        fit: ``center_crop``, ``squash`` or ``letterbox``.
        mean: of each channel on 0..1; None for 0.
        std: of each channel on 0..1; None for 1.

    Returns:
        [3, size, size].
    """
    scaled = crop_resize_uint8(image, box, size, fit=fit).astype(np.float32) / np.float32(255)
    mean32 = np.asarray((0, 0, 0) if mean is None else mean, dtype=np.float32)
    std32 = np.asarray((1, 1, 1) if std is None else std, dtype=np.float32)
    return np.asarray((scaled - mean32[:, None, None]) / std32[:, None, None], dtype=np.float32)


def crop_resize_uint8(
    image: npt.NDArray[np.uint8], box: Sequence[int], size: int, *, fit: str = "center_crop"
) -> npt.NDArray[np.uint8]:
    """One crop as pixels.

    Args:
        image: uint8 RGB [H, W, 3].
        box: x0, y0, x1, y1 in pixels, end exclusive, inside the image.
        size: side of the output in pixels.
        fit: ``center_crop``, ``squash`` or ``letterbox``.

    Returns:
        [3, size, size].
    """
    x0, y0, x1, y1 = box
    crop = image[y0:y1, x0:x1]
    height, width = crop.shape[:2]
    if fit == "squash":
        square = resize_bicubic(crop, size, size)
    elif fit == "letterbox":
        ratio = max(width / size, height / size)
        new_width, new_height = (max(1, round(side / ratio)) for side in (width, height))
        left, top = (size - new_width) // 2, (size - new_height) // 2
        square = np.zeros((size, size, 3), dtype=np.uint8)
        square[top : top + new_height, left : left + new_width] = resize_bicubic(crop, new_width, new_height)
    else:
        long_side = int(size * max(width, height) / min(width, height))
        new_width, new_height = (size, long_side) if width <= height else (long_side, size)
        left, top = round((new_width - size) / 2.0), round((new_height - size) / 2.0)  # halves to even
        square = resize_bicubic(crop, new_width, new_height)[top : top + size, left : left + size]
    return np.ascontiguousarray(square.transpose(2, 0, 1))


def resize_bicubic(image: npt.NDArray[np.uint8], new_width: int, new_height: int) -> npt.NDArray[np.uint8]:
    """What ``Image.resize((new_width, new_height), BICUBIC)`` of Pillow 13.0 gives.

    Args:
        image: uint8 [H, W, C].
        new_width: in pixels.
        new_height: in pixels.

    Returns:
        uint8 [new_height, new_width, C].
    """
    height, width = image.shape[:2]
    vertical_first = new_height < height and height - new_height > 2 * (width - new_width)
    if vertical_first:
        return _resize_rows(_resize_rows(image, new_height).swapaxes(0, 1), new_width).swapaxes(0, 1)
    return _resize_rows(_resize_rows(image.swapaxes(0, 1), new_width).swapaxes(0, 1), new_height)


def window_weights(in_size: int, out_size: int, index: int) -> tuple[int, npt.NDArray[np.int64]]:
    """Where output pixel ``index`` of an axis looks, and with which weights.

    Args:
        in_size: pixels of the source along the axis.
        out_size: pixels of the result along the axis.
        index: of the output pixel.

    Returns:
        The first source pixel, and the weights in units of 2 ** -22.
    """
    scale = in_size / out_size
    filter_scale = max(scale, 1.0)
    center = (index + 0.5) * scale
    first = max(int(center - 2.0 * filter_scale + 0.5), 0)
    end = min(int(center + 2.0 * filter_scale + 0.5), in_size)
    weights = [_cubic((pixel - center + 0.5) * (1.0 / filter_scale)) for pixel in range(first, end)]
    total = 0.0
    for weight in weights:  # in this order: sum() rounds otherwise
        total += weight
    scaled = [weight / total * (1 << COEFF_BITS) for weight in weights]
    return first, np.array([int(w + math.copysign(0.5, w)) for w in scaled], dtype=np.int64)


def _cubic(x: float) -> float:
    """Keys' cubic with a = -1/2."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    return 0.0


def _resize_rows(image: npt.NDArray[np.uint8], new_height: int) -> npt.NDArray[np.uint8]:
    """One pass: [H, W, C] to [new_height, W, C], rounded to 8 bits."""
    result = np.empty((new_height, *image.shape[1:]), dtype=np.uint8)
    for y in range(new_height):
        first, weights = window_weights(image.shape[0], new_height, y)
        window = image[first : first + len(weights)].astype(np.int64)
        total = np.tensordot(weights, window, axes=1) + (1 << (COEFF_BITS - 1))
        result[y] = np.clip(total >> COEFF_BITS, 0, 255)
    return result
