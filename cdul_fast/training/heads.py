"""Training a head on stored features: what ``--freeze-backbone``, the comparison and the sweep share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdul_fast.training.batches import StoredBatches
from cdul_fast.training.loop import Loop, LoopSettings, Network, mean_average_precision
from cdul_fast.training.methods import Problem, create_method


@dataclass(frozen=True)
class HeadResult:
    """A trained head.

    Attributes:
        loop: With network and method.
        labels_before: mAP of the soft labels on the training photos, percent (NaN without truth).
        labels_after: mAP of the method's labels after training.
        seconds: Of training.
    """

    loop: Loop
    labels_before: float
    labels_after: float
    seconds: float

    def test(self, features: Tensor, truth: np.ndarray, least: int) -> tuple[float, np.ndarray]:
        """mAP and AP per class, percent, on stored features of test photos."""
        return mean_average_precision(self.loop.predict(StoredBatches(features)), truth, least)


def train_head(
    features: Tensor,
    problem: Problem,
    method: str,
    options: dict[str, Any],
    settings: LoopSettings,
    *,
    truth: np.ndarray | None = None,
    least: int = 1,
    dropout: float = 0.0,
    standardise: bool = True,
    after_epoch: Callable[[Loop], None] | None = None,
) -> HeadResult:
    """Train a method's head on stored features in memory.

    Args:
        features: [N, D] pooled, or [N, D, h, w] maps for methods that want them.
        problem: The training set as the method may see it.
        method: Its name.
        options: Its settings.
        settings: Of the loop.
        truth: [N, C] to judge the labels by, never seen by the method.
        least: Fewest positives of a class that counts.
        dropout: Before the classifier.
        standardise: Whether the head gets features scaled by channel, see `Standardise`.
        after_epoch: Called after each epoch.
    """
    start = time.perf_counter()
    torch.manual_seed(settings.seed)
    made = create_method(method, problem, options)
    network = Network(None, made.build_head(features.shape[1], dropout), features.shape[1])
    if standardise:
        network.scaling.fit(features)
    loop = Loop(network, made, StoredBatches(features), settings)
    for _ in range(settings.epochs):
        loop.train_epoch()
        loop.close_epoch({})
        if after_epoch is not None:
            after_epoch(loop)
    seconds = time.perf_counter() - start
    before = after = float("nan")
    if truth is not None:
        before = mean_average_precision(problem.soft.numpy(), truth, least)[0]
        after = mean_average_precision(made.labels().numpy(), truth, least)[0]
    return HeadResult(loop, before, after, seconds)
