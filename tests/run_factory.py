"""Builds run directories in the saved format, without any model: for tests of what reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw
from safetensors.numpy import save_file

CLASSES = ("cat", "dog", "bicycle", "traffic light", "cup", "potted plant", "book", "umbrella")
SCALE = 100.0


def default_config(**changes: Any) -> dict[str, Any]:
    """The keys of a resolved label config that readers use."""
    config: dict[str, Any] = {
        "model": "tiny",
        "pretrained": "",
        "template": "single",
        "grid": 3,
        "overlap": 0.0,
        "grid2": 0,
        "global_fit": "center_crop",
        "aggregator": "cdul",
        "scale": SCALE,
        "zeta": 0.0,
        "lam": 0.0,
        "threshold": 0.2,
        "top_k": None,
        "exif_rotate": False,
    }
    return config | changes


def synthetic_cosines(
    rng: np.random.Generator, n: int, views: int, classes: int, *, objects: int = 2
) -> np.ndarray:
    """Cosines float32 [n, views, classes] like CLIP's: about 0.18, and more where an object is."""
    cosines = rng.normal(0.18, 0.008, (n, views, classes)).astype(np.float32)
    for row in range(n):
        for _ in range(int(rng.integers(0, objects + 1))):
            kind = int(rng.integers(classes))
            cosines[row, 0, kind] += rng.uniform(0.0, 0.05)
            if views > 1:
                cosines[row, int(rng.integers(1, views)), kind] += rng.uniform(0.03, 0.08)
    return cosines


def fused_scores(cosines: np.ndarray, scale: float = SCALE) -> np.ndarray:
    """The `cdul` scores at zeta 0 and lam 0, float32 [n, classes], written out in NumPy."""
    logits = cosines.astype(np.float64) * scale
    exponentials = np.exp(logits - logits.max(axis=2, keepdims=True))
    soft = exponentials / exponentials.sum(axis=2, keepdims=True)
    if cosines.shape[1] == 1:
        return soft[:, 0].astype(np.float32)
    return ((soft[:, 0] + soft[:, 1:].max(axis=1)) / 2).astype(np.float32)


def make_photo(path: Path, size: tuple[int, int], seed: int) -> None:
    """A photo with a gradient and a few ellipses, in the format its suffix names."""
    rng = np.random.default_rng(seed)
    width, height = size
    ramp = np.linspace(0, 1, height)[:, None, None] * rng.integers(40, 200, 3)[None, None, :]
    pixels = np.broadcast_to(ramp + 30, (height, width, 3)).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        r = int(rng.integers(1, 8 + min(size) // 3))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(v) for v in rng.integers(60, 255, 3)))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def make_run(
    path: Path,
    *,
    photos: int = 12,
    classes: Sequence[str] = CLASSES,
    grid: int = 3,
    failures: Sequence[tuple[str, str, str]] = (("broken.jpg", "decode_error", "image file is truncated"),),
    names: Sequence[str] | None = None,
    shard_size: int = 1024,
    write_photos: bool = True,
    embeddings: bool = True,
    dim: int = 16,
    view_layout: str = "global+grid",
    seed: int = 0,
    sizes: Sequence[tuple[int, int]] = ((320, 240), (240, 320), (400, 300), (301, 223)),
    shard: tuple[int, int] | None = None,
    root: Path | None = None,
    config: dict[str, Any] | None = None,
    info: dict[str, Any] | None = None,
    cosines: np.ndarray | None = None,
) -> Path:
    """Writes a run directory of `photos` good rows, then `failures` (path, status, error); returns its path.

    The photos go to `root`, by default `<path>-photos`; `cosines` [photos, V, C] replace random ones; `shard`
    (i, n) gives the file names of `--shard i/n`.
    """
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True, exist_ok=True)
    root = root or path.parent / f"{path.name}-photos"
    settings = default_config(grid=grid, **(config or {}))
    views = 3 if view_layout != "global+grid" else (1 if grid <= 1 else 1 + grid * grid)
    if cosines is None:
        cosines = synthetic_cosines(rng, photos, views, len(classes))
    # Of extremes, the second view is the largest over the tiles, and the third plays no part at zeta 0.
    scores = fused_scores(cosines if view_layout == "global+grid" else cosines[:, :2])
    threshold = 0.2 if settings["threshold"] is None else float(settings["threshold"])
    names = list(names) if names is not None else [f"album/photo {i:05d}.jpg" for i in range(photos)]
    rows: list[dict[str, Any]] = []
    for i, name in enumerate(names):
        width, height = sizes[i % len(sizes)]
        if write_photos:
            make_photo(root / name, (width, height), seed=seed * 7919 + i)
        labels = [classes[c] for c in np.argsort(-scores[i], kind="stable") if scores[i, c] >= threshold]
        rows.append(_row(name, "ok", None, width, height, scores[i].tolist(), labels))
    rows += [_row(name, status, error, None, None, None, []) for name, status, error in failures]

    prefix = f"{shard[0]}of{shard[1]}-" if shard else ""
    metadata = {b"classes": json.dumps(list(classes)), b"config": json.dumps(settings), b"version": "0.1.0"}
    schema = pa.schema(
        [
            ("path", pa.string()),
            ("status", pa.string()),
            ("error", pa.string()),
            ("width", pa.int32()),
            ("height", pa.int32()),
            ("scores", pa.list_(pa.float32(), len(classes))),
            ("labels", pa.list_(pa.string())),
        ],
        metadata=metadata,
    )
    done = 0
    for number, start in enumerate(range(0, len(rows), shard_size)):
        part = rows[start : start + shard_size]
        good = sum(row["status"] == "ok" for row in part)
        pq.write_table(
            pa.Table.from_pylist(part, schema=schema), path / f"labels-{prefix}{number:05d}.parquet"
        )
        tensors = {"cosines": np.ascontiguousarray(cosines[done : done + good])}
        if embeddings:
            vectors = rng.normal(size=(good, views, dim))
            vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
            tensors["embeddings"] = vectors.astype(np.float16)
        save_file(
            tensors,
            path / f"views-{prefix}{number:05d}.safetensors",
            metadata={"view_layout": view_layout, "fingerprint": "factory"},
        )
        done += good
    save_file({"texts": np.eye(len(classes), dim, dtype=np.float32)}, path / "texts.safetensors")
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    document = {
        "format": 1,
        "version": "0.1.0",
        "config": settings,
        "classes": list(classes),
        "model": {
            "name": "tiny",
            "pretrained": "",
            "backend": "torch",
            "precision": "fp32",
            "fingerprint": "factory",
            "logit_scale": SCALE,
            "image_size": 64,
        },
        "root": str(root),
        "counts": counts,
        "stages": {"read": 0.4, "decode": 2.1, "crop": 0.9, "encode": 14.2, "aggregate": 0.1, "write": 0.3},
        "shards": -(-len(rows) // shard_size),
        "limiting_stage": "encode",
        "images_per_second": 6.3,
        "seconds": 15.0,
        "peak_memory_mib": 812.0,
    } | (info or {})
    (path / f"run{'-' + prefix[:-1] if shard else ''}.json").write_text(json.dumps(document), "utf-8")
    return path


def _row(
    path: str, status: str, error: str | None, width: int | None, height: int | None, scores: Any, labels: Any
) -> dict[str, Any]:
    return {
        "path": path,
        "status": status,
        "error": error,
        "width": width,
        "height": height,
        "scores": scores,
        "labels": labels,
    }
