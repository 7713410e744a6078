"""Thresholds per class from unlabelled scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cdul_fast.pseudo_labels import EXTREMES_LAYOUT, LabelSettings, select_labels, soft_labels
from cdul_fast.scoring import calibration
from cdul_fast.scoring.calibration import Thresholds, calibrate
from cdul_fast.scoring.label_sets import LabelRule, choose_rule, read_label_sets
from cdul_fast.scoring.metrics import set_scores


def two_groups(seed: int = 0, photos: int = 400, classes: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Softmax scores of photos that hold one or two of the classes, and what they hold."""
    rng = np.random.default_rng(seed)
    held = np.zeros((photos, classes), np.bool_)
    for row in range(photos):
        held[row, rng.choice(classes, rng.integers(1, 3), replace=False)] = True
    logits = rng.normal(0, 0.4, held.shape) + 4.0 * held
    exponentials = np.exp(logits)
    return (exponentials / exponentials.sum(axis=1, keepdims=True)).astype(np.float32), held


def test_separable_scores_are_separated() -> None:
    scores, held = two_groups()
    assert set_scores(calibrate(scores).select(scores), held).micro > 0.98


def test_an_absent_class_is_not_labelled_out_of_noise() -> None:
    scores, held = two_groups()
    without = ~held[:, 3]
    chosen = calibrate(scores[without]).select(scores[without])
    assert chosen[:, 3].mean() < 0.02


def test_every_photo_has_a_label() -> None:
    scores, _ = two_groups()
    flat = np.vstack([scores, np.full((1, 8), 1 / 8, np.float32)])
    thresholds = calibrate(flat)
    assert thresholds.select(flat).any(axis=1).all()
    assert thresholds.select(flat)[-1].sum() == 1


@pytest.mark.parametrize("expected", [0.3, 1.0, 1.5, 3.0, 8.0])
def test_expected_labels_are_met(expected: float) -> None:
    scores, _ = two_groups()
    thresholds = calibrate(scores, expected_labels=expected)
    assert thresholds.select(scores).sum() / len(scores) == pytest.approx(expected, abs=0.02)
    assert thresholds.at_least_one == (expected >= 1)


def test_expected_labels_of_less_than_one_leave_photos_bare() -> None:
    scores, _ = two_groups()
    assert not calibrate(scores, expected_labels=0.3).select(scores).any(axis=1).all()


def test_more_labels_than_classes_are_all_classes() -> None:
    scores, _ = two_groups()
    assert calibrate(scores, expected_labels=100.0).select(scores).all()


def test_the_softmax_scale_hardly_matters() -> None:
    cosines = np.log(two_groups()[0])[:, None, :] / 20
    sets = [
        calibrate(scores).select(scores)
        for scores in (soft_labels(cosines, LabelSettings("global", scale)) for scale in (10.0, 20.0, 40.0))
    ]
    for other in sets[1:]:
        assert set_scores(other, sets[0]).micro > 0.98


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2)])
def test_the_smallest_runs(shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(0).random(shape).astype(np.float32)
    scores /= scores.sum(axis=1, keepdims=True)
    thresholds = calibrate(scores)
    assert np.isfinite(thresholds.values).all()
    assert thresholds.select(scores).any(axis=1).all()


def test_equal_scores_do_no_harm() -> None:
    scores = np.full((6, 4), 0.25, np.float32)
    thresholds = calibrate(scores)
    assert np.isfinite(thresholds.values).all() and np.isfinite(thresholds.power)


@pytest.mark.parametrize(
    ("scores", "expected", "message"),
    [
        (np.zeros((0, 3), np.float32), None, r"scores must be \[N, C\]"),
        (np.zeros(3, np.float32), None, r"scores must be \[N, C\]"),
        (np.full((2, 2), 0.5, np.float32), 0.0, "expected_labels must be above 0"),
        (np.full((2, 2), 0.5, np.float32), float("nan"), "expected_labels must be above 0"),
    ],
)
def test_wrong_calls_are_named(scores: np.ndarray, expected: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(scores, expected_labels=expected)


@pytest.mark.parametrize("at_once", [1, 7, 24, 1000])
def test_the_split_is_where_the_variance_between_parts_is_largest(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_CUTS_AT_ONCE", at_once)
    rng = np.random.default_rng(1)
    values = rng.random((25, 3)).astype(np.float32)
    for column in range(3):
        ordered = np.sort(values[:, column]).astype(np.float64)
        between = [
            cut * (25 - cut) * (ordered[cut:].mean() - ordered[:cut].mean()) ** 2 for cut in range(1, 25)
        ]
        cut = int(np.argmax(between)) + 1
        expected = (ordered[cut - 1] + ordered[cut]) / 2
        assert calibration._two_part_split(values)[column] == pytest.approx(expected)


def test_thresholds_survive_json() -> None:
    scores, _ = two_groups()
    thresholds = calibrate(scores, expected_labels=1.5)
    names = [f"c{i}" for i in range(8)]
    stored = json.loads(json.dumps(thresholds.to_json(names)))
    back = Thresholds.from_json(stored, names)
    np.testing.assert_array_equal(back.select(scores), thresholds.select(scores))
    assert (back.expected_labels, back.photos) == (1.5, len(scores))
    reordered = Thresholds.from_json(stored, names[::-1])
    np.testing.assert_array_equal(reordered.values, thresholds.values[::-1])
    with pytest.raises(ValueError, match="no threshold for class 'new'"):
        Thresholds.from_json(stored, ["new"])


@pytest.mark.parametrize(
    "rule", [LabelRule(), LabelRule(threshold=0.25), LabelRule(top_k=2), LabelRule(threshold=0.1, top_k=1)]
)
def test_rules_survive_json(rule: LabelRule) -> None:
    scores, _ = two_groups()
    back = LabelRule.from_json(json.loads(json.dumps(rule.to_json(list("abcdefgh")))), list("abcdefgh"))
    np.testing.assert_array_equal(back.select(scores), rule.select(scores))


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(ValueError, match="unknown rule 'dice'"):
        LabelRule.from_json({"rule": "dice"}, ["a"])


def test_sampling_shard_by_shard_equals_all_scores_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_SPLIT_ENTRIES", 800)
    monkeypatch.setattr(calibration, "_LEAST_PHOTOS", 100)
    scores, _ = two_groups(photos=403)
    starts = [0, 7, 7, 250, 403]
    asked: list[int] = []

    def scores_of(shard: int, rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return scores[starts[shard] : starts[shard + 1]][rows]

    rule = choose_rule(np.diff(starts).tolist(), 8, scores_of)
    assert sum(asked) == 100
    assert rule.thresholds is not None and rule.thresholds.photos == 403
    np.testing.assert_array_equal(rule.thresholds.values, calibrate(scores).values)


def test_fixed_rules_look_at_no_scores() -> None:
    def never(shard: int, rows: np.ndarray) -> np.ndarray:
        raise AssertionError("asked for scores")

    assert choose_rule([5], 3, never, threshold=0.2).threshold == 0.2
    assert choose_rule([5], 3, never, top_k=2).top_k == 2
    assert choose_rule([0], 3, never).thresholds is None


def test_label_sets_are_read_back() -> None:
    sets = read_label_sets([["b"], None, [], ["c", "unknown", "a"]], ["a", "b", "c"])
    assert sets.tolist() == [[False, True, False], [False] * 3, [False] * 3, [True, False, True]]


@pytest.mark.parametrize("scale", [20.0, 50.0, 100.0])
def test_on_real_scores_it_beats_every_fixed_rule(shared_data: Path, scale: float) -> None:
    data = np.load(shared_data / "voc12_clip_scores.npz")
    labels = data["labels"].astype(np.bool_)
    cosines = np.stack([data["global_cos"], data["local_max_cos"], data["local_min_cos"]], axis=1)
    scores = soft_labels(cosines, LabelSettings("cdul", scale), view_layout=EXTREMES_LAYOUT)
    calibrated = set_scores(calibrate(scores).select(scores), labels)
    # The best fixed threshold, found with the truth that calibration does not see.
    fixed = [
        set_scores(select_labels(scores, threshold=bound), labels) for bound in np.linspace(0.02, 0.6, 30)
    ]
    ranked = [set_scores(select_labels(scores, top_k=count), labels) for count in (1, 2)]
    for figure in ("micro", "macro", "example"):
        best = max(getattr(other, figure) for other in [*fixed, *ranked])
        assert getattr(calibrated, figure) > best + 0.01, figure
    assert calibrated.micro > 0.815
