"""Photos to labels by the device engine, against what its encoder does alone."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_check.encoders import TowerEncoder, rate
from benchmarks.gpu_check.report import Row, has_module, not_measured
from benchmarks.gpu_check.stand_ins import SHAPES, Shape
from cdul_fast.data.decode import Decoded
from cdul_fast.data.shard_work import Batch
from cdul_fast.execution.device_engine import DeviceEngine
from cdul_fast.execution.local_engine import Stages, available_cores
from cdul_fast.execution.work import Prepared, ScoreSpec, ViewSpec
from cdul_fast.views import view_fits

VIEWS, CLASSES = 10, 80
HEIGHT, WIDTH, DISTINCT = 375, 500, 64


class Photos:
    """Some photos over and over: JPEG bytes, or decoded pixels where nothing here writes JPEGs."""

    def __init__(self, distinct: int = DISTINCT) -> None:
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (distinct, HEIGHT // 25, WIDTH // 25, 3), dtype=np.uint8)
        fine = rng.integers(-12, 13, (distinct, HEIGHT, WIDTH, 3), dtype=np.int16)
        wide = coarse.repeat(25, axis=1).repeat(25, axis=2)
        self.pixels = list(np.clip(wide.astype(np.int16) + fine, 0, 255).astype(np.uint8))
        self.files = [jpeg(pixels) for pixels in self.pixels] if has_module("PIL") else []

    def read(self, index: int) -> bytes:
        return self.files[index % len(self.files)]

    def path(self, index: int) -> str:
        return str(index)


def jpeg(pixels: np.ndarray) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=90)
    return stream.getvalue()


class Nowhere:
    """What the engine asks of a run's state, for so many photos whose rows are dropped."""

    layout = SimpleNamespace(dim=1)

    def __init__(self, source: Photos, count: int) -> None:
        self.source, self.count = source, count
        self.ok = 0

    def batches(self, photos: int) -> Iterator[Batch]:
        work: Any = SimpleNamespace(start=0)
        for at in range(0, self.count, photos):
            yield Batch(work, range(at, min(self.count, at + photos)))

    def add(self, batch: Batch, rows: Sequence[tuple[int, Any]]) -> None:
        self.ok += sum(row.status == "ok" for _, row in rows)

    def flush(self) -> None:
        """Nothing is held back."""


class CheckedEngine(DeviceEngine):
    """The device engine, with Pillow where simplejpeg is absent and pixels from memory where both are."""

    def _load(self, source: Any, index: int, slot: Any, position: int, claim: Any) -> Prepared:
        if source.files:
            return super()._load(source, index, slot, position, claim)
        pixels = source.pixels[index % len(source.pixels)]
        slot.put(position, pixels)
        return Prepared("ok", None, pixels.shape[1], pixels.shape[0])

    def _decode(self, data: bytes) -> Decoded:
        if has_module("simplejpeg"):
            return super()._decode(data)
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        return Decoded("ok", None, pixels.shape[1], pixels.shape[0], pixels)


def label(encoder: Any, photos: Photos, count: int) -> dict[str, Any]:
    """Label so many photos; photos a second and where the time went."""
    spec = ViewSpec(
        3, 0.0, 0, tuple(view_fits(VIEWS)), encoder.image_size, encoder.mean, encoder.std,
        encoder.input_dtype, 1 << 40, False,
    )  # fmt: skip
    state: Any = Nowhere(photos, count)
    texts = np.random.default_rng(1).standard_normal((CLASSES, encoder.dim)).astype(np.float32)
    stages = Stages()
    config = SimpleNamespace(threads=None, photo_timeout=60.0, batch_size=max(1, encoder.batch // VIEWS))
    engine = CheckedEngine(
        config, encoder, texts, state, stages, views=spec, scores=ScoreSpec("cdul", 100.0, 0.0, 0.0)
    )
    progress = SimpleNamespace(update=lambda done, failed: None)
    # Graphs are recorded and memory is taken in the first batches.
    state.count = 4 * config.batch_size
    engine.run(progress)
    state.count, state.ok, stages.seconds = count, 0, {}
    engine._busy_seconds = engine._run_seconds = 0.0
    start = time.perf_counter()
    engine.run(progress)
    seconds = time.perf_counter() - start
    if state.ok != count:
        raise AssertionError(f"{state.ok} of {count} photos were labelled")
    return {
        "photos_per_second": count / seconds,
        "stages": stages.seconds,
        "limiting_stage": stages.limiting(available_cores()),
        **engine.report(),
    }


def decoders() -> list[tuple[str, str]]:
    """(name, reason why not or empty) of what can decode here."""
    if not has_module("PIL"):
        return [("decoded pixels in memory", "")]
    name = "simplejpeg" if has_module("simplejpeg") else "Pillow"
    found = [(name, "")]
    if not has_module("nvidia.nvimgcodec"):
        found.append(("nvImageCodec", "nvidia.nvimgcodec is not installed"))
    elif not has_module("simplejpeg"):
        found.append(("nvImageCodec", "simplejpeg, which reads the headers, is not installed"))
    else:
        found.append(("nvImageCodec", ""))
    return found


def run(ceilings: dict[str, float], name: str, seconds: float) -> tuple[list[Row], dict[str, Any]]:
    """One model end to end; about ``seconds`` of labelling for each decoder."""
    del ceilings
    shape: Shape = SHAPES[name]
    photos = Photos()
    encoder = TowerEncoder(shape)
    alone = rate(encoder, shape)["views_per_second"] / VIEWS
    rows, details = [], {}
    for decoder, reason in [("no decoding", ""), *decoders()]:
        case = f"{encoder.name}, fp16 eager, {decoder}, {available_cores()} cores"
        if reason:
            rows.append(not_measured("end to end", case, reason))
            continue
        encoder.report = {"decode": "gpu"} if decoder == "nvImageCodec" else {}
        source = photos
        if decoder == "no decoding":
            source = Photos(DISTINCT)
            source.files = []
        found = label(encoder, source, max(64, int(alone * seconds)))
        rows.append(
            Row("end to end", case, found["photos_per_second"], "photos/s", "its encoder alone",
                found["photos_per_second"] / alone, ">= 0.95", f"limited by {found['limiting_stage']}")
        )  # fmt: skip
        aggregated = found["stages"].get("aggregate", 0.0)
        busy = sum(found["stages"].get(stage, 0.0) for stage in ("crop", "encode", "aggregate"))
        rows.append(
            Row("end to end", f"{case}: aggregation", 1e3 * aggregated, "ms", "the device's busy time",
                aggregated / max(busy, 1e-9), "<= 0.01")
        )  # fmt: skip
        details[case] = {**found, "encoder_alone_photos_per_second": alone}
    torch.cuda.empty_cache()
    return rows, {"end_to_end": details}
