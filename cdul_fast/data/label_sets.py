"""The last step of a run: label sets from all scores together, written into shards that are complete.

Without ``--threshold`` and ``--top-k`` the bounds come from the scores of the whole run, so they are known
only at its end; until then shards hold sets by the rule for one photo alone. Scores are not touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cdul_fast.calibration import Thresholds, calibrate
from cdul_fast.config import LabelConfig
from cdul_fast.data.run_dir import Run, Shard
from cdul_fast.data.sinks import write_labels_table
from cdul_fast.pseudo_labels import names_of, select_labels

# Scores that calibration looks at: whole rows spaced evenly over the run, so memory does not grow with it.
_SAMPLED_SCORES = 2_000_000


def needs_calibration(config: LabelConfig) -> bool:
    """Whether the label sets depend on the scores of the whole run."""
    return config.threshold is None and config.top_k is None


def sets_of_photos(scores: np.ndarray, config: LabelConfig, classes: Sequence[str]) -> list[list[str]]:
    """Label sets of photos by themselves, [n, C] scores in; provisional where `needs_calibration`."""
    chosen = select_labels(scores, threshold=config.threshold, top_k=config.top_k)
    return names_of(chosen, classes)


def calibrate_run(run: Run, expected_labels: float | None) -> Thresholds | None:
    """Bounds from the scores of a run; None where no photo is ok."""
    counts = [
        sum(s == "ok" for s in shard.table(["status"]).column("status").to_pylist()) for shard in run.shards
    ]
    total = sum(counts)
    if total == 0:
        return None
    rows = max(2, _SAMPLED_SCORES // len(run.classes))
    wanted = np.arange(total) if total <= rows else np.linspace(0, total - 1, rows).astype(np.int64)
    sample = np.empty((len(wanted), len(run.classes)), np.float32)
    start = 0
    for shard, count in zip(run.shards, counts, strict=True):
        here = (wanted >= start) & (wanted < start + count)
        if here.any():
            sample[here] = ok_scores(shard.table(["status", "scores"]), len(run.classes))[
                wanted[here] - start
            ]
        start += count
    return calibrate(sample, expected_labels=expected_labels)


def ok_scores(table: Any, n_classes: int) -> np.ndarray:
    """Scores of the ok rows of a shard's table, float32 [n_ok, C]."""
    ok = np.array([status == "ok" for status in table.column("status").to_pylist()], dtype=bool)
    column = table.filter(ok).column("scores").combine_chunks()
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(-1, n_classes).astype(np.float32, copy=False)


def write_label_sets(run: Run, thresholds: Thresholds) -> None:
    """Rewrite the ``labels`` column of every shard of a run where it differs from what the bounds give."""
    for shard in run.shards:
        _rewrite(shard, run, thresholds)


def _rewrite(shard: Shard, run: Run, thresholds: Thresholds) -> None:
    import pyarrow as pa

    table = shard.table()
    names = iter(names_of(thresholds.select(ok_scores(table, len(run.classes))), run.classes))
    labels = [next(names) if s == "ok" else [] for s in table.column("status").to_pylist()]
    if labels == table.column("labels").to_pylist():
        return
    at = table.schema.get_field_index("labels")
    changed = table.set_column(at, "labels", pa.array(labels, pa.list_(pa.string())))
    metadata = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    write_labels_table(
        run.path, shard.name, changed, classes=run.classes, config=run.config, metadata=metadata
    )
