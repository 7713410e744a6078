"""How good scores and label sets are beside the truth: average precision, precision, recall and F1."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.data.truth import Alignment, Truth, align, load_truth, match_classes, target_matrix
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.scoring.label_sets import read_label_sets
from cdul_fast.scoring.metrics import SetScores, average_precision, set_scores
from cdul_fast.tables import TableResult, optional, shorten


@dataclass(frozen=True, eq=False)
class EvaluationResult(TableResult):
    """The figures of one run beside one truth; every figure lies in 0..1, shown in %.

    Attributes:
        classes: The classes in the run's order.
        average_precision: [C], nan for a class left out.
        precision: [C] of the stored label sets, nan where no photo has the label.
        recall: [C], nan for a class left out.
        f1: [C], nan for a class left out.
        positives: [C] photos that hold the class.
        labelled: [C] photos that have the label.
        mean_average_precision: Over the classes with a positive.
        sets: F1 of the label sets as a whole.
        photos: Photos that took part.
        labels_per_photo: Mean size of the label sets.
        left_out: Classes without a positive.
        unknown: Classes of the truth that the run does not have.
        run_only: Scored photos that the truth does not have.
        truth_only: Photos of the truth without scores in the run.
        run: The run's path.
        truth: The truth's path.
        missing_shards: Shards that the run should have and has not; their photos took no part.
    """

    percent: ClassVar[frozenset[str]] = frozenset({"ap", "precision", "recall", "f1"})

    classes: tuple[str, ...]
    average_precision: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f1: NDArray[np.float64]
    positives: NDArray[np.int64]
    labelled: NDArray[np.int64]
    mean_average_precision: float
    sets: SetScores
    photos: int
    labels_per_photo: float
    left_out: tuple[str, ...]
    unknown: tuple[str, ...]
    run_only: tuple[str, ...]
    truth_only: tuple[str, ...]
    run: str
    truth: str
    missing_shards: tuple[str, ...] = ()

    def columns(self) -> dict[str, list[Any]]:
        """One row a class: name, AP, precision, recall, F1, positives, labelled."""
        return {
            "class": list(self.classes),
            "ap": optional(self.average_precision),
            "precision": optional(self.precision),
            "recall": optional(self.recall),
            "f1": optional(self.f1),
            "positives": self.positives.tolist(),
            "labelled": self.labelled.tolist(),
        }

    def summary(self) -> list[str]:
        """Lines that say what the table does not."""
        lines = [
            f"mAP {self.mean_average_precision * 100:.2f} % over "
            f"{len(self.classes) - len(self.left_out)} classes, {self.photos} photos",
            f"label sets: F1 {self.sets.micro * 100:.1f} % micro, {self.sets.macro * 100:.1f} % macro, "
            f"{self.sets.example * 100:.1f} % by photo; {self.labels_per_photo:.2f} labels a photo",
        ]
        if self.left_out:
            lines.append(f"left out, no positive: {shorten(self.left_out)}")
        if self.missing_shards:
            lines.append(f"missing from the run: {shorten(self.missing_shards)}")
        return lines + mismatch_lines(self.unknown, self.run_only, self.truth_only)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; figures in 0..1, null where there is none."""
        columns = self.columns()
        names = columns.pop("class")
        return {
            "run": self.run,
            "truth": self.truth,
            "photos": self.photos,
            "map": self.mean_average_precision,
            "f1_micro": self.sets.micro,
            "f1_macro": self.sets.macro,
            "f1_example": self.sets.example,
            "labels_per_photo": self.labels_per_photo,
            "classes": {
                name: {field: values[index] for field, values in columns.items()}
                for index, name in enumerate(names)
            },
            "left_out": list(self.left_out),
            "unknown_classes": list(self.unknown),
            "run_only": list(self.run_only),
            "truth_only": list(self.truth_only),
            "missing_shards": list(self.missing_shards),
        }

    def __repr__(self) -> str:
        return (
            f"EvaluationResult(mAP {self.mean_average_precision * 100:.2f} %, "
            f"F1 {self.sets.micro * 100:.1f} % micro, "
            f"{self.photos} photos, {len(self.classes) - len(self.left_out)} classes)"
        )


@dataclass(frozen=True, eq=False)
class Matched:
    """A run's scored photos beside their truth.

    Attributes:
        alignment: Which rows met.
        targets: [M, C] int8 as `target_matrix` gives it, in the order of ``alignment.rows``.
        unknown: Classes of the truth that the run does not have.
    """

    alignment: Alignment
    targets: NDArray[np.int8]
    unknown: tuple[str, ...]

    def notes(self) -> list[str]:
        """Lines that name what one side has and the other has not."""
        return mismatch_lines(self.unknown, self.alignment.run_only, self.alignment.truth_only)


def mismatch_lines(unknown: Sequence[str], run_only: Sequence[str], truth_only: Sequence[str]) -> list[str]:
    """Lines that name what a run and a truth do not share; none where they share everything."""
    lines = []
    if unknown:
        lines.append(f"classes of the truth that the run does not have: {shorten(unknown)}")
    if run_only:
        lines.append(f"{len(run_only)} scored photos without truth: {shorten(run_only)}")
    if truth_only:
        lines.append(f"{len(truth_only)} photos of the truth without scores: {shorten(truth_only)}")
    return lines


def match_truth(
    paths: Sequence[str], classes: Sequence[str], truth: Truth, *, root: str, run: str
) -> Matched:
    """Brings a run's scored photos and a truth together.

    Raises:
        ConfigError: If they share no class.
        CdulError: If they share no photo.
    """
    known = match_classes(classes, truth.names)
    if not known:
        raise ConfigError(
            f"{truth.source} and {run} share no class: the truth has {shorten(truth.names) or 'none'}; "
            f"the run has {shorten(list(classes))}"
        )
    alignment = align(paths, truth, root=root)
    if not len(alignment.rows):
        raise CdulError(
            f"{truth.source} and {run} share no photo: the truth has {shorten(truth.images, 1)}; "
            f"the run has {shorten(list(paths), 1) or 'no scored photo'}"
        )
    return Matched(
        alignment=alignment,
        targets=target_matrix(truth, alignment.truth_rows, classes),
        unknown=tuple(name for name in truth.names if name not in known),
    )


def evaluate_run(run: Run | str | Path, truth: Truth | str | Path) -> EvaluationResult:
    """Marks the scores and label sets of a run, or of predictions in the same format, against the truth.

    Args:
        run: A run directory or what `open_run` gave.
        truth: A truth file, or what `load_truth` gave.

    Raises:
        ConfigError: If a file is missing or wrong, or run and truth share no class.
        CdulError: If run and truth share no photo.
    """
    run = run if isinstance(run, Run) else open_run(run)
    truth = truth if isinstance(truth, Truth) else load_truth(truth)
    paths, scores = run.scores()
    matched = match_truth(paths, run.classes, truth, root=str(run.root), run=str(run.path))
    rows = matched.alignment.rows
    result = mark(
        scores[rows],
        _stored_sets(run)[rows],
        matched,
        classes=tuple(run.classes),
        run=str(run.path),
        truth=truth.source,
    )
    # Predictions have no views, and need none here.
    missing = tuple(name for name in run.missing_shards if not name.startswith("views-"))
    return dataclasses.replace(result, missing_shards=missing)


def mark(
    scores: NDArray[np.float32],
    chosen: NDArray[np.bool_],
    matched: Matched,
    *,
    classes: tuple[str, ...],
    run: str,
    truth: str,
) -> EvaluationResult:
    """The figures of scores [M, C] and label sets [M, C] whose rows are those of ``matched``."""
    targets = matched.targets
    present, counted = targets == 1, chosen & (targets != -1)
    positives, labelled = present.sum(axis=0), counted.sum(axis=0)
    hits = (counted & present).sum(axis=0)
    held = positives > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = hits / labelled
        recall = hits / positives
        f1 = np.where(held, 2 * hits / (labelled + positives), np.nan)
    ap = average_precision(scores, targets)
    return EvaluationResult(
        classes=classes,
        average_precision=ap,
        precision=precision,
        recall=recall,
        f1=f1,
        positives=positives,
        labelled=labelled,
        mean_average_precision=float(ap[held].mean()) if held.any() else float("nan"),
        sets=set_scores(chosen, targets),
        photos=len(targets),
        labels_per_photo=float(counted.sum() / max(1, len(targets))),
        left_out=tuple(name for name, keep in zip(classes, held, strict=True) if not keep),
        unknown=matched.unknown,
        run_only=matched.alignment.run_only,
        truth_only=matched.alignment.truth_only,
        run=run,
        truth=truth,
    )


def _stored_sets(run: Run) -> NDArray[np.bool_]:
    """The stored label sets of the photos that have scores, [N, C] in the order of ``run.scores()``."""
    table = run.table(["status", "labels"])
    rows = zip(table["status"].to_pylist(), table["labels"].to_pylist(), strict=True)
    return read_label_sets((labels for status, labels in rows if status == "ok"), run.classes)
