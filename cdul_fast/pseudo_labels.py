"""Cosines -> soft labels -> sets of names: pure functions over arrays, no files and no models.

The arithmetic of the aggregators is in :mod:`cdul_fast.ops`; this module knows what the views of a stored run
mean, and how a row of soft scores becomes a set of class names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdul_fast import ops

AGGREGATORS = ("global", "mean", "max", "cdul")

# View 0 is the whole photo, every other view one tile.
GRID_LAYOUT = "global+grid"
# Scores that somebody cached: the whole photo, then the largest and the smallest cosine over the tiles.
EXTREMES_LAYOUT = "global,max,min"
VIEW_LAYOUTS = (GRID_LAYOUT, EXTREMES_LAYOUT)

# The rule of one photo alone, used where nothing else is known of the run: everything that reaches this share
# of the photo's best score. Measured in benchmarks/NOTES.md, "Calibration".
DEFAULT_RELATIVE_THRESHOLD = 0.5


@dataclass(frozen=True)
class LabelSettings:
    """What turns stored cosines into soft scores.

    Attributes:
        aggregator: ``global``, ``mean``, ``max`` or ``cdul``.
        scale: The softmax scale the cosines are multiplied by.
        zeta: The bound above which a class takes its largest tile score, below it its smallest (``cdul``
            only).
        lam: The fusion of global and local scores: 0 their mean, 1 their maximum, -1 their minimum.
    """

    aggregator: str = "cdul"
    scale: float = 100.0
    zeta: float = 0.0
    lam: float = 0.0

    def __post_init__(self) -> None:
        if self.aggregator not in AGGREGATORS:
            raise ValueError(f"aggregator must be one of {', '.join(AGGREGATORS)}, got {self.aggregator!r}")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale must be a positive number, got {self.scale!r}")
        if not 0.0 <= self.zeta <= 1.0:
            raise ValueError(f"zeta must lie in 0..1, got {self.zeta!r}")
        if not -1.0 <= self.lam <= 1.0:
            raise ValueError(f"lam must lie in -1..1, got {self.lam!r}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for run.json and tables."""
        return asdict(self)


def available_aggregators(view_layout: str) -> tuple[str, ...]:
    """The aggregators that the views of a layout can give.

    Raises:
        ValueError: For a layout that is not known.
    """
    _check_layout(view_layout)
    if view_layout == EXTREMES_LAYOUT:
        # The average over the tiles cannot be had from their extremes.
        return tuple(name for name in AGGREGATORS if name != "mean")
    return AGGREGATORS


def soft_labels(
    cosines: NDArray[np.float32], settings: LabelSettings, *, view_layout: str = GRID_LAYOUT
) -> NDArray[np.float32]:
    """Aggregates the cosines of each photo's views into one soft score for each class.

    Args:
        cosines: [N, V, C], view 0 the whole photo; the other views as ``view_layout`` says.
        settings: Aggregator, scale, zeta and lam.
        view_layout: ``global+grid`` (every other view is a tile) or ``global,max,min`` (view 1 holds the
            largest cosine over the tiles and view 2 the smallest; alpha is view 1's softmax, beta view
            2's).

    Returns:
        [N, C] scores in 0..1.

    Raises:
        ValueError: For a shape or layout that does not fit, or an aggregator the layout cannot give.
    """
    _check_layout(view_layout)
    if cosines.ndim != 3:
        raise ValueError(f"cosines must be [N, V, C], got {cosines.ndim} dimensions")
    if view_layout == GRID_LAYOUT:
        return _aggregate(cosines, settings)
    if cosines.shape[1] != 3:
        raise ValueError(f"cosines laid out as {EXTREMES_LAYOUT!r} must have 3 views, got {cosines.shape[1]}")
    if settings.aggregator not in available_aggregators(view_layout):
        raise ValueError(
            f"aggregator {settings.aggregator!r} needs the cosines of every tile, and this run stores only "
            f"their largest and smallest ({EXTREMES_LAYOUT!r}): choose one of "
            + ", ".join(available_aggregators(view_layout))
        )
    # Two views are the whole photo and one tile, which every reduction over tiles leaves as it is.
    if settings.aggregator != "cdul" or settings.zeta == 0.0:
        return _aggregate(np.ascontiguousarray(cosines[:, :2]), settings)
    whole, alpha, beta = (
        _aggregate(np.ascontiguousarray(cosines[:, view : view + 1]), LabelSettings("global", settings.scale))
        for view in range(3)
    )
    local = np.where(alpha >= np.float32(settings.zeta), alpha, beta)
    fused = whole + local + np.float32(settings.lam) * np.abs(whole - local)
    return np.asarray(fused / np.float32(2), dtype=np.float32)


def select_labels(
    scores: NDArray[np.float32],
    *,
    threshold: float | NDArray[np.float32] | None = None,
    top_k: int | None = None,
    at_least_one: bool = False,
) -> NDArray[np.bool_]:
    """Chooses the classes that each photo is labelled with.

    Softmax scores share one unit of mass, so no fixed number fits one confident class and five of them alike.
    Without ``threshold`` and ``top_k`` a photo gets every class that reaches half of its own best score;
    :func:`cdul_fast.scoring.calibration.calibrate` finds thresholds per class from the scores of a whole run,
    which is better and what a finished run uses.

    Args:
        scores: [N, C].
        threshold: One bound for all classes, or [C] bounds; a score equal to its bound is in.
        top_k: At most this many, best first; alone, exactly this many. The earlier class wins a tie.
        at_least_one: Also the best class of a photo where nothing reaches its bound.

    Returns:
        [N, C] bool.

    Raises:
        ValueError: For a wrong shape or a ``top_k`` below 1.
    """
    if scores.ndim != 2:
        raise ValueError(f"scores must be [N, C], got {scores.ndim} dimensions")
    photos, classes = scores.shape
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if threshold is not None:
        bounds = np.asarray(threshold, dtype=np.float32)
        if bounds.shape not in ((), (classes,)):
            raise ValueError(f"threshold must be a number or [{classes}] numbers, got shape {bounds.shape}")
        chosen = scores >= bounds
    elif top_k is not None:
        chosen = np.ones(scores.shape, dtype=np.bool_)
    else:
        chosen = scores >= np.float32(DEFAULT_RELATIVE_THRESHOLD) * scores.max(
            axis=1, keepdims=True, initial=0.0
        )
    if classes == 0:
        return np.asarray(chosen, dtype=np.bool_)
    if top_k is not None and top_k < classes:
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        among = np.zeros(scores.shape, dtype=np.bool_)
        np.put_along_axis(among, best, True, axis=1)
        chosen = chosen & among
    if at_least_one:
        chosen[np.arange(photos), scores.argmax(axis=1)] = True
    return np.asarray(chosen, dtype=np.bool_)


def temper(scores: NDArray[np.float32], power: float) -> NDArray[np.float32]:
    """Flattens (power < 1) or sharpens rows of positive scores and brings each back to a sum of one.

    A softmax at a large scale is nearly 0 or 1: the order is intact, but the distance between a present and
    an absent class is lost. On rows that are softmax scores, a power p is the softmax at p times the scale.

    Args:
        scores: [N, C], not negative.
        power: The exponent.

    Returns:
        [N, C], each row summing to one (a row of zeros becomes uniform).
    """
    # The smallest normal float32 stands in for a zero, whose logarithm would not survive the power.
    logs = np.maximum(scores, np.float32(np.finfo(np.float32).tiny))
    np.log(logs, out=logs)
    logs *= np.float32(power)
    logs -= logs.max(axis=1, keepdims=True, initial=-np.inf)
    np.exp(logs, out=logs)
    logs /= logs.sum(axis=1, keepdims=True)
    return np.asarray(logs, dtype=np.float32)


def names_of(chosen: NDArray[np.bool_], classes: Sequence[str]) -> list[list[str]]:
    """The chosen class names of each row, in the order of ``classes``."""
    return [[classes[index] for index in np.flatnonzero(row).tolist()] for row in chosen]


def _check_layout(view_layout: str) -> None:
    if view_layout not in VIEW_LAYOUTS:
        raise ValueError(f"view_layout must be one of {', '.join(VIEW_LAYOUTS)}, got {view_layout!r}")


def _aggregate(cosines: NDArray[np.float32], settings: LabelSettings) -> NDArray[np.float32]:
    return np.asarray(ops.aggregate(cosines, **settings.to_dict()), dtype=np.float32)
