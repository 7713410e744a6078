"""What the loop trains on: stored features in memory, or photos read, cropped and augmented by threads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cdul_fast.training.ahead import read_ahead
from cdul_fast.training.features import read_pixels

_PREFETCH = 3


class Batches(Protocol):
    """Inputs of a network by row."""

    busy: dict[str, float]
    """Seconds that reader threads spent by stage, all threads together; they work ahead of the loop."""

    def __len__(self) -> int:
        """N."""

    def read(self, parts: Sequence[Tensor], epoch: int, *, train: bool) -> Iterator[Tensor]:
        """The inputs of each part of rows, in order."""


class StoredBatches:
    """Rows of one array: pooled features [N, D] or maps [N, D, h, w]."""

    def __init__(self, features: Tensor, device: torch.device | None = None) -> None:
        self.features = features
        self.device = device or torch.device("cpu")
        self.busy: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self.features)

    def read(self, parts: Sequence[Tensor], epoch: int, *, train: bool) -> Iterator[Tensor]:
        """The rows of each part, as float32."""
        for rows in parts:
            yield self.features[rows].float().to(self.device)


class PhotoBatches:
    """Photos as normalised squares, read by threads ahead of the loop.

    Training crops are random: a box of ``crop_scale`` to all of the photo's area, slightly stretched,
    flipped every other time. Each photo's draw depends on seed, epoch and row alone, so a resumed run
    and any number of threads or processes see the same pixels.

    Args:
        photos: Files in the order of rows.
        size: Side of the input in pixels.
        mean: Per channel.
        std: Per channel.
        seed: Of the augmentation.
        crop_scale: Smallest share of the area that a training crop keeps; 1 switches crops off.
        flip: Whether training photos are flipped at random.
        fit: How a photo or crop becomes a square.
        threads: Readers; None for all cores.
        device: Where batches go.
        channels_last: Memory layout of the batches.
    """

    def __init__(
        self,
        photos: Sequence[Path],
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        seed: int = 0,
        crop_scale: float = 1 / 3,
        flip: bool = True,
        fit: str = "squash",
        threads: int | None = None,
        device: torch.device | None = None,
        channels_last: bool = False,
    ) -> None:
        from cdul_fast.execution.local_engine import available_cores

        self.photos, self.size, self.mean, self.std = photos, size, mean, std
        self.seed, self.crop_scale, self.flip, self.fit = seed, crop_scale, flip, fit
        self.device = device or torch.device("cpu")
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.busy = {"decode": 0.0, "augment": 0.0}
        self._threads = threads or available_cores()

    def __len__(self) -> int:
        return len(self.photos)

    def read(self, parts: Sequence[Tensor], epoch: int, *, train: bool) -> Iterator[Tensor]:
        """The photos of each part, [B, 3, S, S] float32."""
        with contextlib.closing(read_ahead(self._batches(parts, epoch, train), _PREFETCH)) as batches:
            for batch in batches:
                yield batch.to(self.device, memory_format=self.format, non_blocking=True)

    def _batches(self, parts: Sequence[Tensor], epoch: int, train: bool) -> Generator[Tensor, None, None]:
        with ThreadPoolExecutor(self._threads) as pool:
            for rows in parts:
                batch = np.empty((len(rows), 3, self.size, self.size), np.float32)
                jobs = [
                    pool.submit(self._photo, int(row), epoch, train, batch[place : place + 1])
                    for place, row in enumerate(rows)
                ]
                for job in jobs:
                    decode, augment = job.result()
                    self.busy["decode"] += decode
                    self.busy["augment"] += augment
                yield torch.from_numpy(batch)

    def _photo(self, row: int, epoch: int, train: bool, out: np.ndarray) -> tuple[float, float]:
        """Fill ``out``; returns the seconds of reading and decoding, and of cropping and flipping."""
        from cdul_fast import ops

        start = time.perf_counter()
        pixels = read_pixels(self.photos[row])
        decoded = time.perf_counter()
        height, width = pixels.shape[:2]
        box, flipped = [0, 0, width, height], False
        if train:
            generator = np.random.default_rng((self.seed, epoch, row))
            box = random_box(generator, width, height, self.crop_scale)
            flipped = self.flip and bool(generator.random() < 0.5)
        ops.crop_resize(
            pixels, [box], self.size, fit=self.fit, mean=self.mean, std=self.std, threads=1, out=out
        )
        if flipped:
            out[0] = out[0, :, :, ::-1].copy()
        return decoded - start, time.perf_counter() - decoded


def random_box(generator: np.random.Generator, width: int, height: int, smallest: float) -> list[int]:
    """A random crop: ``smallest`` to all of the area, sides stretched by up to 4/3, inside the photo.

    Returns:
        x0, y0, x1, y1 in pixels, end exclusive.
    """
    if smallest >= 1:
        return [0, 0, width, height]
    side = np.sqrt(generator.uniform(smallest, 1.0))
    stretch = np.exp(generator.uniform(-1, 1) * np.log(4 / 3) / 2)
    new_width = max(1, min(width, round(width * side * stretch)))
    new_height = max(1, min(height, round(height * side / stretch)))
    left = int(generator.integers(0, width - new_width + 1))
    top = int(generator.integers(0, height - new_height + 1))
    return [left, top, left + new_width, top + new_height]
