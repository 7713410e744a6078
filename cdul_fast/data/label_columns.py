"""The columns of a labels file that depend on the label rule, and bringing them into line with it.

Thresholds per class come from the scores of a whole run, so they are known only at its end; until then its
shards hold label sets by a rule that looks at one photo alone. Scores are never touched here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cdul_fast.data.run_dir import Run, Shard
from cdul_fast.data.sinks import release_unused_memory, write_labels_table
from cdul_fast.pseudo_labels import names_of, select_labels
from cdul_fast.scoring.label_sets import LabelRule, choose_rule

if TYPE_CHECKING:
    import pyarrow as pa

# Metadata that `write_labels_table` sets itself; the rest belongs to the views and is carried over.
_OWN_METADATA = (b"classes", b"config", b"version", b"ARROW:schema")


def label_column(ok: NDArray[np.bool_], chosen: NDArray[np.bool_], classes: Sequence[str]) -> pa.ListArray:
    """The Parquet column ``labels``: the chosen names in the order of ``classes``, empty for photos not ok.

    Args:
        ok: [N] which rows have scores.
        chosen: [N_ok, C] their label sets.
        classes: The C names.
    """
    import pyarrow as pa

    counts = np.zeros(len(ok), dtype=np.int32)
    counts[ok] = chosen.sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    names = pa.array(list(classes), pa.string()).take(pa.array(np.nonzero(chosen)[1]))
    return pa.ListArray.from_arrays(pa.array(offsets), names)


def score_column(ok: NDArray[np.bool_], scores: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """The Parquet column ``scores``: scores [N_ok, C] on the rows that are ok, null elsewhere."""
    import pyarrow as pa

    full = scores
    if not ok.all():
        full = np.zeros((len(ok), scores.shape[1]), dtype=np.float32)
        full[ok] = scores
    values = pa.array(full.reshape(-1), pa.float32())
    mask = None if ok.all() else pa.array(~ok)
    return pa.FixedSizeListArray.from_arrays(values, scores.shape[1], mask=mask)


def ok_rows(table: pa.Table) -> NDArray[np.bool_]:
    """Which rows of a labels table have scores, bool [N]."""
    return np.array([status == "ok" for status in table["status"].to_pylist()], dtype=np.bool_)


def carried_metadata(table: pa.Table) -> dict[str, str]:
    """The metadata of a labels table that stays when its labels are written anew."""
    metadata = table.schema.metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items() if key not in _OWN_METADATA}


def stored_scores(table: pa.Table, classes: int) -> NDArray[np.float32]:
    """The scores [N_ok, C] of a labels table."""
    column = table["scores"].combine_chunks().drop_null()
    return np.asarray(column.flatten()).astype(np.float32, copy=False).reshape(-1, classes)


def sets_of_photos(
    scores: NDArray[np.float32], classes: Sequence[str], *, threshold: float | None, top_k: int | None
) -> list[list[str]]:
    """The label sets of photos by themselves, scores [N, C] in; provisional where `settle_labels` comes."""
    return names_of(select_labels(scores, threshold=threshold, top_k=top_k), classes)


def settle_labels(
    run: Run, *, threshold: float | None, top_k: int | None, expected_labels: float | None = None
) -> dict[str, Any]:
    """Chooses the label rule of a run whose shards are all written, and brings their label sets into line.

    With a fixed rule the sets are right already. A shard is written anew only where they differ, so settling
    twice changes nothing.

    Args:
        run: The run; shards that are missing are passed over.
        threshold: A fixed bound for all classes, or None.
        top_k: At most so many labels a photo, or None.
        expected_labels: The mean number of labels to calibrate for, or None.

    Returns:
        What run.json keeps under ``thresholds``.
    """
    count = len(run.classes)
    release_unused_memory()

    def scores_of(index: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        scores = stored_scores(run.shards[index].table(["scores"]), count)[rows]
        release_unused_memory()
        return scores

    photos = [int(ok_rows(shard.table(["status"])).sum()) for shard in run.shards]
    rule = choose_rule(
        photos, count, scores_of, threshold=threshold, top_k=top_k, expected_labels=expected_labels
    )
    if rule.thresholds is not None:
        for shard in run.shards:
            _settle_shard(run, shard, rule)
    return rule.to_json(run.classes)


def _settle_shard(run: Run, shard: Shard, rule: LabelRule) -> None:
    table = shard.table()
    release_unused_memory()  # reading took several times what it gave
    chosen = rule.select(stored_scores(table, len(run.classes)))
    labels = label_column(ok_rows(table), chosen, run.classes)
    if table["labels"].combine_chunks().equals(labels):
        return
    write_labels_table(
        run.path,
        shard.name,
        table.set_column(table.schema.get_field_index("labels"), "labels", labels),
        classes=run.classes,
        config=run.config,
        metadata=carried_metadata(table),
    )
