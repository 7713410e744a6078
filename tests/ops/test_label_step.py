"""label_step against the float64 reference, on every CPU level."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cdul_fast import ops
from cdul_fast.reference import label_step as reference

LEVELS = ("baseline", "avx2", "avx512")
MACHINE_LEVELS = LEVELS[: LEVELS.index(ops.best_cpu_level()) + 1]
TOLERANCE = 1e-5


@pytest.fixture(params=MACHINE_LEVELS)
def level(request):
    with ops.force_cpu_level(request.param):
        yield request.param


@pytest.mark.parametrize(("sigma", "step"), [(0.05, 0.2), (0.2, 0.25), (0.4, 1.0), (1.0, 1.0), (5.0, 20.0)])
@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (17, 80), (1000, 81), (2, 3, 5), (0, 4)])
def test_equals_reference(level, sigma, step, shape):
    rng = np.random.default_rng(7)
    latent = np.asarray(rng.uniform(-10, 10, shape), dtype=np.float32)
    logits = np.asarray(rng.uniform(-20, 20, shape), dtype=np.float32)
    want = reference.label_step(latent, logits, sigma=sigma, step=step)
    got = ops.label_step(latent, logits, sigma=sigma, step=step)
    assert got is latent
    np.testing.assert_allclose(latent, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tensor", [False, True])
def test_rows_update_themselves_alone(level, tensor):
    rng = np.random.default_rng(8)
    latent = rng.normal(size=(50, 23)).astype(np.float32)
    before = latent.copy()
    rows = rng.permutation(50)[:17]
    logits = rng.normal(size=(17, 23)).astype(np.float32)
    want = before.astype(np.float64)
    want[rows] = reference.label_step(before[rows], logits, sigma=0.3, step=0.5)
    arguments = (latent, logits, rows)
    if tensor:
        arguments = tuple(torch.from_numpy(x) for x in arguments)
    ops.label_step(arguments[0], arguments[1], rows=arguments[2], sigma=0.3, step=0.5)
    np.testing.assert_allclose(latent, want, rtol=0, atol=TOLERANCE)
    others = np.setdiff1d(np.arange(50), rows)
    np.testing.assert_array_equal(latent[others], before[others])


def test_threads_do_not_change_the_result(level):
    rng = np.random.default_rng(9)
    latent, logits = rng.normal(size=(2, 3000, 41)).astype(np.float32)
    one, two = latent.copy(), latent.copy()
    ops.label_step(one, logits, sigma=0.4, step=1.0, threads=1)
    ops.label_step(two, logits, sigma=0.4, step=1.0, threads=2)
    np.testing.assert_array_equal(one, two)


def test_labels_approach_the_prediction(level):
    latent = np.array([[-3.0, 0.5, 3.0]], dtype=np.float32)
    logits = np.array([[2.0, -1.0, 2.0]], dtype=np.float32)
    gap = np.abs(latent - logits)
    for _ in range(5):
        ops.label_step(latent, logits, sigma=0.5, step=1.0)
        assert (np.abs(latent - logits) < gap).all()
        gap = np.abs(latent - logits)


def test_nan_and_infinity_stay_in_their_element(level):
    latent = np.zeros((2, 20), dtype=np.float32)
    logits = np.ones_like(latent)
    logits[0, 3], latent[1, 5], latent[1, 6] = np.nan, np.nan, np.inf
    ops.label_step(latent, logits, sigma=0.4, step=1.0)
    assert np.isnan(latent[0, 3]) and np.isnan(latent[1, 5])
    untouched = np.ones(latent.shape, dtype=bool)
    untouched[0, 3] = untouched[1, 5] = untouched[1, 6] = False
    assert np.isfinite(latent[untouched]).all()


def test_large_latents_stay_put(level):
    latent = np.array([[-100.0, 100.0, -3e38, 3e38]], dtype=np.float32)
    before = latent.copy()
    ops.label_step(latent, np.zeros_like(latent), sigma=0.05, step=0.1)
    np.testing.assert_array_equal(latent, before)


def test_settings_that_cannot_settle_are_refused():
    latent = np.zeros((1, 2), dtype=np.float32)
    with pytest.raises(ValueError, match=r"must be below 2.*take a step below 1$"):
        ops.label_step(latent, latent.copy(), sigma=0.2, step=1.01)
    ops.label_step(latent, latent.copy(), sigma=0.2, step=1.0)


def frozen() -> np.ndarray:
    array = np.zeros((4, 3), dtype=np.float32)
    array.flags.writeable = False
    return array


LOGITS = np.zeros((4, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("latent", "change", "error", "words"),
    [
        (frozen(), {}, ValueError, "latent: read-only"),
        (np.zeros((3, 4), np.float32).T, {}, ValueError, "latent: not contiguous"),
        (torch.zeros(3, 4).T, {}, ValueError, "latent: not contiguous"),
        (np.zeros((4, 3)), {}, TypeError, "latent: got float64"),
        ([[0.0]], {}, TypeError, "latent: got list"),
        (LOGITS.copy(), {"logits": np.zeros((4, 2), np.float32)}, ValueError, "logits: got shape"),
        (LOGITS.copy(), {"sigma": 0.0}, ValueError, "sigma: got 0.0"),
        (LOGITS.copy(), {"step": float("nan")}, ValueError, "step: got nan"),
        (LOGITS.copy(), {"rows": np.array([0, 1, 2, 4])}, ValueError, "rows: got 0 to 4, expected 0 to 3"),
        (LOGITS.copy(), {"rows": np.array([0, 1, 2, -1])}, ValueError, "rows: got -1 to 2"),
        (LOGITS.copy(), {"rows": np.array([0, 1, 2, 2])}, ValueError, "rows: a row is named twice"),
        (LOGITS.copy(), {"rows": np.zeros(4, np.int32)}, TypeError, "rows: got int32"),
    ],
)
def test_wrong_calls_name_the_argument(latent, change, error, words):
    arguments = {"logits": LOGITS, "sigma": 0.5, "step": 0.5, **change}
    with pytest.raises(error, match=words):
        ops.label_step(latent, arguments.pop("logits"), **arguments)
