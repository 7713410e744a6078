"""NumPy arrays and torch tensors seen as memory: pointer, shape, dtype; torch is never imported for it."""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

import numpy as np

Array = Any  # an np.ndarray or a torch.Tensor
_CACHE_LINE_BYTES = 64
_MOST_THREADS = 1024  # each is one of the system's


_TENSOR_TYPES: dict[type, bool] = {}  # looked up on every call of an op


@cache
def _dtype_name(dtype: Hashable) -> str:
    return str(dtype).removeprefix("torch.")


def is_tensor(x: object) -> bool:
    """Whether ``x`` is a torch tensor; does not import torch."""
    cls = type(x)
    known = _TENSOR_TYPES.get(cls)
    if known is None:
        known = any(base.__module__ == "torch" and base.__name__ == "Tensor" for base in cls.__mro__)
        _TENSOR_TYPES[cls] = known
    return known


def traced(x: object) -> bool:
    """Whether torch is tracing (torch.compile, torch.export) and ``x`` is one of its tensors."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling() and isinstance(x, torch.Tensor)


def dtype_name(x: Array) -> str:
    """``float32``, ``bfloat16``, ``uint8`` and so on, the same for both kinds of array."""
    return _dtype_name(x.dtype)


def pointer(x: Array) -> int:
    """The address of the first element."""
    return int(x.data_ptr()) if is_tensor(x) else int(x.__array_interface__["data"][0])


def describe(x: object) -> str:
    """For error messages: what was got."""
    if isinstance(x, np.ndarray) or is_tensor(x):
        array: Any = x
        return f"{dtype_name(array)} of shape {tuple(array.shape)}"
    return type(x).__name__


def check_array(x: object, name: str, ndim: int | None, layout: str, *, device: object = None) -> Array:
    """Refuses what is no array on the device, or has the wrong rank.

    Args:
        x: the argument.
        name: its name, for messages.
        ndim: the rank it must have; None for any.
        layout: what its dimensions mean, such as ``[B, V, C]``.
        device: the torch device that it must lie on; None for the CPU.

    Raises:
        TypeError: ``x`` is neither a NumPy array nor a torch tensor.
        ValueError: the rank is wrong, or the tensor lies on another device or is sparse.
    """
    tensor = is_tensor(x)
    if not tensor and not isinstance(x, np.ndarray):
        raise TypeError(f"{name}: got {type(x).__name__}, expected a NumPy array or a torch tensor {layout}")
    array: Any = x
    place = array.device if tensor and not array.is_cpu else None
    if place != device:
        raise ValueError(f"{name}: lies on {place or 'the CPU'}, expected {device or 'the CPU'}")
    if tensor and array.layout is not _strided():
        raise ValueError(f"{name}: got a {array.layout} tensor, expected a dense one {layout}")
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name}: got {describe(array)}, expected {ndim} dimensions {layout}")
    return array


def readable(x: Array, dtypes: Sequence[str], fallback: str | None, name: str) -> Array:
    """``x`` itself where it is contiguous and of one of ``dtypes``, otherwise a copy that is.

    Args:
        x: a checked array.
        dtypes: dtypes that are read as they are.
        fallback: what other floating dtypes are converted to; None refuses them.
        name: the argument's name, for messages.

    Raises:
        TypeError: the dtype is not among ``dtypes`` and is not converted.
    """
    given = dtype_name(x)
    target = given
    if given not in dtypes:
        if fallback is None or "float" not in given:
            raise TypeError(f"{name}: got {describe(x)}, expected {' or '.join(dtypes)}")
        target = fallback
    if is_tensor(x):
        if x.requires_grad:
            x = x.detach()
        if target != given:
            x = x.to(getattr(sys_torch(), target))
        return x.contiguous()
    return np.asarray(x, dtype=target, order="C")


def writable(
    x: object, name: str, shape: tuple[int, ...], dtype: str, layout: str, *, device: object = None
) -> Array:
    """Checks an array that an op writes into: nothing is converted or copied, since the result would be lost.

    Raises:
        TypeError: it is no array, or of another dtype.
        ValueError: the shape differs, or it is read-only or not contiguous.
    """
    array = check_array(x, name, None, layout, device=device)
    if dtype_name(array) != dtype:
        raise TypeError(f"{name}: got {describe(array)}, expected {dtype}")
    if array.shape != shape:
        raise ValueError(f"{name}: got shape {tuple(array.shape)}, expected {shape} {layout}")
    if is_tensor(array):
        if not array.is_contiguous():
            raise ValueError(f"{name}: not contiguous; it is written in place, so a copy would not do")
        return array.detach() if array.requires_grad else array
    if not array.flags.writeable:
        raise ValueError(f"{name}: read-only; it is written in place")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: not contiguous; it is written in place, so a copy would not do")
    return array


def new_like(x: Array, shape: tuple[int, ...]) -> Array:
    """An uninitialised float32 array of the same kind, and on the same device, as ``x``."""
    if is_tensor(x):
        torch = sys_torch()
        return torch.empty(shape, dtype=torch.float32, device=x.device)
    return np.empty(shape, dtype=np.float32)


def strides_bytes(x: Array) -> tuple[int, ...]:
    """Bytes from an element to the next along each dimension."""
    if is_tensor(x):
        size = x.element_size()
        return x.stride() if size == 1 else tuple(step * size for step in x.stride())
    return tuple(x.strides)


def new_array(shape: tuple[int, ...], dtype: str, *, tensor: bool) -> Array:
    """An uninitialised array that starts on a cache line, so that whole lines can be stored past the caches.

    Args:
        shape: of the result.
        dtype: as :func:`dtype_name` spells it; ``bfloat16`` only as a tensor.
        tensor: torch or NumPy.
    """
    if tensor:
        torch = sys_torch()
        return torch.empty(shape, dtype=getattr(torch, dtype))
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    memory = np.empty(size + _CACHE_LINE_BYTES, dtype=np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE_BYTES
    return memory[start : start + size].view(kind).reshape(shape)


def cuda_device(x: object) -> Any:
    """The torch device of a tensor on a GPU; None for everything on the CPU."""
    tensor: Any = x
    return tensor.device if is_tensor(x) and tensor.is_cuda else None


def from_cuda_interface(x: object) -> Any:
    """Another library's array on a GPU as a tensor on the same memory; everything else as it is."""
    if x is not None and not is_tensor(x) and hasattr(x, "__cuda_array_interface__"):
        return sys_torch().as_tensor(x, device="cuda")
    return x


def check_number(name: str, value: object) -> float:
    """A setting as a float, infinite where it is beyond one.

    Raises:
        TypeError: it is no number.
    """
    if type(value) is float:
        return value
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}: got {type(value).__name__}, expected a number")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def thread_count(threads: int | None) -> int:
    """The native side's form of a ``threads`` argument: 0 means all cores.

    Raises:
        TypeError: ``threads`` is no integer.
        ValueError: ``threads`` is below 1.
    """
    if threads is None:
        return 0
    if type(threads) is not int and (isinstance(threads, bool) or not hasattr(threads, "__index__")):
        raise TypeError(f"threads: got {threads!r}, expected an integer, or None for all cores")
    if threads < 1:
        raise ValueError(f"threads: got {threads}, expected at least 1, or None for all cores")
    return min(int(threads), _MOST_THREADS)


@cache
def _strided() -> Any:
    return sys_torch().strided


def sys_torch() -> Any:
    """The torch module, which a caller that holds a tensor has imported already."""
    import torch

    return torch
