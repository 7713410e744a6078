"""What a photo costs one core, and in bytes: the figures that docs/scale.md computes with.

CPU time of one thread, so that other work on the machine matters little; medians over blocks of 32 photos.

    python -m benchmarks.photo_costs
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ray_throughput import make_photos
from cdul_fast.data.decode import decode_photo
from cdul_fast.data.journal import Row
from cdul_fast.data.shard_work import Layout, RunState
from cdul_fast.data.sources import open_source
from cdul_fast.execution.work import ScoreSpec, ViewSpec, crop_views, score_views
from cdul_fast.views import view_count, view_fits

CLASSES, DIM, PHOTOS, BLOCK = 80, 512, 1024, 32


def cpu_ms(work: Callable[[], Any], times: int, of: int = 1) -> float:
    """Median CPU milliseconds of a call, divided by ``of``."""
    spent = []
    for _ in range(times):
        start = time.process_time()
        work()
        spent.append((time.process_time() - start) * 1000 / of)
    return statistics.median(spent)


def main() -> None:
    fits = tuple(view_fits(view_count(3, 0), "center_crop"))
    spec = ViewSpec(3, 0.0, 0, fits, 224, (0.5,) * 3, (0.25,) * 3, "bfloat16", 10**9, False)
    rng = np.random.default_rng(0)
    costs: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_photos(folder / "photos", BLOCK)
        files = [path.read_bytes() for path in sorted((folder / "photos").iterdir())]
        costs["photo_bytes"] = statistics.mean(len(data) for data in files)
        pixels = [decode_photo(data).pixels for data in files]
        out = np.empty((spec.views, 3, 224, 224), np.uint16)
        costs["decode_ms"] = cpu_ms(lambda: [decode_photo(data) for data in files], 5, BLOCK)
        costs["crop_ms"] = cpu_ms(lambda: [crop_views(one, spec, out) for one in pixels], 5, BLOCK)
        texts = rng.standard_normal((CLASSES, DIM)).astype(np.float32)
        views = rng.standard_normal((BLOCK, spec.views, DIM)).astype(np.float32)
        views /= np.linalg.norm(views, axis=2, keepdims=True)
        scoring = ScoreSpec("cdul", 100.0, 0.0, 0.0)
        costs["aggregate_ms"] = cpu_ms(lambda: score_views(views, texts, scoring, threads=1), 9, BLOCK)
        cosines, _ = score_views(views, texts, scoring, threads=1)
        (folder / "list.txt").write_text("".join(f"{i:08d}.jpg\n" for i in range(2 * PHOTOS)))
        layout = Layout(spec.views, tuple(f"class {i}" for i in range(CLASSES)), DIM, PHOTOS, None)
        source = open_source(None, list_file=str(folder / "list.txt"), images=name)
        state = RunState(
            folder,
            source,
            layout,
            config={},
            fingerprint="",
            rule=lambda found: [["class 0"]] * len(found),
            retry_failed=False,
        )
        spent = []
        for batch in state.batches(BLOCK):
            rows = []
            for at, number in enumerate(batch.rows):
                row = Row(source.path(batch.work.start + number), "ok", None, 500, 375)
                row.scores, row.cosines = rng.random(CLASSES, np.float32), cosines[at]
                row.embeddings = views[at].astype(np.float16)
                rows.append((number, row))
            start = time.process_time()
            state.add(batch, rows)
            spent.append(time.process_time() - start)
        # The first shard pays for imports.
        costs["write_ms"] = sum(spent[len(spent) // 2 :]) * 1000 / PHOTOS
        for kind, pattern in (("labels", "labels-*"), ("views", "views-*")):
            size = sum(path.stat().st_size for path in folder.glob(pattern))
            costs[f"{kind}_bytes"] = size / (2 * PHOTOS)
    print(json.dumps({key: round(value, 3) for key, value in costs.items()}, indent=2))


if __name__ == "__main__":
    main()
