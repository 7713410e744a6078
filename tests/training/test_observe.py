"""Annotation budgets."""

from __future__ import annotations

import numpy as np
import pytest

from cdul_fast.training.observe import observe

RNG = np.random.default_rng(5)
TRUTH = (RNG.random((400, 10)) < 0.3).astype(np.int8)
TRUTH[0] = 0
SOFT = RNG.random((400, 10)).astype(np.float32)


def test_none_takes_the_most_confident_class_alone():
    observed = observe("none", truth=None, soft=SOFT)
    assert (observed.sum(axis=1) == 1).all() and (observed >= 0).all()
    assert (observed.argmax(axis=1) == SOFT.argmax(axis=1)).all()


def test_one_draws_a_true_positive_uniformly():
    observed = observe("one", truth=TRUTH, soft=SOFT)
    assert not observed[0].any()
    assert ((observed == 1).sum(axis=1) == TRUTH.any(axis=1)).all()
    assert (TRUTH[observed == 1] == 1).all() and not (observed == -1).any()
    two = np.zeros((4000, 10), np.int8)
    two[:, [3, 7]] = 1
    picks = observe("one", truth=two, soft=np.zeros((4000, 10), np.float32)).sum(axis=0)
    assert abs(int(picks[3]) - 2000) < 150 and picks[3] + picks[7] == 4000


def test_a_tenth_draws_both_signs_and_tells_the_truth():
    observed = observe("10%", truth=TRUTH, soft=SOFT, seed=3)
    known = observed != 0
    assert 0.08 < known.mean() < 0.12
    assert ((observed == 1)[known] == (TRUTH == 1)[known]).all()
    assert (observed == 1).any() and (observed == -1).any()


def test_all_is_the_truth_and_unseeable_labels_stay_unknown():
    truth = TRUTH.copy()
    truth[5, 5] = -1
    observed = observe("all", truth=truth, soft=SOFT)
    assert observed[5, 5] == 0
    observed[5, 5] = 1 if TRUTH[5, 5] else -1
    assert ((observed == 1) == (TRUTH == 1)).all() and (observed != 0).all()


@pytest.mark.parametrize("budget", ["one", "10%"])
def test_the_seed_decides(budget):
    first = observe(budget, truth=TRUTH, soft=SOFT, seed=1)
    assert (first == observe(budget, truth=TRUTH, soft=SOFT, seed=1)).all()
    assert (first != observe(budget, truth=TRUTH, soft=SOFT, seed=2)).any()


@pytest.mark.parametrize("budget", ["10", "0%", "200%", "two", "-5%"])
def test_unknown_budgets_are_named(budget):
    with pytest.raises(ValueError, match="observe must be none, one, all"):
        observe(budget, truth=TRUTH, soft=SOFT)


def test_budgets_say_that_they_need_the_truth():
    with pytest.raises(ValueError, match="needs the true labels"):
        observe("one", truth=None, soft=SOFT)
    with pytest.raises(ValueError, match="truth must be"):
        observe("all", truth=TRUTH[:5], soft=SOFT)
