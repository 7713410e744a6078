"""Prints the evidence for the default label rule: F1 of the label sets against the truth, rule by rule.

    python scripts/measure_calibration.py --scores ../shared/data/voc12_clip_scores.npz
    python scripts/measure_calibration.py --run run/ --truth labels.csv

Every rule sees the scores alone; the truth only marks them. Each is marked on all photos, on draws of 48
and of 500 photos, on photos that hold none of ten classes (absent classes must not be labelled out of
noise) and on a set where four in five photos hold a person, at three softmax scales.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cdul_fast.data.run_dir import open_run
from cdul_fast.data.truth import load_truth
from cdul_fast.pseudo_labels import EXTREMES_LAYOUT, LabelSettings, select_labels, soft_labels
from cdul_fast.scoring import calibration
from cdul_fast.scoring.calibration import calibrate
from cdul_fast.scoring.evaluation import match_truth
from cdul_fast.scoring.metrics import set_scores

Scores = NDArray[np.float32]
Sets = NDArray[np.bool_]
DRAWS = 8
HEADINGS = ("rule", "labels", "none", "example", "micro", "macro")


def per_class(split: Callable[[NDArray[np.float32]], float], scores: Scores) -> Sets:
    bounds = np.array([split(scores[:, c]) for c in range(scores.shape[1])], dtype=np.float32)
    return select_labels(scores, threshold=bounds, at_least_one=True)


def otsu(column: NDArray[np.float32]) -> float:
    return float(calibration._two_part_split(column[:, None])[0])


def mixture(column: NDArray[np.float32]) -> float:
    """The crossing of two normal components fitted to the log odds."""
    clipped = np.clip(column.astype(np.float64), 1e-6, 1 - 1e-6)
    x = np.log(clipped) - np.log1p(-clipped)
    start = float(calibration._two_part_split(x.astype(np.float32)[:, None])[0])
    upper = (x >= start).astype(np.float64)
    for _ in range(100):
        share, rest = upper.mean(), (1 - upper).mean()
        if min(share, rest) * len(x) < 1:
            break
        high, low = (upper * x).sum() / upper.sum(), ((1 - upper) * x).sum() / (1 - upper).sum()
        wide = (upper * (x - high) ** 2).sum() / upper.sum() + 1e-3
        tight = ((1 - upper) * (x - low) ** 2).sum() / (1 - upper).sum() + 1e-3
        odds = np.log(share / rest) - 0.5 * (
            np.log(wide / tight) + (x - high) ** 2 / wide - (x - low) ** 2 / tight
        )
        upper = 1 / (1 + np.exp(-np.clip(odds, -50, 50)))
    chosen = column[upper >= 0.5]
    return float(chosen.min()) if len(chosen) else float(column.max())


def expected_f1(column: NDArray[np.float32]) -> float:
    """The bound with the best F1 if the scores were probabilities."""
    ordered = np.sort(column)[::-1].astype(np.float64)
    f1 = 2 * np.cumsum(ordered) / (np.arange(1, len(ordered) + 1) + ordered.sum())
    return float(ordered[f1.argmax()])


def mass(column: NDArray[np.float32]) -> float:
    """As many photos as the scores of the class sum to."""
    return float(np.sort(column)[::-1][min(len(column), max(1, round(float(column.sum())))) - 1])


def photo_otsu(scores: Scores) -> Sets:
    """Each photo's own scores split in two."""
    return scores >= calibration._two_part_split(scores.T)[:, None]


def entropy_count(scores: Scores) -> Sets:
    """As many classes as the scores of a photo are worth: the exponential of their entropy."""
    shares = np.maximum(scores, 1e-12) / scores.sum(axis=1, keepdims=True)
    count = np.maximum(1, np.round(np.exp(-(shares * np.log(shares)).sum(axis=1))))
    return np.argsort(np.argsort(-scores, axis=1), axis=1) < count[:, None]


def split_without(scores: Scores, *, temper: bool, floor: float) -> Sets:
    """The chosen rule with a part left out."""
    power = calibration._tempering_power(scores) if temper else 1.0
    tempered = calibration.temper(scores, power)
    pooled = calibration._two_part_split(tempered.reshape(-1, 1))[0]
    bounds = np.maximum(calibration._two_part_split(tempered), floor * pooled).astype(np.float32)
    return select_labels(tempered, threshold=bounds, at_least_one=True)


RULES: dict[str, Callable[[Scores], Sets]] = {
    "fixed 0.5": lambda s: select_labels(s, threshold=0.5),
    "fixed 0.2": lambda s: select_labels(s, threshold=0.2),
    "fixed 0.1 (2/C)": lambda s: select_labels(s, threshold=2 / s.shape[1]),
    "top 1": lambda s: select_labels(s, top_k=1),
    "top 2": lambda s: select_labels(s, top_k=2),
    "half of the photo's best": select_labels,
    "two parts per photo": photo_otsu,
    "entropy count": entropy_count,
    "mass per class": lambda s: per_class(mass, s),
    "expected F1 per class": lambda s: per_class(expected_f1, s),
    "mixture on log odds": lambda s: per_class(mixture, s),
    "two parts per class": lambda s: per_class(otsu, s),
    "tempered, no floor": lambda s: split_without(s, temper=True, floor=0.0),
    "floor, not tempered": lambda s: split_without(s, temper=False, floor=calibration._FLOOR),
    "calibrated (default)": lambda s: calibrate(s).select(s),
    "calibrated, 1.43 expected": lambda s: calibrate(s, expected_labels=1.43).select(s),
}


def selections(labels: Sets, person: int, rng: np.random.Generator) -> dict[str, list[NDArray[np.int64]]]:
    """Name -> the photos of each draw."""
    count = len(labels)
    absent = []
    for _ in range(DRAWS):
        gone = rng.choice(labels.shape[1], labels.shape[1] // 2, replace=False)
        absent.append(np.flatnonzero(~labels[:, gone].any(axis=1)))
    people = np.flatnonzero(labels[:, person])
    others = rng.choice(np.flatnonzero(~labels[:, person]), len(people) // 4, replace=False)
    return {
        "all": [np.arange(count)],
        "48": [rng.choice(count, 48, replace=False) for _ in range(DRAWS)],
        "500": [rng.choice(count, 500, replace=False) for _ in range(DRAWS)],
        "absent": absent,
        "people": [np.concatenate([people, others])],
    }


def marks(sets: Sets, targets: NDArray[np.int8]) -> list[str]:
    whole = set_scores(sets, targets)
    return [
        f"{sets.sum() / len(sets):.2f}",
        f"{(~sets.any(axis=1)).mean() * 100:.1f} %",
        *(f"{value * 100:.1f}" for value in (whole.example, whole.micro, whole.macro)),
    ]


def print_row(cells: Iterable[str]) -> None:
    print("| " + " | ".join(cells) + " |")


def measure_run(path: str, truth_path: str) -> None:
    """The rules on the stored scores of one run."""
    run, truth = open_run(path), load_truth(truth_path)
    paths, scores = run.scores()
    matched = match_truth(paths, run.classes, truth, root=str(run.root), run=path)
    scores, targets = scores[matched.alignment.rows], matched.targets
    held = (targets == 1).sum() / len(targets)
    print(f"{len(targets)} photos, {len(run.classes)} classes, {held:.2f} labels a photo; F1 in %\n")
    print_row(HEADINGS)
    print("|---" * len(HEADINGS) + "|")
    for name, rule in RULES.items():
        if "expected" not in name or "F1" in name:
            print_row([name, *marks(rule(scores), targets)])
    sets = calibrate(scores, expected_labels=float(held)).select(scores)
    print_row([f"calibrated, {held:.2f} expected", *marks(sets, targets)])


def measure_cache(path: Path, scales: list[float]) -> None:
    """The rules on cached cosines at several scales, on all photos and on selections of them."""
    data = np.load(path)
    labels = data["labels"].astype(np.bool_)
    person = [str(name) for name in data["classes"]].index("person")
    cosines = np.stack([data["global_cos"], data["local_max_cos"], data["local_min_cos"]], axis=1)
    chosen = selections(labels, person, np.random.default_rng(0))
    others = {name: draws for name, draws in chosen.items() if name != "all"}
    print(f"{len(labels)} photos, {labels.sum() / len(labels):.2f} labels a photo; F1 in %")
    for scale in scales:
        scores = soft_labels(cosines, LabelSettings("cdul", scale), view_layout=EXTREMES_LAYOUT)
        print(f"\nscale {scale:g}\n")
        headings = [*HEADINGS, *(f"{name}: micro" for name in others)]
        print_row(headings)
        print("|---" * len(headings) + "|")
        for name, rule in RULES.items():
            parts = (
                np.mean([set_scores(rule(scores[rows]), labels[rows]).micro for rows in draws])
                for draws in others.values()
            )
            print_row([name, *marks(rule(scores), labels), *(f"{value * 100:.1f}" for value in parts)])
        bounds = np.linspace(0.01, 0.9, 179)
        best = max(
            bounds, key=lambda bound: set_scores(scores >= np.float32(bound), labels.astype(np.int8)).micro
        )
        print_row([f"fixed {best:.3f}, found with the truth", *marks(scores >= np.float32(best), labels)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scores", type=Path, default=Path("../shared/data/voc12_clip_scores.npz"))
    parser.add_argument("--scales", type=float, nargs="+", default=[20.0, 50.0, 100.0])
    parser.add_argument("--run", help="a run directory in place of cached cosines")
    parser.add_argument("--truth", help="the true labels of --run")
    arguments = parser.parse_args()
    if arguments.run is not None:
        if arguments.truth is None:
            parser.error("--run needs --truth")
        measure_run(arguments.run, arguments.truth)
    else:
        measure_cache(arguments.scores, arguments.scales)


if __name__ == "__main__":
    main()
