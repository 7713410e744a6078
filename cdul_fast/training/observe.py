"""Annotation budgets: which labels of the truth a method gets to see."""

from __future__ import annotations

import numpy as np


def observe(budget: str, *, truth: np.ndarray | None, soft: np.ndarray, seed: int = 0) -> np.ndarray:
    """Draw the observed labels of a training set.

    ``none`` takes the most confident class of the soft labels as the one positive and nothing else; ``one``
    draws one true positive per image (none for an image without any); ``10%`` (any whole percentage works)
    draws that share of all N x C labels, positives and negatives alike; ``all`` is the truth.

    Args:
        budget: ``none``, ``one``, ``all`` or a percentage such as ``10%``.
        truth: [N, C] 0/1, needed by every budget but ``none``. -1 marks a label that nobody may see.
        soft: [N, C] soft labels.
        seed: Of the draw.

    Returns:
        [N, C] int8: 1 observed positive, -1 observed negative, 0 unknown.

    Raises:
        ValueError: For an unknown budget, or one that needs a truth and has none.
    """
    observed = np.zeros(soft.shape, dtype=np.int8)
    everyone = np.arange(len(soft))
    if budget == "none":
        observed[everyone, soft.argmax(axis=1)] = 1
        return observed
    share = _share(budget)
    if truth is None:
        raise ValueError(f"observe {budget} needs the true labels: give a truth file, or use observe none")
    if truth.shape != soft.shape:
        raise ValueError(f"truth must be {soft.shape} as the soft labels are, got {truth.shape}")
    generator = np.random.default_rng(seed)
    signs = np.where(truth < 0, 0, np.where(truth > 0, 1, -1)).astype(np.int8)
    if budget == "one":
        # The largest of independent uniform numbers is a uniform choice among the positives.
        lots = np.where(signs == 1, generator.random(signs.shape), -1.0)
        chosen = lots.argmax(axis=1)
        some = (signs == 1).any(axis=1)
        observed[everyone[some], chosen[some]] = 1
        return observed
    if share < 1:
        signs[generator.random(signs.shape) >= share] = 0
    return signs


def _share(budget: str) -> float:
    if budget in ("one", "all"):
        return 1.0
    number = budget.removesuffix("%")
    if budget.endswith("%") and number.replace(".", "", 1).isdigit() and 0 < float(number) <= 100:
        return float(number) / 100
    raise ValueError(f"observe must be none, one, all or a percentage such as 10%, got {budget!r}")
