"""How much of a score came from the whole photo and how much from its tiles: arithmetic on saved cosines."""

from __future__ import annotations

import dataclasses

import numpy as np

from cdul_fast.pseudo_labels import GRID_LAYOUT, LabelSettings, soft_labels

# Stored scores and parts recomputed from stored cosines agree to about 1e-6; past this bound the scores were
# made by other settings than the run's config names, and the parts would mislead.
_AGREEMENT = 1e-3


def score_parts(
    cosines: np.ndarray, how: LabelSettings, view_layout: str = GRID_LAYOUT
) -> tuple[np.ndarray, np.ndarray]:
    """Splits final scores into what the whole photo and what the tiles contributed.

    The final score is ((1 + lam) * larger + (1 - lam) * smaller) / 2 of the global score g and the aggregated
    tile score a, so that each side's weight is known and the two parts add up to it.

    Args:
        cosines: float32 [n, V, C], view 0 the whole photo.
        how: the run's settings.
        view_layout: what the other views are.

    Returns:
        Two float32 [n, C]: the global and the local part; the local one is zero where no tile was used.
    """
    whole = soft_labels(cosines, dataclasses.replace(how, aggregator="global"), view_layout=view_layout)
    if how.aggregator == "global" or cosines.shape[1] == 1:
        return whole, np.zeros_like(whole)
    mean = soft_labels(cosines, dataclasses.replace(how, lam=0.0), view_layout=view_layout)
    tiles = np.maximum(2.0 * mean - whole, 0.0)
    weight = np.where(whole >= tiles, (1.0 + how.lam) / 2.0, (1.0 - how.lam) / 2.0).astype(np.float32)
    return weight * whole, (1.0 - weight) * tiles


def parts_agree(scores: np.ndarray, whole: np.ndarray, tiles: np.ndarray) -> bool:
    """Whether parts [n, C] add up to the stored scores [n, C], so that showing them is honest."""
    return scores.shape == whole.shape and bool(
        np.all(np.abs(whole + tiles - scores) <= _AGREEMENT, where=np.isfinite(scores))
    )


def tile_scores(cosines: np.ndarray, scale: float) -> np.ndarray:
    """Softmax scores of each tile by itself: float32 [n, V - 1, C] from cosines [n, V, C]."""
    from cdul_fast import ops

    n, views, classes = cosines.shape
    flat = np.ascontiguousarray(cosines[:, 1:]).reshape(n * (views - 1), 1, classes)
    soft: np.ndarray = ops.aggregate(flat, aggregator="global", scale=scale)
    return soft.reshape(n, views - 1, classes)
