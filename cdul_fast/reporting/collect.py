"""One pass over a run's shards: counts, histograms and candidates for the photos to show.

Only one shard is in memory at a time; what is kept is bounded by the number of classes and of samples.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdul_fast.pseudo_labels import LabelSettings
from cdul_fast.reporting.parts import parts_agree, score_parts
from cdul_fast.run_settings import run_settings

if TYPE_CHECKING:
    from cdul_fast.data.run_dir import Run, Shard

MAX_FAILURES = 200
MAX_LABELS_COUNTED = 20
LINEAR_BINS = 200
LOG_DECADES = 6
LOG_BINS_PER_DECADE = 8
GROUPS = ("confident", "uncertain", "many", "few")
# More candidates than are shown, so that a group can vary its classes and leave out what another group took.
_SPARE = 8


@dataclass(frozen=True, order=True)
class Candidate:
    """A photo that may be shown; orders by how well it stands for its group, best first."""

    rank: float
    tie: float
    shard: int
    row: int  # among the shard's ok rows
    top_class: int = field(compare=False)


@dataclass(frozen=True)
class Failure:
    """A photo that got no scores."""

    path: str
    status: str
    error: str


@dataclass
class RunStatistics:
    """What one pass over the shards leaves. C is the number of classes."""

    classes: tuple[str, ...]
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    best_histogram: np.ndarray = field(default_factory=lambda: np.zeros(LINEAR_BINS, np.int64))
    all_histogram: np.ndarray = field(
        default_factory=lambda: np.zeros(LOG_DECADES * LOG_BINS_PER_DECADE, np.int64)
    )
    labels_per_photo: np.ndarray = field(
        default_factory=lambda: np.zeros(MAX_LABELS_COUNTED + 1, np.int64)  # the last bin: that many or more
    )
    label_counts: np.ndarray = field(init=False)  # int64 [C]
    label_score_sums: np.ndarray = field(init=False)  # float64 [C], over the photos with the label
    label_whole_sums: np.ndarray = field(init=False)  # float64 [C], the whole photo's part of that
    parts_known: bool = True
    candidates: dict[str, list[Candidate]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = len(self.classes)
        self.label_counts = np.zeros(size, np.int64)
        self.label_score_sums = np.zeros(size, np.float64)
        self.label_whole_sums = np.zeros(size, np.float64)

    @property
    def labelled(self) -> int:
        """Photos with scores."""
        return self.counts["ok"]

    @property
    def total(self) -> int:
        """Inputs, with or without scores."""
        return sum(self.counts.values())


@dataclass(frozen=True)
class OkRows:
    """The rows of one shard that have scores."""

    paths: list[str]
    widths: np.ndarray  # int64 [n], 0 where unknown
    heights: np.ndarray  # int64 [n]
    scores: np.ndarray  # float32 [n, C]
    label_rows: np.ndarray  # int64 [k], the row of each assigned label
    label_classes: np.ndarray  # int64 [k], its class

    def labels_of(self, row: int) -> frozenset[int]:
        """The classes assigned to a row."""
        return frozenset(self.label_classes[self.label_rows == row].tolist())


def ok_rows(table: pa.Table, classes: tuple[str, ...]) -> OkRows:
    """Takes the ok rows of a labels table apart into arrays.

    Args:
        table: columns path, status, width, height, scores, labels.
        classes: the run's class names; labels outside them are left out.
    """
    good = table.filter(pc.equal(table["status"], "ok"))
    scores = np.zeros((0, len(classes)), np.float32)
    if good.num_rows:
        chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in good["scores"].chunks]
        scores = np.concatenate(chunks).reshape(good.num_rows, -1).astype(np.float32, copy=False)
    label_rows, label_classes = _label_pairs(good, classes)
    return OkRows(
        paths=good["path"].to_pylist(),
        widths=pc.fill_null(good["width"], 0).to_numpy().astype(np.int64),
        heights=pc.fill_null(good["height"], 0).to_numpy().astype(np.int64),
        scores=scores,
        label_rows=label_rows,
        label_classes=label_classes,
    )


def shard_cosines(shard: Shard, rows: int) -> np.ndarray | None:
    """A shard's cosines [rows, V, C], or None where the views file is gone or does not fit the labels."""
    if not shard.views_path.exists():
        return None
    cosines = shard.cosines()
    return cosines if len(cosines) == rows else None


def collect(run: Run, samples: int) -> RunStatistics:
    """Reads every shard once.

    Args:
        run: an opened run.
        samples: how many photos will be shown in all; bounds the candidates that are kept.
    """
    stats = RunStatistics(tuple(run.classes))
    how = run_settings(run)
    for number, shard in enumerate(run.shards):
        table = shard.table(columns=["path", "status", "error", "width", "height", "scores", "labels"])
        _count_statuses(stats, table)
        rows = ok_rows(table, stats.classes)
        if rows.paths:
            _count_scores(stats, rows, shard, how)
            _nominate(stats, rows, number, keep=max(samples, 1) * _SPARE)
    return stats


def cooccurrence(run: Run, chosen: list[int]) -> np.ndarray:
    """Photos with both labels, int64 [k, k] for the chosen classes; the diagonal counts each label's photos.

    Reads the label column alone.
    """
    size = len(run.classes)
    position = np.full(size, -1, np.int64)
    position[chosen] = np.arange(len(chosen))
    pairs = np.zeros((len(chosen), len(chosen)), np.int64)
    for shard in run.shards:
        table = shard.table(columns=["labels"])
        rows, kinds = _label_pairs(table, tuple(run.classes))
        where = position[kinds]
        present = np.zeros((table.num_rows, len(chosen)), np.int64)
        present[rows[where >= 0], where[where >= 0]] = 1
        pairs += present.T @ present
    return pairs


def _label_pairs(table: pa.Table, classes: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Row and class of each assigned label, two int64 [k]; names that are not classes are left out."""
    chunks = table["labels"].chunks
    labels = pa.concat_arrays(chunks) if chunks else pa.array([], pa.list_(pa.string()))
    rows = pc.list_parent_indices(labels).to_numpy(zero_copy_only=False).astype(np.int64)
    kinds = pc.index_in(pc.list_flatten(labels), value_set=pa.array(classes, pa.string()))
    known = pc.is_valid(kinds).to_numpy(zero_copy_only=False)
    return rows[known], pc.fill_null(kinds, 0).to_numpy(zero_copy_only=False).astype(np.int64)[known]


def _count_statuses(stats: RunStatistics, table: pa.Table) -> None:
    for item in pc.value_counts(table["status"].combine_chunks()).to_pylist():
        stats.counts[item["values"]] += item["counts"]
    bad = table.filter(pc.not_equal(table["status"], "ok")).select(["path", "status", "error"])
    for row in bad.to_pylist():
        stats.reasons[row["status"], row["error"] or ""] += 1
        if len(stats.failures) < MAX_FAILURES:
            stats.failures.append(Failure(row["path"], row["status"], row["error"] or ""))


def _count_scores(stats: RunStatistics, rows: OkRows, shard: Shard, how: LabelSettings) -> None:
    best = rows.scores.max(axis=1)
    stats.best_histogram += np.histogram(np.clip(best, 0, 1), LINEAR_BINS, (0.0, 1.0))[0]
    logs = np.log10(np.clip(rows.scores, 10.0**-LOG_DECADES, 1.0))
    stats.all_histogram += np.histogram(logs, len(stats.all_histogram), (-LOG_DECADES, 0.0))[0]
    per_photo = np.bincount(rows.label_rows, minlength=len(rows.paths))
    bins = np.minimum(per_photo, MAX_LABELS_COUNTED)
    stats.labels_per_photo += np.bincount(bins, minlength=MAX_LABELS_COUNTED + 1)
    size = len(stats.classes)
    stats.label_counts += np.bincount(rows.label_classes, minlength=size)
    given = rows.scores[rows.label_rows, rows.label_classes]
    stats.label_score_sums += np.bincount(rows.label_classes, given, size)
    cosines = shard_cosines(shard, len(rows.paths)) if stats.parts_known else None
    if cosines is None:
        stats.parts_known = False
        return
    whole, tiles = score_parts(cosines, how, shard.view_layout())
    if not parts_agree(rows.scores, whole, tiles):
        stats.parts_known = False
        return
    stats.label_whole_sums += np.bincount(
        rows.label_classes, whole[rows.label_rows, rows.label_classes], size
    )


def _nominate(stats: RunStatistics, rows: OkRows, shard: int, keep: int) -> None:
    best = rows.scores.max(axis=1)
    top = rows.scores.argmax(axis=1)
    labels = np.bincount(rows.label_rows, minlength=len(rows.paths))
    # Among equals any photo will do, but the same one each time the report is made.
    tie = np.random.default_rng(shard).random(len(rows.paths))
    ranks: dict[str, Any] = {"confident": -best, "uncertain": best, "many": -labels, "few": labels}
    for group in GROUPS:
        order = np.lexsort((tie, ranks[group]))
        # On top of the best of all, the best of each class: one easy class must not fill the group.
        first = order[np.unique(top[order], return_index=True)[1]] if group == "confident" else order[:0]
        found = {
            Candidate(float(ranks[group][row]), float(tie[row]), shard, int(row), int(top[row]))
            for row in (*order[:keep], *first)
        }
        stats.candidates[group] = _best(found.union(stats.candidates.get(group, ())), keep, group)


def _best(found: set[Candidate], keep: int, group: str) -> list[Candidate]:
    """The best candidates in order; of the confident also each class's best, so at most keep + C."""
    ordered = sorted(found)
    if group != "confident":
        return ordered[:keep]
    classes: set[int] = set()
    kept = []
    for place, candidate in enumerate(ordered):
        if place < keep or candidate.top_class not in classes:
            kept.append(candidate)
        classes.add(candidate.top_class)
    return kept
