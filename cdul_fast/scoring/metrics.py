"""Figures of scores and label sets beside the truth: pure functions over arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SetScores:
    """F1 of label sets, three ways, each in 0..1.

    Attributes:
        example: Mean over photos.
        micro: Over all pairs of photo and class.
        macro: Mean over the classes with a positive.
    """

    example: float
    micro: float
    macro: float


def average_precision(scores: NDArray[np.float32], targets: NDArray[np.int8]) -> NDArray[np.float64]:
    """The average precision of each class, by torchmetrics without binning.

    Args:
        scores: [N, C].
        targets: [N, C] 1 present, 0 absent, -1 takes no part.

    Returns:
        [C] in 0..1; nan for a class without a positive.
    """
    import torch
    from torchmetrics.functional.classification import binary_average_precision

    result = np.full(scores.shape[1], np.nan)
    for index in np.flatnonzero((targets == 1).any(axis=0)):
        known = targets[:, index] >= 0
        column = scores[known, index].astype(np.float64)
        low, high = column.min(), column.max()
        if low < 0 or high > 1:
            # torchmetrics puts what lies outside 0..1, as raw cosines do, through a sigmoid; that ties scores
            # that differ; moved into 0..1 they keep their order.
            column = (column - low) / max(high - low, np.finfo(np.float64).tiny)
        present = torch.from_numpy(targets[known, index].astype(np.int64))
        result[index] = float(binary_average_precision(torch.from_numpy(column), present))
    return result


def set_scores(chosen: NDArray[np.bool_], targets: NDArray[Any]) -> SetScores:
    """F1 of label sets.

    Args:
        chosen: [N, C] the labels given.
        targets: [N, C] 1 present, 0 absent, -1 takes no part. A photo with neither labels nor positives
            counts as right.
    """
    present = targets == 1
    chosen = chosen & (targets != -1)
    hits = chosen & present
    either = chosen.sum(axis=1) + present.sum(axis=1)
    by_photo = np.where(either > 0, 2 * hits.sum(axis=1) / np.maximum(either, 1), 1.0)
    held = present.any(axis=0)
    by_class = 2 * hits.sum(axis=0) / np.maximum(chosen.sum(axis=0) + present.sum(axis=0), 1)
    return SetScores(
        example=float(by_photo.mean()) if len(by_photo) else float("nan"),
        micro=float(2 * hits.sum() / max(1, int(either.sum()))),
        macro=float(by_class[held].mean()) if held.any() else float("nan"),
    )
