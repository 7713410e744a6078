"""The work on one photo, as functions without state: pixels to views, embeddings to scores.

The local pipeline runs them in threads; any other engine can call the very same functions.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from cdul_fast.config import LabelConfig
from cdul_fast.data.decode import Decoded, PhotoProblem, decode_photo
from cdul_fast.data.source import Source


@dataclasses.dataclass(frozen=True)
class ViewSpec:
    """How a photo becomes the encoder's input.

    Attributes:
        grid: Tiles a side.
        overlap: Share of a tile in common with its neighbour.
        grid2: Tiles a side of a second grid, 0 for none.
        fits: [V] how each view becomes a square.
        size: Side of a view in pixels.
        mean: Per channel, on 0..1.
        std: Per channel, on 0..1.
        dtype: Element type of the encoder's input.
        max_pixels: Photos with more are refused.
        exif_rotate: Whether photos are turned upright.
        scaled_decode: Whether large JPEGs are decoded at a part of their size.
    """

    grid: int
    overlap: float
    grid2: int
    fits: tuple[str, ...]
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    dtype: str
    max_pixels: int
    exif_rotate: bool
    scaled_decode: bool = False

    @classmethod
    def of(cls, config: LabelConfig, encoder: Any, dtype: str | None = None) -> ViewSpec:
        """The specification for a run's settings and its encoder, whose input type ``dtype`` overrides."""
        from cdul_fast.views import view_count, view_fits

        return cls(
            grid=config.grid,
            overlap=config.overlap,
            grid2=config.grid2,
            fits=tuple(view_fits(view_count(config.grid, config.grid2), config.global_fit)),
            size=encoder.image_size,
            mean=tuple(encoder.mean),
            std=tuple(encoder.std),
            dtype=dtype or encoder.input_dtype,
            max_pixels=config.max_pixels,
            exif_rotate=config.exif_rotate,
            scaled_decode=config.decode == "scaled",
        )

    @property
    def views(self) -> int:
        """V, the number of views of a photo."""
        return len(self.fits)

    def decode(self, data: bytes) -> Decoded:
        """Decode a photo's file; scaled, no view has fewer pixels along its shorter side than it is made."""
        least_side = self.size * max(self.grid, self.grid2, 1) if self.scaled_decode else None
        return decode_photo(
            data, max_pixels=self.max_pixels, exif_rotate=self.exif_rotate, least_side=least_side
        )


@dataclasses.dataclass
class Prepared:
    """A photo whose views are in the batch buffer (if its status is ok), and the seconds each step took."""

    status: str
    error: str | None
    width: int
    height: int
    read_seconds: float = 0.0
    decode_seconds: float = 0.0
    crop_seconds: float = 0.0


def crop_views(pixels: np.ndarray, spec: ViewSpec, out: Any) -> None:
    """Write the views of a photo (uint8 [H, W, 3] RGB) into ``out``, [V, 3, S, S] of the encoder's type."""
    from cdul_fast import ops
    from cdul_fast.views import view_boxes

    height, width = pixels.shape[:2]
    boxes = view_boxes(width, height, grid=spec.grid, overlap=spec.overlap, grid2=spec.grid2)
    ops.crop_resize(
        pixels,
        boxes,
        spec.size,
        fit=list(spec.fits),
        mean=spec.mean,
        std=spec.std,
        dtype=spec.dtype,
        threads=1,
        out=out,
    )


def read_photo(source: Source, index: int) -> tuple[bytes, float] | Prepared:
    """The bytes of a photo and the seconds it took to read them; where there are none, what is to be said."""
    start = time.perf_counter()
    try:
        data = source.read(index)
    except PhotoProblem as problem:
        seconds = time.perf_counter() - start
        return Prepared(problem.status, problem.error, problem.width, problem.height, seconds)
    return data, time.perf_counter() - start


def prepare_photo(
    source: Source, index: int, spec: ViewSpec, out: Any, claim: Callable[[], bool] = lambda: True
) -> Prepared:
    """Read, decode and crop one photo; trouble with the photo becomes its status.

    Args:
        source: Where the photo is.
        index: Its number there.
        spec: How it becomes views.
        out: Where the views go, [V, 3, S, S] of the encoder's type.
        claim: Asked right before ``out`` is written; on False it is left alone, as nobody waits any more.
    """
    found = read_photo(source, index)
    if isinstance(found, Prepared):
        return found
    data, read_seconds = found
    start = time.perf_counter()
    photo = spec.decode(data)
    decoded = time.perf_counter()
    if photo.pixels is not None and claim():
        crop_views(photo.pixels, spec, out)
    end = time.perf_counter()
    return Prepared(
        photo.status, photo.error, photo.width, photo.height, read_seconds, decoded - start, end - decoded
    )


# In place of an aggregator: what the model gives for a photo's one view are its scores already.
AS_GIVEN = "as given"


@dataclasses.dataclass(frozen=True)
class ScoreSpec:
    """How embeddings become scores: fields as in `cdul_fast.ops.aggregate`, or the aggregator `AS_GIVEN`."""

    aggregator: str
    scale: float
    zeta: float
    lam: float


def score_views(
    embeddings: np.ndarray, texts: np.ndarray, spec: ScoreSpec, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and scores of photos.

    Args:
        embeddings: float32 [n, V, D].
        texts: float32 [C, D].
        spec: Aggregator and its settings.
        threads: At most so many threads; None for all cores.

    Returns:
        Cosines float32 [n, V, C], and scores float32 [n, C]. With `AS_GIVEN`, where D is C, there are no
        cosines: V = 0.
    """
    from cdul_fast import ops

    count, views, _ = embeddings.shape
    if spec.aggregator == AS_GIVEN:
        return np.zeros((count, 0, len(texts)), np.float32), embeddings[:, 0]
    if not count:
        return np.zeros((0, views, len(texts)), np.float32), np.zeros((0, len(texts)), np.float32)
    cosines = np.asarray(ops.cosines(embeddings, texts, threads=threads))
    return cosines, np.asarray(ops.aggregate(cosines, **dataclasses.asdict(spec), threads=threads))
