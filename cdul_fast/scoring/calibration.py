"""Thresholds per class, found in the scores of a run alone: no label is needed, none is looked at.

The rule, chosen by measurement (benchmarks/NOTES.md, "Calibration"; ``scripts/measure_calibration.py``):

1. Temper the scores: a softmax at CLIP's own scale of 100 is nearly 0 or 1, and the gap between a present
   and an absent class is lost. The power is the one that brings a photo's best score, on average, a fifth
   of the way from uniform to certain.
2. Per class, split its tempered scores over all photos in two where the variance between the parts is largest
   (Otsu's criterion).
3. No class goes below 0.7 of the split of all classes pooled: a class that no photo holds has no upper
   part, and its own split would cut through noise.
4. A photo where no class reaches its bound keeps its best one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdul_fast.pseudo_labels import select_labels, temper

# How far the mean best score lies from uniform (0) to certain (1) after tempering.
_TOP_SHARE = 0.2
# The least a class's bound may be, as a share of the pooled one.
_FLOOR = 0.7
# Scores looked at: enough for the bounds to settle, few enough for a run of any size. Evenly spaced photos;
# of many classes at least _LEAST_PHOTOS of them, as far as _MOST_ENTRIES goes.
_SPLIT_ENTRIES = 500_000
_LEAST_PHOTOS = 2_000
_MOST_ENTRIES = 2_000_000
_POOLED_ENTRIES = 200_000
# Cuts of a column looked at together: the column of all classes pooled is long.
_CUTS_AT_ONCE = 20_000
_POWER_RANGE = (1 / 64, 64.0)


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Bounds per class and how they are applied.

    Attributes:
        values: [C] bounds on the tempered scores, float32.
        power: The exponent of :func:`cdul_fast.pseudo_labels.temper`; 1 leaves softmax scores as they are.
        at_least_one: Whether a photo below every bound keeps its best class.
        expected_labels: The number of labels a photo that was asked for, if any.
        photos: How many photos the bounds were found on.
    """

    values: NDArray[np.float32]
    power: float
    at_least_one: bool
    expected_labels: float | None
    photos: int

    def select(self, scores: NDArray[np.float32], *, top_k: int | None = None) -> NDArray[np.bool_]:
        """The classes of each photo: scores [N, C] in, bool [N, C] out; ``top_k`` keeps at most that many."""
        return select_labels(
            temper(scores, self.power), threshold=self.values, top_k=top_k, at_least_one=self.at_least_one
        )

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """What run.json keeps under ``thresholds``; the inverse of :meth:`from_json`."""
        if len(classes) != len(self.values):
            raise ValueError(f"classes must name {len(self.values)} classes, got {len(classes)}")
        return {
            "rule": "calibrated",
            "power": self.power,
            "at_least_one": self.at_least_one,
            "expected_labels": self.expected_labels,
            "photos": self.photos,
            "values": {name: float(value) for name, value in zip(classes, self.values, strict=True)},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any], classes: Sequence[str]) -> Thresholds:
        """Reads what :meth:`to_json` wrote, in the order of ``classes``.

        Raises:
            ValueError: For another rule, or a class that has no bound.
        """
        if stored.get("rule") != "calibrated":
            raise ValueError(f"stored must hold the rule 'calibrated', got {stored.get('rule')!r}")
        values = stored["values"]
        missing = [name for name in classes if name not in values]
        if missing:
            raise ValueError(f"stored has no threshold for class {missing[0]!r}")
        expected = stored["expected_labels"]
        return cls(
            values=np.array([values[name] for name in classes], dtype=np.float32),
            power=float(stored["power"]),
            at_least_one=bool(stored["at_least_one"]),
            expected_labels=None if expected is None else float(expected),
            photos=int(stored["photos"]),
        )


def sampled_rows(photos: int, classes: int) -> NDArray[np.int64]:
    """The rows that calibration looks at: all of a small run, evenly spaced ones of a large one."""
    classes = max(1, classes)
    most = min(_MOST_ENTRIES // classes, max(_SPLIT_ENTRIES // classes, _LEAST_PHOTOS))
    return _spaced(photos, most)


def _spaced(photos: int, most: int) -> NDArray[np.int64]:
    most = max(2, most)
    if photos <= most:
        return np.arange(photos, dtype=np.int64)
    return np.linspace(0, photos - 1, most).astype(np.int64)


def calibrate(
    scores: NDArray[np.float32], *, expected_labels: float | None = None, photos: int | None = None
) -> Thresholds:
    """Finds thresholds per class from unlabelled softmax scores.

    Args:
        scores: [N, C] soft scores of a run's readable photos, not negative.
        expected_labels: The mean number of labels a photo to aim at; all bounds are then moved by one common
            factor until the photos looked at have that many (all C where it asks for more).
        photos: How many photos the run has, where ``scores`` are those of :func:`sampled_rows` alone.

    Returns:
        The thresholds; the same scores always give the same ones.

    Raises:
        ValueError: For scores without a photo or a class, or an ``expected_labels`` that is not above 0.
    """
    if scores.ndim != 2 or scores.shape[0] == 0 or scores.shape[1] == 0:
        raise ValueError(f"scores must be [N, C] with a photo and a class at least, got {list(scores.shape)}")
    photos = len(scores) if photos is None else photos
    classes = scores.shape[1]
    if expected_labels is not None and not expected_labels > 0:
        raise ValueError(f"expected_labels must be above 0, got {expected_labels}")
    rows = sampled_rows(len(scores), classes)
    scores = scores if len(rows) == len(scores) else scores[rows]
    few = _spaced(len(scores), _POOLED_ENTRIES // classes)
    power = _tempering_power(scores[few])
    tempered = temper(scores, power)
    pooled = _two_part_split(tempered[few].reshape(-1, 1))[0]
    values = np.maximum(_two_part_split(tempered), _FLOOR * pooled)
    at_least_one = expected_labels is None or expected_labels >= 1
    if expected_labels is not None:
        values = values * _common_factor(tempered, values, expected_labels, at_least_one)
    return Thresholds(
        values=values.astype(np.float32),
        power=power,
        at_least_one=at_least_one,
        expected_labels=expected_labels,
        photos=photos,
    )


def _tempering_power(scores: NDArray[np.float32]) -> float:
    """The power at which a photo's best score is, on average, ``_TOP_SHARE`` of the way to certain."""
    classes = scores.shape[1]
    if classes == 1:
        return 1.0
    target = 1 / classes + _TOP_SHARE * (1 - 1 / classes)
    low, high = (math.log(bound) for bound in _POWER_RANGE)
    # The mean best score grows with the power; 24 halvings leave less than a millionth.
    for _ in range(24):
        middle = (low + high) / 2
        if float(temper(scores, math.exp(middle)).max(axis=1).mean()) > target:
            high = middle
        else:
            low = middle
    return math.exp(middle)


def _two_part_split(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Per column of [N, K], the cut that maximises the variance between the two parts, float64 [K].

    A column of one value gives that value. One column at a time, to need little memory.
    """
    return np.array([_split_of(column) for column in values.T])


def _split_of(column: NDArray[np.float32]) -> float:
    ordered = np.sort(column)
    count = len(ordered)
    if count == 1:
        return float(ordered[0])
    sums = np.cumsum(ordered, dtype=np.float64)
    most, cut = -1.0, 0
    for start in range(0, count - 1, _CUTS_AT_ONCE):
        stop = min(start + _CUTS_AT_ONCE, count - 1)
        lower = np.arange(start + 1, stop + 1, dtype=np.float64)
        between = (sums[-1] * lower / count - sums[start:stop]) ** 2 / (lower * (count - lower))
        best = int(between.argmax())
        if between[best] > most:
            most, cut = float(between[best]), start + best
    return (float(ordered[cut]) + float(ordered[cut + 1])) / 2


def _common_factor(
    tempered: NDArray[np.float32], values: NDArray[np.float64], expected: float, at_least_one: bool
) -> float:
    """The factor on all bounds at which the photos have ``expected`` labels on average."""
    # How far each score lies above its own bound; a class is chosen where that reaches the factor.
    ratios = tempered / np.maximum(values, np.finfo(np.float32).tiny)
    if at_least_one:
        ratios[np.arange(len(ratios)), tempered.argmax(axis=1)] = np.inf
    wanted = min(ratios.size, max(1, round(expected * len(ratios))))
    reached = float(np.partition(ratios, ratios.size - wanted, axis=None)[ratios.size - wanted])
    # Every photo keeping its best class already gives one label each: nothing else is then wanted.
    return reached if math.isfinite(reached) else float(ratios[np.isfinite(ratios)].max(initial=0.0)) * 2 + 1
