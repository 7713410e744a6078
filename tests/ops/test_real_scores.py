"""aggregate on real CLIP outputs: the mean average precisions that their README gives."""

from __future__ import annotations

import numpy as np
import pytest

from cdul_fast import ops


@pytest.fixture(scope="module")
def scores(shared_data):
    with np.load(shared_data / "voc12_clip_scores.npz") as file:
        return {name: file[name] for name in ("labels", "global_cos", "local_max_cos")}


def mean_average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    from sklearn.metrics import average_precision_score

    return 100 * float(average_precision_score(truth, scores, average="macro"))


@pytest.mark.parametrize(("scale", "percent"), [(20, 85.5), (50, 85.0), (100, 84.0)])
def test_global(scores, scale, percent):
    result = ops.aggregate(scores["global_cos"][:, None], aggregator="global", scale=scale)
    assert mean_average_precision(scores["labels"], result) == pytest.approx(percent, abs=0.05)


@pytest.mark.parametrize(("scale", "percent"), [(20, 89.3), (50, 88.9), (100, 87.8)])
def test_fused(scores, scale, percent):
    views = np.stack([scores["global_cos"], scores["local_max_cos"]], axis=1)
    result = ops.aggregate(views, scale=scale)
    assert mean_average_precision(scores["labels"], result) == pytest.approx(percent, abs=0.05)
