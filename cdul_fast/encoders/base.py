"""What every encoder offers, and the few steps that all of them share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Encoder(Protocol):
    """A CLIP model on one backend: views in, unit vectors out.

    Attributes:
        name: of the model, as the user gave it.
        pretrained: tag or file of the weights, ``none`` for random ones; empty where the model has its own.
        backend: ``torch``, ``openvino``, ...
        precision: ``fp32``, ``bf16``, ``fp16`` or ``int8``.
        image_size: side of the square input, in pixels.
        mean: per channel, on 0..1.
        std: per channel, on 0..1.
        logit_scale: factor of the cosines, about 100 for OpenAI's weights.
        dim: D, the length of an embedding.
        input_dtype: of the pixels: ``float32``, ``bfloat16`` or ``float16``.
        batch: how many views a call needs to keep all threads busy; a multiple of the inner batch.
        parallel_calls: how many calls at once it makes good use of.
        fingerprint: names weights, configuration, preprocessing, backend, precision and converter.
    """

    name: str
    pretrained: str
    backend: str
    precision: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    logit_scale: float
    dim: int
    input_dtype: str
    batch: int
    parallel_calls: int
    fingerprint: str

    def embed_images(self, pixels: Any) -> Floats:
        """Embeds views; safe to call from several threads, and without the GIL while it computes.

        A view's embedding does not depend on the other views of the call.

        Args:
            pixels: [n, 3, S, S] normalised pixels of ``input_dtype``, a torch tensor or a NumPy array (uint16
                holds the bits of bfloat16); any n.

        Returns:
            [n, D], each row of length one.

        Raises:
            TypeError: another type of pixels.
            ValueError: another shape.
        """
        ...

    def embed_texts(self, texts: Sequence[str]) -> Floats:
        """Embeds prompts in float32: [n, D], each row of length one."""
        ...

    def close(self) -> None:
        """Frees what the encoder holds; it is not used afterwards."""
        ...


def unit_rows(rows: npt.NDArray[Any]) -> Floats:
    """float32 rows of length one; a row of zeros stays as it is."""
    wide = np.asarray(rows, np.float64)
    lengths = np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    unit: Floats = (wide / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


# A GPU wants more views at a time than a few cores do.
GPU_FACTOR = 16


def inner_batch(image_size: int) -> int:
    """Views of one pass on the CPU: about the pixels of ten views of 224 x 224, between 2 and 40.

    A fixed function of the model, so that results never depend on the machine or on the caller.
    """
    return min(40, max(2, 10 * 224 * 224 // (image_size * image_size)))


def check_shape(shape: Sequence[int], image_size: int) -> None:
    """Raises ValueError unless ``shape`` is [n, 3, image_size, image_size]."""
    expected = (3, image_size, image_size)
    if len(shape) != 4 or tuple(shape[1:]) != expected:
        raise ValueError(f"pixels must be [n, 3, {image_size}, {image_size}], got {list(shape)}")


def fingerprint(parts: Mapping[str, Any]) -> str:
    """A short hash of everything that decides an encoder's numbers."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]
