"""`predict_photos`: a trained classifier over photos, into the same files that label writes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cdul_fast import __version__
from cdul_fast.cli import option
from cdul_fast.data.decode import Decoded, PhotoProblem, decode_photo, own_pixel_limit
from cdul_fast.data.lock import locked
from cdul_fast.data.manifest import inputs_digest
from cdul_fast.data.paths import encode_path, show_path
from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.data.sinks import (
    FORMAT,
    ShardData,
    info_name,
    labels_path,
    remove_temporaries,
    shard_name,
    write_json,
    write_labels,
)
from cdul_fast.data.source import Source, select_part
from cdul_fast.data.sources import open_source
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.local_engine import available_cores
from cdul_fast.progress import Progress
from cdul_fast.training.features import compile_for_cpu, resolve_precision
from cdul_fast.training.model_dir import ModelInfo, load_classifier

_INPUT, _OUTPUT, _RUNNING = "Input", "Output", "Running"
_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Give photos the scores of a trained classifier; CLIP is not needed.

    Raises:
        ConfigError: A value is out of range; the message names the flag.
    """

    model: str | None = option(None, "model directory that train wrote", group=_INPUT, example="model/")
    source: str | None = option(None, "photos: any source that label takes", group=_INPUT, example="photos/")
    list: str | None = option(
        None,
        "file with one photo's path a line, - for standard input",
        group=_INPUT,
        example="--list photos.txt",
    )
    format: Literal["auto", "folder", "glob", "list", "csv", "voc", "coco", "nus", "parquet"] = option(
        "auto", "kind of source", group=_INPUT
    )
    images: str | None = option(None, "folder that the source's paths count from", group=_INPUT)
    split: str | None = option(None, "split of a VOC or NUS-WIDE source", group=_INPUT)
    limit: int | None = option(None, "only this many photos from the start", group=_INPUT, unit="photos")
    exif_rotate: bool = option(False, "turn photos upright as their EXIF orientation says", group=_INPUT)
    max_pixels: int = option(200_000_000, "photos with more are refused", group=_INPUT, unit="pixels")
    which: Literal["best", "last"] = option("best", "which weights of the model", group=_INPUT)
    threshold: float = option(0.5, "a photo's labels are the classes with at least this score", group=_OUTPUT)
    out: str | None = option(None, "folder for the results; unfinished work in it goes on", group=_OUTPUT)
    shard_size: int = option(1024, "rows of one output shard", group=_OUTPUT, unit="photos")
    overwrite: bool = option(False, "delete the results in --out and start again", group=_OUTPUT, free=True)
    report: bool = option(True, "write report.html at the end", group=_OUTPUT, free=True)
    precision: Literal["auto", "fp32", "bf16"] = option(
        "auto", "arithmetic of the model; auto is bf16 where the CPU has it", group=_RUNNING
    )
    threads: int | None = option(None, "CPU threads; without it all cores", group=_RUNNING, free=True)
    quiet: bool = option(False, "no progress and no summary", group=_RUNNING, free=True)
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", "debug also shows tracebacks", group=_RUNNING, free=True
    )

    def __post_init__(self) -> None:
        """Refuse values out of range, naming the flag."""
        if self.model is None:
            raise ConfigError("the model directory is missing: python -m cdul_fast.predict model/ photos/")
        if (self.source is None) == (self.list is None):
            raise ConfigError("give a source or --list, one of the two")
        if self.out is None:
            raise ConfigError("--out is missing: the folder for the results")
        if not 0 <= self.threshold <= 1:
            raise ConfigError(f"--threshold wants a value from 0 to 1, got {self.threshold!r}")
        for name in ("limit", "max_pixels", "shard_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} wants at least 1, got {value!r}")


@dataclass(frozen=True)
class PredictResult:
    """What `predict_photos` did.

    Attributes:
        path: The folder with the results.
        counts: Rows by status.
        kept: Rows kept from an earlier call.
        seconds: Of this call.
        run: The results, read on demand.
    """

    path: Path
    counts: dict[str, int]
    kept: int
    seconds: float
    run: Run

    def summary(self) -> str:
        """The result in one line."""
        total = sum(self.counts.values())
        parts = [f"{self.counts.get('ok', 0)} of {total} photos scored"]
        bad = [f"{n} {status}" for status, n in sorted(self.counts.items()) if status != "ok"]
        if bad:
            parts.append("failed: " + ", ".join(bad))
        if self.kept:
            parts.append(f"{self.kept} rows kept from before")
        return f"{'; '.join(parts)} ({self.seconds:.1f} s): {show_path(self.path)}"


def predict_photos(config: PredictConfig) -> PredictResult:
    """Score photos with a trained classifier.

    The same call on the same folder goes on where an earlier one stopped, shard by shard.

    Raises:
        ConfigError: A setting is wrong, or differs from those the results in ``config.out`` began with.
        CdulError: No model, no photos, or the folder cannot be written.
    """
    assert config.model is not None and config.out is not None
    start = time.monotonic()
    source = select_part(
        open_source(
            config.source,
            list_file=config.list,
            format=config.format,
            images=config.images,
            split=config.split,
        ),
        config.limit,
        None,
    )
    classifier, info = load_classifier(Path(config.model), config.which)
    precision = resolve_precision(config.precision)
    folder = Path(config.out)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if config.overwrite:
            _delete(folder)
        remove_temporaries(folder)
        head = _run_head(config, source, info, classifier, precision)
        _check_or_write_manifest(folder, head)
        shards = range(0, len(source), config.shard_size)
        todo = [
            (index, first)
            for index, first in enumerate(shards)
            if not labels_path(folder, shard_name(index)).is_file()
        ]
        kept = len(source) - sum(min(config.shard_size, len(source) - first) for _, first in todo)
        if todo:
            model = compile_for_cpu(
                classifier, info.image_size, precision=precision, threads=config.threads, batch=_BATCH
            )
            _check_compiled(model, classifier, info.image_size, precision)
            with Progress(len(source), kept, 0, config.quiet) as progress, own_pixel_limit():
                for index, first in todo:
                    stop = min(len(source), first + config.shard_size)
                    data = _score_rows(model, source, range(first, stop), config, info, classifier, progress)
                    write_labels(
                        folder,
                        shard_name(index),
                        data,
                        classes=info.classes,
                        config=head["config"],
                        metadata={"fingerprint": head["model"]["fingerprint"]},
                    )
        counts = _counts(folder)
        if todo or not (folder / info_name("run")).is_file():
            seconds = time.monotonic() - start
            write_json(
                folder / info_name("run"),
                {
                    **head,
                    "finished": True,
                    "counts": counts,
                    "seconds": round(seconds, 3),
                    "images_per_second": round((len(source) - kept) / seconds, 3),
                    "thresholds": None,
                },
            )
    if config.report:
        from cdul_fast.reporting import write_report

        write_report(folder)
    return PredictResult(folder, counts, kept, time.monotonic() - start, open_run(folder))


def _check_compiled(model: Any, classifier: Any, size: int, precision: str) -> None:
    """Compare the compiled model with the original on random photos, before anything is written.

    Raises:
        CdulError: They differ by more than the precision explains.
    """
    import torch

    images = torch.randn(_BATCH, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = classifier(images[:4]).numpy()
    difference = float(np.abs(next(iter(model(images.numpy()).values()))[:4] - wanted).max())
    # bf16 keeps 8 bits of a number; through a network probabilities move by some hundredths.
    if not difference <= (0.1 if precision == "bf16" else 1e-3):
        raise CdulError(
            f"OpenVINO's version of the model differs from the original by {difference:.2g}; "
            "try --precision fp32"
        )


def _run_head(
    config: PredictConfig, source: Source, info: ModelInfo, classifier: Any, precision: str
) -> dict[str, Any]:
    """What identifies the results."""
    digest = hashlib.sha256()
    for name, tensor in classifier.state_dict().items():
        digest.update(name.encode() + np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
    return {
        "format": FORMAT,
        "version": __version__,
        "config": dataclasses.asdict(config),
        "classes": list(info.classes),
        "model": {
            "name": info.backbone,
            "pretrained": info.method,
            "backend": "openvino",
            "precision": precision,
            "fingerprint": digest.hexdigest(),
            "image_size": info.image_size,
        },
        "root": encode_path(str(source.root)),
        "inputs": len(source),
        "inputs_sha256": inputs_digest(source),
        "shards": -(-len(source) // config.shard_size),
    }


def _check_or_write_manifest(folder: Path, head: dict[str, Any]) -> None:
    path = folder / info_name("manifest")
    if not path.is_file():
        write_json(path, head)
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CdulError(f"{show_path(path)} is damaged; --overwrite starts again") from None
    fixed = [f.name for f in dataclasses.fields(PredictConfig) if not f.metadata["free"]]
    old, new = before.get("config", {}), head["config"]
    differing = [name for name in fixed if old.get(name) != new[name]]
    differing += [
        key for key in ("classes", "model", "root", "inputs_sha256") if before.get(key) != head[key]
    ]
    if differing:
        raise ConfigError(
            f"the results in {show_path(folder)} began with another {differing[0]}: give the old value to go "
            "on, --overwrite to start again, or another --out"
        )


def _score_rows(
    model: Any,
    source: Source,
    rows: range,
    config: PredictConfig,
    info: ModelInfo,
    classifier: Any,
    progress: Progress,
) -> ShardData:
    """One shard: threads read and crop ahead, OpenVINO scores, failures become rows."""
    count = len(rows)
    status: list[str] = ["ok"] * count
    error: list[str | None] = [None] * count
    width, height = np.zeros(count, np.int32), np.zeros(count, np.int32)
    scores = np.zeros((count, len(info.classes)), np.float32)
    backbone = classifier.network.backbone.info
    for places, photos, pixels in _prepared(source, rows, config, info, backbone):
        result = next(iter(model(pixels).values()))
        failed = 0
        for slot, place in enumerate(places):
            photo = photos[slot]
            status[place], error[place] = photo.status, photo.error
            width[place], height[place] = photo.width, photo.height
            if photo.status == "ok" and not np.isfinite(result[slot]).all():
                status[place], error[place] = "decode_error", "the score is not a finite number"
            failed += status[place] != "ok"
            scores[place] = result[slot]
        progress.update(len(places), failed)
    ok = np.array([one == "ok" for one in status])
    chosen = scores >= config.threshold
    names = np.array(info.classes, dtype=object)
    # Best first, as in every labels file.
    labels = [
        [str(names[c]) for c in np.argsort(-scores[row], kind="stable") if chosen[row, c]] if ok[row] else []
        for row in range(count)
    ]
    return ShardData(
        paths=[source.path(row) for row in rows],
        status=status,
        error=error,
        width=width,
        height=height,
        scores=scores[ok],
        labels=labels,
        cosines=np.zeros((int(ok.sum()), 0, len(info.classes)), np.float32),
        embeddings=None,
    )


def _prepared(
    source: Source, rows: range, config: PredictConfig, info: ModelInfo, backbone: Any
) -> Iterator[tuple[range, list[Decoded], np.ndarray]]:
    """(places in the shard, photos, [BATCH, 3, S, S]) with the next batch being read meanwhile."""
    size = info.image_size

    def prepare(row: int, out: np.ndarray) -> Decoded:
        from cdul_fast import ops

        try:
            data = source.read(row)
        except PhotoProblem as problem:
            return Decoded(problem.status, problem.error, problem.width, problem.height, None)
        photo = decode_photo(data, max_pixels=config.max_pixels, exif_rotate=config.exif_rotate)
        if photo.pixels is not None:
            ops.crop_resize(
                photo.pixels,
                [[0, 0, photo.width, photo.height]],
                size,
                fit=info.fit,
                mean=backbone.mean,
                std=backbone.std,
                threads=1,
                out=out,
            )
        return dataclasses.replace(photo, pixels=None)

    def submit(pool: ThreadPoolExecutor, first: int) -> tuple[range, list[Future[Decoded]], np.ndarray]:
        places = range(first, min(first + _BATCH, len(rows)))
        pixels = np.zeros((_BATCH, 3, size, size), np.float32)
        jobs = [pool.submit(prepare, rows[p], pixels[i : i + 1]) for i, p in enumerate(places)]
        return places, jobs, pixels

    with ThreadPoolExecutor(config.threads or available_cores()) as pool:
        starts = list(range(0, len(rows), _BATCH))
        following = submit(pool, starts[0])
        for first in [*starts[1:], None]:
            places, jobs, pixels = following
            if first is not None:
                following = submit(pool, first)
            yield places, [job.result() for job in jobs], pixels


def _counts(folder: Path) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for shard in open_run(folder).shards:
        counts.update(shard.table(["status"]).column("status").to_pylist())
    return dict(sorted(counts.items()))


def _delete(folder: Path) -> None:
    """Remove what predict wrote, and nothing else."""
    for pattern in ("labels-*.parquet", "run.json", "report.html", "manifest.json"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
