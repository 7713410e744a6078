"""Crops of photos as the input of an image encoder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cdul_fast import _native
from cdul_fast.ops import _cuda
from cdul_fast.ops._arrays import (
    Array,
    check_array,
    check_number,
    cuda_device,
    describe,
    dtype_name,
    from_cuda_interface,
    is_tensor,
    new_array,
    pointer,
    strides_bytes,
    sys_torch,
    thread_count,
    traced,
    writable,
)

FITS = ("center_crop", "squash", "letterbox")
DTYPES = ("float32", "bfloat16", "float16", "uint8")

_ONE_FIT = {name: np.array([code], dtype=np.int32) for code, name in enumerate(FITS)}
_FIT_ADDRESS = {name: int(codes.ctypes.data) for name, codes in _ONE_FIT.items()}
_THREE_FLOATS = (float, float, float)
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT32_TINY = float(np.finfo(np.float32).tiny)


def crop_resize(
    images: Array | Sequence[Array],
    boxes: Array | Sequence[Sequence[int]],
    size: int,
    *,
    fit: str | Sequence[str] = "center_crop",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: str = "float32",
    threads: int | None = None,
    out: Array | None = None,
) -> Array:
    """Crops photos, and resizes, fits, scales, normalises, transposes and casts each crop, in one pass.

    Equal to the bit to open_clip's inference transform of ``Image.crop(box)`` under Pillow 13.0, whatever is
    installed: bicubic, antialiased, 8 bits between the passes. A crop is an image of its own: its edges are
    where the filter stops, and no byte outside it is read. The GIL is released.

    ==============  ==================  ==============================================================
    ``fit``         open_clip's name    what becomes of a crop that is not square
    ==============  ==================  ==============================================================
    `center_crop`   `shortest`          shorter side to ``size``, the centre square is kept
    `squash`        `squash`            both sides to ``size``
    `letterbox`     `longest`           longer side to ``size``, black beside the rest; a side that
                                        would vanish keeps one pixel (open_clip fails there)
    ==============  ==================  ==============================================================

    Photos on a GPU are cropped there, to the same bits: the plan is made on the host and copied, then one
    launch is enqueued on the device's current stream.

    Args:
        images: one uint8 RGB photo [H, W, 3] or a list of them, of any sizes, all on one device. Rows may
            lie apart or run backwards; where the bytes of a row do not lie side by side, the photo is
            copied first.
        boxes: integers [M, 4] as x0, y0, x1, y1 in pixels, end exclusive, inside the photo; or [M, 5] with
            the photo's index first.
        size: side of the output in pixels, 1 to 16384.
        fit: one for all boxes, or one for each.
        mean: of each channel, of pixels on 0..1; given together with ``std``.
        std: of each channel, positive.
        dtype: ``float32``, ``bfloat16``, ``float16`` (rounded from float32, ties to even) or ``uint8``
            (pixels as they are, without mean and std).
        threads: at most this many, the caller's among them; None for all cores.
        out: where the result goes, of the result's shape and type, contiguous, on the CPU.

    Returns:
        [M, 3, size, size], a torch tensor if any photo is one or ``dtype`` is ``bfloat16``, else a NumPy
        array; without mean and std floats are pixel / 255. ``out`` itself if given.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument's shape, type or range is wrong; the message names it.
        MemoryError: result or tables do not fit memory.
    """
    if traced(images[0] if isinstance(images, (list, tuple)) and images else images):
        from cdul_fast.ops import torch_ops

        found = torch_ops.traced_crop_resize(images, boxes, size, fit, mean, std, dtype, threads)
        return torch_ops.given_out(found, out)
    call = _checked_call(images, boxes, size, fit, mean, std, dtype)
    shape = (call.crops, 3, call.size, call.size)
    out = from_cuda_interface(out)
    if out is None and call.device is not None:
        torch = sys_torch()
        out = torch.empty(shape, dtype=getattr(torch, dtype), device=call.device)
    elif out is None:
        tensor = dtype == "bfloat16" or any(is_tensor(photo) for photo in call.photos)
        out = new_array(shape, dtype, tensor=tensor)
    else:
        # NumPy has no bfloat16: uint16 takes its bits.
        as_bits = dtype == "bfloat16" and isinstance(out, np.ndarray) and out.dtype == np.uint16
        writable(out, "out", shape, "uint16" if as_bits else dtype, "[M, 3, size, size]", device=call.device)
    if call.device is not None:
        _cuda.crop_resize(call.native, call.crops, call.size, DTYPES.index(dtype), out)
    else:
        arguments: list[Any] = [*call.native, pointer(out), thread_count(threads)]
        _native.crop_resize(*arguments)
    return out


def plan_crops(
    images: Sequence[Array],
    boxes: Array | Sequence[Sequence[int]],
    size: int,
    *,
    fit: str | Sequence[str] = "center_crop",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    dtype: str = "float32",
) -> tuple[bytes, bytes]:
    """What :func:`run_crop_plan` needs of photos on a GPU: all in which one call differs from another.

    :func:`crop_resize` plans, copies and launches. Apart, the launch can be recorded in a CUDA graph, which
    goes on to other photos once their plan lies where the first one's did.

    Args:
        images: a list as in :func:`crop_resize`, on a GPU, the bytes of a row side by side; they must stay
            where they are until the crops are made.
        boxes: as in :func:`crop_resize`.
        size: as in :func:`crop_resize`.
        fit: as in :func:`crop_resize`.
        mean: as in :func:`crop_resize`.
        std: as in :func:`crop_resize`.
        dtype: as in :func:`crop_resize`.

    Returns:
        A record for each box, all of one length, and the tables that the records point into.

    Raises:
        TypeError: as :func:`crop_resize`.
        ValueError: as :func:`crop_resize`.
        RuntimeError: this build has no CUDA ops.
    """
    call = _checked_call(images, boxes, size, fit, mean, std, dtype)
    for number, (given, used) in enumerate(zip(images, call.photos, strict=True)):
        if is_tensor(given) and pointer(given) != pointer(used):
            raise ValueError(f"images[{number}]: the bytes of a row do not lie side by side")
    records, tables = _cuda.function("plan_crops")(*call.native)
    return records, tables


def run_crop_plan(records: Array, tables: Array, out: Array) -> None:
    """Enqueues the crops of a plan on the device's current stream: one launch, of parameters that stay.

    Args:
        records: uint8, on the device: the plan's records, one for each crop of ``out``. A record of zeros
            leaves its crop as it is, so that one launch serves any smaller number.
        tables: uint8, on the device: the plan's tables, at a multiple of four bytes.
        out: [M, 3, size, size] of the size and type that were planned for, contiguous, on the device.
    """
    _cuda.run("crop_resize", out, records, tables, len(out), out.shape[2], DTYPES.index(dtype_name(out)), out)


class _Call(NamedTuple):
    """Checked arguments, and the addresses in ``native`` that ``photos`` and ``kept`` keep alive."""

    photos: list[Array]
    crops: int
    size: int
    device: Any
    native: tuple[Any, ...]
    kept: tuple[Any, ...]


def _checked_call(
    images: Any,
    boxes: Any,
    size: int,
    fit: str | Sequence[str],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    dtype: str,
) -> _Call:
    photos = _check_images(images)
    box_rows = _check_boxes(boxes, len(photos), single=not isinstance(images, (list, tuple)))
    count, box_width = box_rows.shape
    fits = _check_fit(fit, count)
    if dtype not in DTYPES:
        raise ValueError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    size = _check_int("size", size)
    mean3, std3 = _check_mean_std(mean, std, dtype)
    if not 1 <= size <= 16384:
        raise ValueError(f"size: got {size}, expected 1 to 16384")
    native = (
        [(pointer(p), *p.shape[:2], strides_bytes(p)[0]) for p in photos],
        box_rows.ctypes.data,
        count,
        box_width,
        _FIT_ADDRESS[fit] if type(fit) is str else fits.ctypes.data,
        fits.size,
        size,
        DTYPES.index(dtype),
        mean3,
        std3,
    )
    device = cuda_device(photos[0]) if photos else None
    return _Call(photos, count, size, device, native, (box_rows, fits))


def _check_images(images: Any) -> list[Array]:
    """The photos as arrays whose rows are runs of RGB bytes."""
    if not isinstance(images, (list, tuple)):
        photo = from_cuda_interface(images)
        return [_check_image("images", photo, cuda_device(photo))]
    photos = [from_cuda_interface(image) for image in images]
    device = cuda_device(photos[0]) if photos else None
    return [_check_image(f"images[{i}]", photo, device) for i, photo in enumerate(photos)]


def _check_image(name: str, image: object, device: object) -> Array:
    array = check_array(image, name, 3, "[H, W, 3]", device=device)
    height, width, channels = array.shape
    if dtype_name(array) != "uint8" or channels != 3 or height < 1 or width < 1:
        raise ValueError(f"{name}: got {describe(array)}, expected uint8 [H, W, 3] with H and W at least 1")
    strides = strides_bytes(array)
    if strides[2] != 1 or (strides[1] != 3 and width > 1):
        array = array.contiguous() if is_tensor(array) else np.ascontiguousarray(array)
    return array


def _check_boxes(boxes: Any, image_count: int, *, single: bool) -> npt.NDArray[np.int64]:
    """The boxes as contiguous int64 [M, 4] or [M, 5]; their ranges are checked by the native code."""
    try:
        array = boxes.numpy(force=True) if is_tensor(boxes) else np.asarray(boxes)
    except ValueError:
        raise ValueError("boxes: got rows of different lengths, expected [M, 4] or [M, 5]") from None
    if array.size == 0 and array.ndim < 2:
        array = np.empty((0, 4 if single else 5), dtype=np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"boxes: got dtype {array.dtype}, expected integers")
    if array.ndim != 2 or array.shape[1] not in (4, 5):
        raise ValueError(f"boxes: got shape {array.shape}, expected [M, 4] or [M, 5]")
    if array.shape[1] == 4 and image_count != 1 and len(array):
        raise ValueError(
            f"boxes: got shape {array.shape} with {image_count} images, expected [M, 5], the index first"
        )
    return np.ascontiguousarray(array, dtype=np.int64)


def _check_fit(fit: str | Sequence[str], count: int) -> npt.NDArray[np.int32]:
    """Codes of the fits: one for all boxes, or one for each."""
    if type(fit) is str and fit in _ONE_FIT:
        return _ONE_FIT[fit]
    if not isinstance(fit, (str, Sequence)):
        raise TypeError(f"fit: got {type(fit).__name__}, expected a name, or one for each box")
    names = (fit,) if isinstance(fit, str) else tuple(fit)
    if not isinstance(fit, str) and len(names) != count:
        raise ValueError(f"fit: got {len(names)} fits for {count} boxes, expected one for each or one name")
    try:
        return np.array([FITS.index(name) for name in names], dtype=np.int32)
    except ValueError:
        wrong = next(name for name in names if name not in FITS)
        raise ValueError(f"fit: got {wrong!r}, expected one of {', '.join(FITS)}") from None


def _check_mean_std(
    mean: Sequence[float] | None, std: Sequence[float] | None, dtype: str
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and std of the three channels; 0 and 1 change nothing."""
    if type(mean) is type(std) is tuple and _THREE_FLOATS == (*map(type, mean),) == (*map(type, std),):
        return _known_mean_std(mean, std, dtype)
    return _read_mean_std(mean, std, dtype)


def _read_mean_std(
    mean: Sequence[float] | None, std: Sequence[float] | None, dtype: str
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    if (mean is None) != (std is None):
        raise ValueError("mean and std: got one of them, expected both or neither")
    if mean is None or std is None:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if dtype == "uint8":
        raise ValueError("mean and std: got them with dtype uint8, which is not normalised; expected neither")
    return _three("mean", mean), _three("std", std, positive=True)


# A model's are the same on every call; reading them again would be a hundredth of the time of ten crops.
_known_mean_std = lru_cache(maxsize=64)(_read_mean_std)


def _three(name: str, values: Sequence[float], *, positive: bool = False) -> tuple[float, float, float]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name}: got {type(values).__name__}, expected three numbers, one for each channel")
    numbers = tuple(check_number(name, value) for value in values)
    # As float32, which they become: finite, and not so small that a positive one vanishes.
    fit = all(abs(x) <= _FLOAT32_MAX and (not positive or x >= _FLOAT32_TINY) for x in numbers)
    if len(numbers) != 3 or not fit:
        kind = "three positive numbers" if positive else "three numbers"
        raise ValueError(f"{name}: got {list(numbers)}, expected {kind}, one for each channel")
    return numbers


def _check_int(name: str, value: object) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name}: got {value!r}, expected an integer")
    return int(value.__index__())
