"""Average precision and F1, beside scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from cdul_fast.scoring.metrics import average_precision, set_scores


@pytest.mark.parametrize("kind", ["softmax", "cosines", "ties", "saturated"])
def test_average_precision_is_scikit_learns(kind: str) -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((300, 6)) < 0.2).astype(np.int8)
    scores = (rng.normal(size=(300, 6)) + targets).astype(np.float32)
    if kind == "softmax":
        exponentials = np.exp(scores)
        scores = exponentials / exponentials.sum(axis=1, keepdims=True)
    elif kind == "ties":
        scores = np.round(scores)
    elif kind == "saturated":
        # Differences that a sigmoid in float32 would lose.
        scores = 200 + scores * 10
    result = average_precision(scores.astype(np.float32), targets)
    expected = [average_precision_score(targets[:, c], scores[:, c]) for c in range(6)]
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_classes_without_a_positive_have_none() -> None:
    targets = np.array([[1, 0, 0], [0, 0, 1]], np.int8)
    result = average_precision(np.random.default_rng(0).random((2, 3)).astype(np.float32), targets)
    assert np.isnan(result).tolist() == [False, True, False]


def test_ignored_pairs_take_no_part() -> None:
    rng = np.random.default_rng(1)
    targets = rng.integers(-1, 2, (200, 4)).astype(np.int8)
    scores = rng.random((200, 4)).astype(np.float32)
    for c, value in enumerate(average_precision(scores, targets)):
        known = targets[:, c] >= 0
        assert value == pytest.approx(average_precision_score(targets[known, c], scores[known, c]), abs=1e-6)
    chosen = rng.random((200, 4)) < 0.5
    known = targets >= 0
    assert set_scores(chosen, targets).micro == pytest.approx(f1_score(targets[known], chosen[known]))


def test_f1_is_scikit_learns() -> None:
    rng = np.random.default_rng(2)
    targets = (rng.random((100, 5)) < 0.3).astype(np.int8)
    chosen = rng.random((100, 5)) < 0.4
    result = set_scores(chosen, targets)
    assert result.micro == pytest.approx(f1_score(targets, chosen, average="micro"))
    assert result.macro == pytest.approx(f1_score(targets, chosen, average="macro"))
    assert result.example == pytest.approx(f1_score(targets, chosen, average="samples", zero_division=1.0))


def test_nothing_to_mark() -> None:
    empty = set_scores(np.zeros((0, 3), np.bool_), np.zeros((0, 3), np.int8))
    assert np.isnan(empty.example) and empty.micro == 0.0
