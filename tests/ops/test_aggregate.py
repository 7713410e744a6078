"""aggregate and aggregate_embeddings against the float64 references, on every CPU level."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdul_fast import ops
from cdul_fast.reference import aggregate as reference

LEVELS = ("baseline", "avx2", "avx512")
MACHINE_LEVELS = LEVELS[: LEVELS.index(ops.best_cpu_level()) + 1]

SCORE_TOLERANCE = 1e-6  # float32 softmax outputs in [0, 1]
COSINE_TOLERANCE = 5e-7  # float32 sums of up to 1024 products

SIZES = {
    "images": st.sampled_from((0, 1, 5)),
    "views": st.sampled_from((1, 2, 3, 10, 17, 101)),
    "classes": st.sampled_from((1, 3, 16, 17, 80, 1000)),
    "seed": st.integers(0, 2**32 - 1),
}
RULES = {
    "aggregator": st.sampled_from(ops.AGGREGATORS),
    "zeta": st.sampled_from((0.0, 0.01, 0.3, 0.5, 1.0)),
    "lam": st.sampled_from((-1.0, -0.4, 0.0, 0.7, 1.0)),
}


@pytest.fixture(params=MACHINE_LEVELS)
def level(request):
    with ops.force_cpu_level(request.param):
        yield request.param


def random_cosines(seed: int, images: int, views: int, classes: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.5, (images, views, classes)).astype(np.float32)


def away_from_threshold(cosines: np.ndarray, scale: float, zeta: float) -> np.ndarray:
    """[B, C]: where the largest snippet score is not so near zeta that rounding decides."""
    if cosines.shape[1] == 1:
        return np.ones((cosines.shape[0], cosines.shape[2]), dtype=bool)
    alpha = reference.softmax(scale * cosines[:, 1:].astype(np.float64)).max(axis=1)
    return np.abs(alpha - zeta) > 2 * SCORE_TOLERANCE


def check_scores(got: np.ndarray, cosines: np.ndarray, tolerance: float, **rule) -> None:
    assert got.dtype == np.float32
    want = reference.aggregate(cosines, **rule)
    assert got.shape == want.shape
    clear = away_from_threshold(cosines, rule.get("scale", 100.0), rule.get("zeta", 0.0))
    np.testing.assert_allclose(got[clear], want[clear], rtol=0, atol=tolerance)


@pytest.mark.parametrize("which", MACHINE_LEVELS)
@settings(max_examples=60, deadline=None)
@given(scale=st.sampled_from((1.0, 20.0, 100.0, 1000.0)), **SIZES, **RULES)
def test_aggregate_equals_reference(which, images, views, classes, seed, **rule):
    cosines = random_cosines(seed, images, views, classes)
    with ops.force_cpu_level(which):
        got = ops.aggregate(cosines, **rule)
    check_scores(got, cosines, SCORE_TOLERANCE, **rule)
