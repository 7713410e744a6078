"""How good each way of making pseudo labels is on one run: the paper's first table, for any data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.data.truth import Truth, load_truth
from cdul_fast.errors import ConfigError
from cdul_fast.pseudo_labels import AGGREGATORS, available_aggregators
from cdul_fast.run_settings import run_settings
from cdul_fast.scoring.evaluation import match_truth
from cdul_fast.scoring.metrics import average_precision
from cdul_fast.scoring.sweeps import ok_paths, sweep
from cdul_fast.tables import TableResult, optional, shorten

# Zero-shot CLIP: the cosine of the whole photo as it is, without the softmax that makes classes compete.
ZERO_SHOT = "clip"
METHODS = (ZERO_SHOT, *AGGREGATORS)
# Where zeta is not given; the softmax scores it is compared with lie mostly near 0.
ZETAS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
# mAP of the pseudo labels on the training set with RN50x64, in %: the CDUL paper's table (ICCV 2023), which
# does not give its zeta.
PUBLISHED: dict[str, dict[str, float]] = {
    "voc2012": {"global": 85.3, "mean": 88.5, "max": 89.5, "cdul": 90.3},
    "coco2014": {"global": 65.4, "mean": 70.0, "max": 71.6, "cdul": 72.8},
    "nuswide": {"global": 41.2, "mean": 41.8, "max": 42.3, "cdul": 43.1},
}


@dataclass(frozen=True, eq=False)
class LabelComparison(TableResult):
    """Average precision of each method, the mean first and then class by class.

    Attributes:
        classes: The C classes in the run's order.
        positives: [C] photos that hold the class.
        average_precision: [C] for each of `METHODS` that the run can give, nan for a class left out.
        scale: The softmax scale of all methods but zero-shot CLIP.
        lam: The fusion of all but zero-shot CLIP and ``global``.
        zeta: The bound of ``cdul``.
        zeta_marks: mAP of ``cdul`` by zeta where zeta was searched with the truth at hand; empty where given.
        photos: Photos that took part.
        left_out: Classes without a positive.
        published: The paper's figures in %, or empty.
        run: The run's path.
        truth: The truth's path.
        notes: What did not meet: classes and photos of one side alone.
    """

    classes: tuple[str, ...]
    positives: NDArray[np.int64]
    average_precision: dict[str, NDArray[np.float64]]
    scale: float
    lam: float
    zeta: float
    zeta_marks: dict[float, float]
    photos: int
    left_out: tuple[str, ...]
    published: dict[str, float]
    run: str
    truth: str
    notes: tuple[str, ...]

    percent = frozenset(METHODS)

    @property
    def mean_average_precision(self) -> dict[str, float]:
        """Macro mAP in 0..1 by method, over the classes with a positive."""
        return {method: float(np.nanmean(values)) for method, values in self.average_precision.items()}

    def columns(self) -> dict[str, list[Any]]:
        """The mean, the published figure where asked for, then one row a class."""
        means = self.mean_average_precision
        head: list[dict[str, Any]] = [{"class": "all (mAP)", "positives": int(self.positives.sum()), **means}]
        if self.published:
            shares = {method: value / 100 for method, value in self.published.items()}
            head.append({"class": "published (mAP)", "positives": None, **shares})
        columns: dict[str, list[Any]] = {
            "class": [row["class"] for row in head] + list(self.classes),
            "positives": [row["positives"] for row in head] + self.positives.tolist(),
        }
        for method in METHODS:
            own = self.average_precision.get(method)
            below = [None] * len(self.classes) if own is None else optional(own)
            columns[method] = [row.get(method) for row in head] + below
        return columns

    def summary(self) -> list[str]:
        """The means again, where a long table ends; settings; what took no part."""
        if self.zeta_marks:
            zeta = f"zeta {self.zeta:g} (the best of {len(self.zeta_marks)} on this very truth)"
        else:
            zeta = f"zeta {self.zeta:g}"
        lines = [
            f"mAP %: {self._means()}",
            f"{self.photos} photos; scale {self.scale:g}, lam {self.lam:g}, {zeta}; "
            "clip: cosines of the whole photo as they are",
        ]
        if self.left_out:
            lines.append(f"left out, no positive: {shorten(self.left_out)}")
        lines += [
            f"{method}: not available, the run keeps only the extremes over the tiles"
            for method in METHODS
            if method not in self.average_precision
        ]
        return lines + list(self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values for JSON; figures (published ones too) in 0..1, null where none is."""
        methods: dict[str, Any] = dict.fromkeys(METHODS)
        for method, values in self.average_precision.items():
            by_class = dict(zip(self.classes, optional(values), strict=True))
            methods[method] = {"map": self.mean_average_precision[method], "classes": by_class}
        return {
            "run": self.run,
            "truth": self.truth,
            "photos": self.photos,
            "scale": self.scale,
            "lam": self.lam,
            "zeta": self.zeta,
            "zeta_search": {f"{zeta:g}": mark for zeta, mark in self.zeta_marks.items()} or None,
            "methods": methods,
            "published": {name: value / 100 for name, value in self.published.items()} or None,
            "left_out": list(self.left_out),
            "notes": list(self.notes),
        }

    def _heading(self, name: str) -> str:
        missing = name in METHODS and name not in self.average_precision
        return f"{name} (not available)" if missing else super()._heading(name)

    def _means(self) -> str:
        return ", ".join(f"{name} {value * 100:.2f}" for name, value in self.mean_average_precision.items())

    def __repr__(self) -> str:
        return f"LabelComparison(mAP %: {self._means()}; {self.photos} photos)"


def compare_label_quality(
    run: Run | str | Path,
    truth: Truth | str | Path,
    *,
    scale: float | None = None,
    zeta: float | None = None,
    lam: float | None = None,
    published: str | None = None,
) -> LabelComparison:
    """Marks every way of making pseudo labels that the stored views of a run can give.

    Args:
        run: A run directory, or what `open_run` gave.
        truth: A truth file or folder, or what `load_truth` gave.
        scale: The softmax scale; the run's own without it.
        zeta: The bound of ``cdul``; without it the best of `ZETAS` on this truth, which flatters ``cdul``.
        lam: The fusion of global and local scores; the run's own without it.
        published: ``voc2012``, ``coco2014`` or ``nuswide``, to show the paper's figures beside one's own.

    Raises:
        ConfigError: For a setting that does not fit, or a run and a truth that share no class.
        CdulError: For a run or truth that is missing, damaged, or shares no photo with the other.
    """
    if published is not None and published not in PUBLISHED:
        raise ConfigError(f"--published wants one of {', '.join(PUBLISHED)}, got {published!r}")
    run = run if isinstance(run, Run) else open_run(run)
    truth = truth if isinstance(truth, Truth) else load_truth(truth)
    matched = match_truth(ok_paths(run), run.classes, truth, root=str(run.root), run=str(run.path))
    rows, targets = matched.alignment.rows, matched.targets
    base = run_settings(run, aggregator="global", scale=scale, zeta=zeta, lam=lam)
    zetas = ZETAS if zeta is None else (base.zeta,)
    simple = [name for name in available_aggregators(run.view_layout) if name != "cdul"]
    settings = [{**base.to_dict(), "aggregator": name} for name in simple]
    settings += [{**base.to_dict(), "aggregator": "cdul", "zeta": one} for one in zetas]
    scores = sweep(run, settings).scores
    marks = [average_precision(one[rows], targets) for one in scores]
    found = dict(zip(simple, marks, strict=False))
    by_zeta = {one: float(np.nanmean(mark)) for one, mark in zip(zetas, marks[len(simple) :], strict=True)}
    best = max(by_zeta, key=lambda one: by_zeta[one])
    found["cdul"] = marks[len(simple) + zetas.index(best)]
    whole = np.concatenate([shard.cosines()[:, 0] for shard in run.shards])
    found = {ZERO_SHOT: average_precision(whole[rows], targets), **found}
    positives = (targets == 1).sum(axis=0)
    missing = [f"missing from the run: {shorten(run.missing_shards)}"] if run.missing_shards else []
    return LabelComparison(
        classes=tuple(run.classes),
        positives=positives,
        average_precision=found,
        scale=base.scale,
        lam=base.lam,
        zeta=best,
        zeta_marks=by_zeta if zeta is None else {},
        photos=len(rows),
        left_out=tuple(name for name, count in zip(run.classes, positives, strict=True) if not count),
        published=PUBLISHED.get(published or "", {}),
        run=str(run.path),
        truth=truth.source,
        notes=(*missing, *matched.notes()),
    )
