"""label_step against the float64 reference, on every CPU level."""

from __future__ import annotations

import numpy as np
import pytest

from cdul_fast import ops
from cdul_fast.reference import label_step as reference

LEVELS = ("baseline", "avx2", "avx512")
MACHINE_LEVELS = LEVELS[: LEVELS.index(ops.best_cpu_level()) + 1]
TOLERANCE = 1e-5


@pytest.mark.parametrize("level", MACHINE_LEVELS)
@pytest.mark.parametrize(("sigma", "step"), [(0.05, 0.2), (0.2, 0.25), (0.4, 1.0), (1.0, 1.0), (5.0, 20.0)])
@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (17, 80), (1000, 81), (2, 3, 5), (0, 4)])
def test_equals_reference(level, sigma, step, shape):
    rng = np.random.default_rng(7)
    latent = np.asarray(rng.uniform(-10, 10, shape), dtype=np.float32)
    logits = np.asarray(rng.uniform(-20, 20, shape), dtype=np.float32)
    want = reference.label_step(latent, logits, sigma=sigma, step=step)
    with ops.force_cpu_level(level):
        got = ops.label_step(latent, logits, sigma=sigma, step=step)
    assert got is latent
    np.testing.assert_allclose(latent, want, rtol=0, atol=TOLERANCE)
