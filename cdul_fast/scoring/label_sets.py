"""The rule that turns the scores of a run into its label sets, kept with the run in run.json."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdul_fast.pseudo_labels import select_labels
from cdul_fast.scoring.calibration import Thresholds, calibrate, sampled_rows


@dataclass(frozen=True, eq=False)
class LabelRule:
    """One of: a fixed threshold, the best ``top_k``, or thresholds per class; a ``top_k`` also caps the
    others.

    With none of them a photo has the classes that reach half of its best score.
    """

    threshold: float | None = None
    top_k: int | None = None
    thresholds: Thresholds | None = None

    def select(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """The classes of each photo: scores [N, C] in, bool [N, C] out."""
        if self.thresholds is not None:
            return self.thresholds.select(scores, top_k=self.top_k)
        return select_labels(scores, threshold=self.threshold, top_k=self.top_k)

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """What run.json keeps under ``thresholds``."""
        stored: dict[str, Any]
        if self.thresholds is not None:
            stored = self.thresholds.to_json(classes)
        elif self.threshold is not None:
            stored = {"rule": "fixed", "value": self.threshold}
        else:
            stored = {"rule": "relative" if self.top_k is None else "top_k"}
        return stored if self.top_k is None else {**stored, "top_k": self.top_k}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], classes: Sequence[str]) -> LabelRule:
        """Reads what :meth:`to_json` wrote.

        Raises:
            ValueError: For a rule that is not known, or a class without a threshold.
        """
        rule, top_k = stored.get("rule"), stored.get("top_k")
        if rule == "calibrated":
            return cls(top_k=top_k, thresholds=Thresholds.from_json(stored, classes))
        if rule == "fixed":
            return cls(threshold=float(stored["value"]), top_k=top_k)
        if rule in ("relative", "top_k"):
            return cls(top_k=top_k)
        raise ValueError(f"stored has the unknown rule {rule!r}")


def choose_rule(
    photos: Sequence[int],
    classes: int,
    scores_of: Callable[[int, NDArray[np.int64]], NDArray[np.float32]],
    *,
    threshold: float | None = None,
    top_k: int | None = None,
    expected_labels: float | None = None,
) -> LabelRule:
    """The rule for a run with these settings; calibrated on its own scores where neither number is given.

    Args:
        photos: How many photos with scores each shard has.
        classes: How many classes.
        scores_of: Called as (shard, rows within it), gives their scores [len(rows), C]; only for the photos
            that calibration looks at, so that a run of any size needs little memory.
        threshold: A fixed bound on the score.
        top_k: At most so many labels a photo.
        expected_labels: The mean number of labels to calibrate for.
    """
    calibrated = expected_labels is not None or (threshold is None and top_k is None)
    total = sum(photos)
    if not calibrated or total == 0 or classes == 0:
        return LabelRule(threshold=threshold, top_k=top_k)
    wanted = sampled_rows(total, classes)
    scores = np.empty((len(wanted), classes), np.float32)
    starts = np.cumsum([0, *photos])
    bounds = np.searchsorted(wanted, starts)
    for shard, (first, last) in enumerate(itertools.pairwise(bounds)):
        if first < last:
            scores[first:last] = scores_of(shard, wanted[first:last] - starts[shard])
    thresholds = calibrate(scores, expected_labels=expected_labels, photos=total)
    return LabelRule(top_k=top_k, thresholds=thresholds)


def read_label_sets(lists: Iterable[Sequence[str] | None], classes: Sequence[str]) -> NDArray[np.bool_]:
    """Label sets bool [N, C] from lists of names; names that ``classes`` does not have are passed over."""
    index = {name: position for position, name in enumerate(classes)}
    rows = [[index[name] for name in names or () if name in index] for names in lists]
    chosen = np.zeros((len(rows), len(classes)), dtype=np.bool_)
    for row, positions in enumerate(rows):
        chosen[row, positions] = True
    return chosen
