"""Pixels as the encoders that run on torch take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cdul_fast.encoders.base import check_shape


def as_tensor(pixels: Any, dtype: str, image_size: int) -> torch.Tensor:
    """The views of a call as a tensor on the same memory, checked.

    Args:
        pixels: [n, 3, S, S] floating point, a torch tensor or a NumPy array (uint16 holds bfloat16's bits).
        dtype: of the encoder's input, for messages.
        image_size: S.

    Raises:
        TypeError: another type of pixels.
        ValueError: another shape.
    """
    if isinstance(pixels, np.ndarray):
        pixels = torch.from_numpy(pixels)
        if pixels.dtype == torch.uint16:
            pixels = pixels.view(torch.bfloat16)
    if not isinstance(pixels, torch.Tensor):
        raise TypeError(f"pixels must be a torch tensor or a NumPy array, got {type(pixels).__name__}")
    if not pixels.is_floating_point():
        raise TypeError(f"pixels must be {dtype}, got {pixels.dtype}")
    check_shape(pixels.shape, image_size)
    return pixels
