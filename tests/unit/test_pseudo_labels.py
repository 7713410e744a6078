"""Cosines -> soft labels -> label sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdul_fast import ops
from cdul_fast.pseudo_labels import (
    AGGREGATORS,
    EXTREMES_LAYOUT,
    LabelSettings,
    available_aggregators,
    names_of,
    select_labels,
    soft_labels,
    temper,
)


def softmax(cosines: np.ndarray, scale: float) -> np.ndarray:
    logits = cosines.astype(np.float64) * scale
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def cosines_of(seed: int, photos: int, views: int, classes: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.2, 0.03, (photos, views, classes)).astype(np.float32)


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_grid_layout_is_the_op(aggregator: str) -> None:
    cosines = cosines_of(0, 7, 10, 5)
    scores = soft_labels(cosines, LabelSettings(aggregator, 60.0, 0.3, -0.5))
    expected = ops.aggregate(cosines, aggregator=aggregator, scale=60.0, zeta=0.3, lam=-0.5)
    np.testing.assert_array_equal(scores, expected)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    photos=st.integers(1, 4),
    classes=st.integers(1, 9),
    zeta=st.sampled_from([0.0, 0.01, 0.2, 0.5, 1.0]),
    lam=st.sampled_from([-1.0, 0.0, 0.37, 1.0]),
    aggregator=st.sampled_from(["global", "max", "cdul"]),
)
def test_extremes_layout_is_the_written_rule(
    seed: int, photos: int, classes: int, zeta: float, lam: float, aggregator: str
) -> None:
    cosines = cosines_of(seed, photos, 3, classes)
    whole, alpha, beta = (softmax(cosines[:, view], 100.0) for view in range(3))
    if aggregator == "global":
        expected = whole
    else:
        # The rule's comparison is in float32, as the scores are: at the very bound float64 may differ.
        keeps = alpha.astype(np.float32) >= np.float32(zeta)
        local = np.where(keeps, alpha, beta) if aggregator == "cdul" else alpha
        expected = (whole + local + lam * np.abs(whole - local)) / 2
    scores = soft_labels(cosines, LabelSettings(aggregator, 100.0, zeta, lam), view_layout=EXTREMES_LAYOUT)
    clear = np.abs(alpha - zeta) > 1e-6
    np.testing.assert_allclose(scores[clear], expected[clear], atol=2e-6)


def test_extremes_cannot_give_the_mean() -> None:
    assert "mean" not in available_aggregators(EXTREMES_LAYOUT)
    with pytest.raises(ValueError, match="aggregator 'mean' needs the cosines of every tile"):
        soft_labels(cosines_of(0, 2, 3, 4), LabelSettings("mean"), view_layout=EXTREMES_LAYOUT)


@pytest.mark.parametrize(
    ("cosines", "layout", "message"),
    [
        (np.zeros((2, 3), np.float32), "global+grid", r"\[N, V, C\]"),
        (np.zeros((2, 4, 3), np.float32), EXTREMES_LAYOUT, "3 views, got 4"),
        (np.zeros((2, 3, 3), np.float32), "tiles", "view_layout must be one of"),
    ],
)
def test_wrong_cosines_are_named(cosines: np.ndarray, layout: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        soft_labels(cosines, LabelSettings(), view_layout=layout)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"aggregator": "median"}, "aggregator"),
        ({"scale": 0.0}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"zeta": 1.5}, "zeta"),
        ({"lam": -2.0}, "lam"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, object], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must"):
        LabelSettings(**changes)  # type: ignore[arg-type]


SCORES = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.34, 0.33, 0.33]], np.float32)


def test_threshold_is_inclusive_and_may_differ_by_class() -> None:
    assert names_of(select_labels(SCORES, threshold=0.3), "abc") == [["a", "b"], ["c"], ["a", "b", "c"]]
    per_class = np.array([0.3, 0.31, 0.7], np.float32)
    assert names_of(select_labels(SCORES, threshold=per_class), "abc") == [["a"], [], ["a", "b"]]


def test_top_k_alone_gives_exactly_k_and_the_earlier_class_wins_a_tie() -> None:
    assert names_of(select_labels(SCORES, top_k=2), "abc") == [["a", "b"], ["a", "c"], ["a", "b"]]
    assert select_labels(SCORES, top_k=9).all()


def test_top_k_caps_a_threshold() -> None:
    assert names_of(select_labels(SCORES, threshold=0.3, top_k=1), "abc") == [["a"], ["c"], ["a"]]
    assert names_of(select_labels(SCORES, threshold=0.5, top_k=2), "abc") == [["a"], ["c"], []]


def test_by_itself_a_photo_gets_what_reaches_half_of_its_best() -> None:
    assert names_of(select_labels(SCORES), "abc") == [["a", "b"], ["c"], ["a", "b", "c"]]


def test_at_least_one_adds_the_best_where_nothing_was_chosen() -> None:
    chosen = select_labels(SCORES, threshold=0.5, at_least_one=True)
    assert names_of(chosen, "abc") == [["a"], ["c"], ["a"]]


def test_no_photos_and_no_classes() -> None:
    assert select_labels(np.zeros((0, 3), np.float32), top_k=1, at_least_one=True).shape == (0, 3)
    assert select_labels(np.zeros((2, 0), np.float32)).shape == (2, 0)
    assert temper(np.zeros((0, 3), np.float32), 0.5).shape == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"threshold": np.zeros(2, np.float32)}, r"threshold must be a number or \[3\]"),
    ],
)
def test_wrong_selection_is_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_labels(SCORES, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[N, C\]"):
        select_labels(SCORES[0])


def test_tempering_a_softmax_is_a_softmax_at_a_smaller_scale() -> None:
    cosines = cosines_of(3, 5, 1, 6)[:, 0]
    tempered = temper(softmax(cosines, 100.0).astype(np.float32), 0.2)
    np.testing.assert_allclose(tempered, softmax(cosines, 20.0), rtol=2e-5)


def test_tempering_survives_zeros() -> None:
    tempered = temper(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32), 0.25)
    assert np.isfinite(tempered).all()
    np.testing.assert_allclose(tempered.sum(axis=1), 1.0, rtol=1e-6)
    assert tempered[0].argmax() == 0
