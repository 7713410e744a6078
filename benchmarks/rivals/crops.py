"""The other ways to cut, resize and normalise ten views of one photo; each returns float32 [V, 3, S, S]."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.rivals.pillow_simd import Plan

Call = Callable[[], Any]


def open_clip_transform(pixels: np.ndarray, boxes: np.ndarray, size: int, mean: Any, std: Any) -> Call:
    """open_clip's own inference transform of each crop: the definition of what is right."""
    from open_clip.transform import image_transform

    transform = image_transform(size, is_train=False, mean=mean, std=std)
    image = Image.fromarray(pixels)
    return lambda: torch.stack([transform(image.crop(tuple(map(int, box)))) for box in boxes])


def pillow_uint8(pixels: np.ndarray, boxes: np.ndarray, size: int) -> Call:
    """Pillow's resize and centre crop alone, uint8 [V, 3, S, S]."""
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    resize, crop = Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)
    image = Image.fromarray(pixels)

    def call() -> torch.Tensor:
        views = [np.asarray(crop(resize(image.crop(tuple(map(int, box)))))) for box in boxes]
        return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).contiguous()

    return call


def rivals(
    pixels: np.ndarray, boxes: np.ndarray, size: int, mean: Any, std: Any, threads: int
) -> tuple[dict[str, Call], tuple[str, ...]]:
    """All rivals that are installed, and the names of those that are not; without pillow-simd."""
    missing: list[str] = []
    calls: dict[str, Call] = {
        "open_clip": _threaded_open_clip(pixels, boxes, size, mean, std, threads),
        "Pillow resize alone": _pillow_resize(pixels, boxes, size),
        "torchvision v2": _torchvision(pixels, boxes, size, mean, std),
    }
    for name, build in (("OpenCV + blobFromImage", _opencv), ("kornia-rs", _kornia)):
        try:
            calls[name] = build(pixels, boxes, size, mean, std)
        except ImportError:
            missing.append(name)
    return calls, tuple(missing)


def levels_from_pillow(result: Any, exact: torch.Tensor, std: Any) -> float:
    """The largest difference from the exact result, in levels of 255; nan for a rival that only resizes."""
    if not isinstance(result, torch.Tensor) or result.shape != exact.shape:
        return float("nan")
    scale = torch.tensor(std).view(1, 3, 1, 1) * 255
    return round(float(((result.float() - exact) * scale).abs().max()), 2)


def _threaded_open_clip(
    pixels: np.ndarray, boxes: np.ndarray, size: int, mean: Any, std: Any, threads: int
) -> Call:
    if threads == 1:
        return open_clip_transform(pixels, boxes, size, mean, std)
    halves = [open_clip_transform(pixels, part, size, mean, std) for part in np.array_split(boxes, threads)]
    pool = ThreadPoolExecutor(threads)
    return lambda: torch.cat(list(pool.map(lambda call: call(), halves)))


def plans(boxes: np.ndarray, size: int) -> list[Plan]:
    """The crops, each with the size that Pillow's resize brings it to."""
    found: list[Plan] = []
    for x0, y0, x1, y1 in boxes.tolist():
        width, height = x1 - x0, y1 - y0
        short = min(width, height)
        found.append(((x0, y0, x1, y1), (int(size * width / short), int(size * height / short))))
    return found


def _pillow_resize(pixels: np.ndarray, boxes: np.ndarray, size: int) -> Call:
    image, crops = Image.fromarray(pixels), plans(boxes, size)
    return lambda: [image.crop(box).resize(shape, Image.Resampling.BICUBIC) for box, shape in crops]


def _torchvision(pixels: np.ndarray, boxes: np.ndarray, size: int, mean: Any, std: Any) -> Call:
    from torchvision.transforms.v2 import InterpolationMode, functional

    # A channels-last view of uint8 is the fastest of its variants.
    source = torch.from_numpy(pixels.copy()).permute(2, 0, 1)

    def call() -> torch.Tensor:
        views = []
        for x0, y0, x1, y1 in boxes.tolist():
            view = functional.resize(
                source[:, y0:y1, x0:x1], [size], InterpolationMode.BICUBIC, antialias=True
            )
            views.append(functional.center_crop(view, [size, size]))
        return functional.normalize(
            functional.to_dtype(torch.stack(views), torch.float32, scale=True), list(mean), list(std)
        )

    return call


def _opencv(pixels: np.ndarray, boxes: np.ndarray, size: int, mean: Any, std: Any) -> Call:
    import cv2

    scale = 1 / (255 * np.asarray(std, dtype=np.float32)).reshape(1, 3, 1, 1)
    shift = (np.asarray(mean) * 255).tolist()

    def call() -> torch.Tensor:
        views = []
        for x0, y0, x1, y1 in boxes.tolist():
            width, height = x1 - x0, y1 - y0
            short = min(width, height)
            shape = (int(size * width / short), int(size * height / short))
            view = cv2.resize(pixels[y0:y1, x0:x1], shape, interpolation=cv2.INTER_CUBIC)
            left, top = round((shape[0] - size) / 2), round((shape[1] - size) / 2)
            views.append(view[top : top + size, left : left + size])
        blob = cv2.dnn.blobFromImages(views, 1.0, (size, size), shift, swapRB=False)
        blob *= scale
        return torch.from_numpy(blob)

    return call


def _kornia(pixels: np.ndarray, boxes: np.ndarray, size: int, mean: Any, std: Any) -> Call:
    import kornia_rs

    resize = getattr(kornia_rs, "resize", None) or kornia_rs.imgproc.resize
    mean32 = np.asarray(mean, dtype=np.float32)
    std32 = np.asarray(std, dtype=np.float32)

    def call() -> torch.Tensor:
        views = []
        for x0, y0, x1, y1 in boxes.tolist():
            width, height = x1 - x0, y1 - y0
            short = min(width, height)
            shape = (int(size * height / short), int(size * width / short))
            view = resize(np.ascontiguousarray(pixels[y0:y1, x0:x1]), shape, "bicubic")
            top, left = round((shape[0] - size) / 2), round((shape[1] - size) / 2)
            views.append(view[top : top + size, left : left + size])
        floats = (np.stack(views).astype(np.float32) / 255 - mean32) / std32
        return torch.from_numpy(np.ascontiguousarray(floats.transpose(0, 3, 1, 2)))

    return call
