"""Features of a frozen backbone: extracted once, through OpenVINO on the CPU, and kept by fingerprint."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cdul_fast.data.decode import PhotoProblem, decode_photo, read_photo
from cdul_fast.data.sinks import replacing
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.training.ahead import read_ahead
from cdul_fast.training.arithmetic import features_precision
from cdul_fast.training.backbones import Backbone, BackboneInfo

logger = logging.getLogger("cdul_fast.train")

_BATCH = 32
_PREFETCH = 2


@dataclass(frozen=True)
class FeatureSet:
    """Features of photos in their given order.

    Attributes:
        pooled: [N, D] float32.
        maps: [N, D, g, g] float16, or None where they were not asked for.
        seconds: What the extraction took; 0 where the features were kept from before.
    """

    pooled: np.ndarray
    maps: np.ndarray | None
    seconds: float


class _MapsAndPool(nn.Module):
    """Both outputs from one forward pass, for conversion."""

    def __init__(self, backbone: Backbone, grid: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.grid = grid

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        model: Any = self.backbone
        maps = model.maps(images)
        pooled = maps.mean((2, 3)) if pools_by_mean(self.backbone) else model(images)
        if self.grid:
            maps = nn.functional.adaptive_avg_pool2d(maps, self.grid)
        return pooled, maps


def extract_features(
    backbone: Backbone,
    photos: Sequence[Path],
    *,
    image_size: int,
    map_grid: int | None = None,
    cache_dir: Path | None = None,
    fit: str = "squash",
    precision: str = "auto",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureSet:
    """Run a frozen backbone over photos.

    Args:
        backbone: The model; its weights are part of the fingerprint.
        photos: Files to read; every one must be readable.
        image_size: Side of the square input in pixels.
        map_grid: Side of the grid that feature maps are averaged to; 0 keeps their own size; None stores no
            maps.
        cache_dir: Where features are kept; a second call with the same photos, weights and settings reads
            them back. None keeps nothing.
        fit: How a photo becomes a square, as in ``cdul_fast.ops.crop_resize``.
        precision: ``bf16``, ``fp32``, or ``auto``: bf16 where the CPU has the instructions for it.
        threads: CPU threads; None for all cores.
        progress: Called with photos done and photos in all.

    Raises:
        CdulError: For a photo that cannot be read.
    """
    if precision not in ("auto", "bf16", "fp32"):
        raise ConfigError(f"precision of features must be auto, bf16 or fp32, got {precision!r}")
    precision = features_precision(precision)
    key = _fingerprint(backbone, photos, image_size, map_grid, fit, precision)
    kept = None if cache_dir is None else cache_dir / f"features-{key}.safetensors"
    if kept is not None and kept.is_file():
        found = _read(kept, len(photos))
        if found is not None:
            logger.info("features of %d photos read from %s", len(photos), kept)
            return found
    start = time.perf_counter()
    compiled = compile_for_cpu(
        backbone if map_grid is None else _MapsAndPool(backbone, map_grid),
        image_size,
        precision=precision,
        threads=threads,
    )
    pooled, maps = run_compiled(
        compiled, backbone.info, photos, image_size, fit=fit, threads=threads, progress=progress
    )
    result = FeatureSet(pooled, maps, time.perf_counter() - start)
    if kept is not None:
        _write(kept, result)
    logger.info("features of %d photos extracted in %.1f s", len(photos), result.seconds)
    return result


def run_compiled(
    compiled: Any,
    info: BackboneInfo,
    photos: Sequence[Path],
    size: int,
    *,
    fit: str = "squash",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Run what `compile_for_cpu` made over photos, which threads read and crop meanwhile.

    Returns:
        Its first output [N, D] float32, and its second [N, D, g, g] float16 or None.
    """
    count, with_maps = len(photos), len(compiled.outputs) > 1
    pooled = np.empty((count, info.channels), np.float32)
    maps: np.ndarray | None = None

    def collect(request: Any, start: int) -> None:
        nonlocal maps
        request.wait()
        stop = min(start + _BATCH, count)
        pooled[start:stop] = request.get_output_tensor(0).data[: stop - start]
        if with_maps:
            given = request.get_output_tensor(1).data
            if maps is None:
                maps = np.empty((count, *given.shape[1:]), np.float16)
            maps[start:stop] = given[: stop - start]
        if progress is not None:
            progress(stop, count)

    # Waited for here, and not told by callbacks: those want the GIL in OpenVINO's own threads, which the
    # network's destructor joins while it holds it.
    idle = [
        compiled.create_infer_request()
        for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
    ]
    busy: deque[tuple[Any, int]] = deque()
    read = _batches(photos, size, fit, info.mean, info.std, threads)
    with contextlib.closing(read_ahead(read, _PREFETCH)) as batches:
        for start, batch in batches:
            if not idle:
                request, begun = busy.popleft()
                collect(request, begun)
                idle.append(request)
            request = idle.pop()
            request.start_async({0: batch})
            busy.append((request, start))
        while busy:
            collect(*busy.popleft())
    return pooled, maps


def compile_for_cpu(
    model: nn.Module, size: int, *, precision: str, threads: int | None = None, batch: int = _BATCH
) -> Any:
    """Convert a torch model on [batch, 3, size, size] images and compile it for the CPU."""
    import openvino as ov

    from cdul_fast.encoders.openvino_passes import UNBOUND

    converted = converted_for_cpu(model, size)
    converted.reshape({converted.inputs[0]: [batch, 3, size, size]})
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "THROUGHPUT",
        **UNBOUND,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return ov.Core().compile_model(converted, "CPU", settings)


def converted_for_cpu(model: nn.Module, size: int) -> Any:
    """The OpenVINO version of a torch model on [b, 3, size, size] images, any b."""
    import openvino as ov

    training = model.training
    model.eval()
    try:
        with warnings.catch_warnings():
            # Tracing warns of its own deprecation; it is OpenVINO that calls it.
            warnings.simplefilter("ignore")
            return ov.convert_model(model, example_input=torch.zeros(2, 3, size, size))
    finally:
        model.train(training)


def _batches(
    photos: Sequence[Path],
    size: int,
    fit: str,
    mean: Sequence[float],
    std: Sequence[float],
    threads: int | None,
) -> Generator[tuple[int, np.ndarray], None, None]:
    """(start, [BATCH, 3, S, S] float32) in order, each read and cropped by threads."""
    from cdul_fast.execution.local_engine import available_cores

    with ThreadPoolExecutor(threads or available_cores()) as pool:
        for start in range(0, len(photos), _BATCH):
            part = photos[start : start + _BATCH]
            batch = np.zeros((_BATCH, 3, size, size), np.float32)
            jobs = [
                pool.submit(load_photo, path, size, fit, mean, std, batch[row : row + 1])
                for row, path in enumerate(part)
            ]
            for job in jobs:
                job.result()
            yield start, batch


def load_photo(
    path: Path, size: int, fit: str, mean: Sequence[float], std: Sequence[float], out: np.ndarray
) -> None:
    """Decode a photo and write it as a normalised square into ``out``, [1, 3, size, size] float32.

    Raises:
        CdulError: The photo cannot be read.
    """
    from cdul_fast import ops

    pixels = read_pixels(path)
    height, width = pixels.shape[:2]
    ops.crop_resize(pixels, [[0, 0, width, height]], size, fit=fit, mean=mean, std=std, threads=1, out=out)


def read_pixels(path: Path) -> np.ndarray:
    """The pixels of a photo, uint8 [H, W, 3].

    Raises:
        CdulError: The photo cannot be read.
    """
    try:
        photo = decode_photo(read_photo(path))
    except PhotoProblem as problem:
        raise CdulError(f"{path}: {problem.error}") from None
    if photo.pixels is None:
        raise CdulError(f"{path}: {photo.error}")
    return photo.pixels


def pools_by_mean(backbone: Backbone) -> bool:
    """Whether pooled features are the plain mean of the maps, tried on random images."""
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        try:
            same = torch.allclose(backbone.maps(images).mean((2, 3)), backbone(images), atol=1e-4)
        except (AssertionError, RuntimeError, ValueError):
            same = False  # a transformer of fixed input size
    backbone.train(training)
    return same


def _fingerprint(
    backbone: Backbone, photos: Sequence[Path], size: int, grid: int | None, fit: str, precision: str
) -> str:
    digest = hashlib.sha256()
    settings = [backbone.info.name, size, grid, fit, precision, backbone.info.mean, backbone.info.std]
    digest.update(json.dumps(settings).encode())
    for name, tensor in backbone.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    for path in photos:
        state = path.stat() if path.exists() else None
        stamp = (0, 0) if state is None else (state.st_size, state.st_mtime_ns)
        digest.update(f"{path.resolve()}\0{stamp[0]}\0{stamp[1]}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:24]


def _read(path: Path, count: int) -> FeatureSet | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        stored = load_file(path)
    except (OSError, SafetensorError):
        return None
    pooled = stored.get("pooled")
    if pooled is None or len(pooled) != count:
        return None
    return FeatureSet(pooled, stored.get("maps"), 0.0)


def _write(path: Path, features: FeatureSet) -> None:
    from safetensors.numpy import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {"pooled": features.pooled}
    if features.maps is not None:
        tensors["maps"] = features.maps
    with replacing(path) as temporary:
        save_file(tensors, temporary)
