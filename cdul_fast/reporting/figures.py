"""Numbers as a reader wants them: formats for the templates, and bins, axes and matrices for the charts."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

_MAX_BARS = 40


@dataclass(frozen=True)
class HistogramBin:
    """One bar. `x`, `width` and `height` are fractions of the chart's box."""

    x: float
    width: float
    height: float
    count: int
    label: str


@dataclass(frozen=True)
class Histogram:
    """Bars and an axis: ticks are (fraction of the width, text)."""

    bins: list[HistogramBin]
    ticks: list[tuple[float, str]]
    highest: int
    upper: float

    def position(self, value: float) -> float | None:
        """Where a value lies on a linear axis from 0, as a fraction; None if it is off the chart."""
        return value / self.upper if 0 <= value <= self.upper else None


@dataclass(frozen=True)
class Cell:
    """Photos with the row's and the column's label, and their share of the photos with the row's label."""

    photos: int
    share: float

    @property
    def text(self) -> str:
        """The share in per cent; "<1" rather than a false zero."""
        value = 100.0 * self.share
        return "<1" if 0 < value < 0.5 else f"{value:.0f}"


@dataclass(frozen=True)
class Matrix:
    """A square table of label pairs."""

    names: list[str]
    totals: list[int]
    rows: list[list[Cell]]


def count(value: float) -> str:
    """A whole number with thousands separated by a thin space: 12 345."""
    return f"{round(value):,}".replace(",", "\u202f")


def score(value: float) -> str:
    """A score on 0..1: two decimals, a third below 0.1, and "<0.001" rather than a false zero."""
    if value >= 0.0995:
        return f"{value:.2f}"
    if value >= 0.0005:
        return f"{value:.3f}"
    return "0" if value <= 0 else "<0.001"


def share(part: float, whole: float) -> str:
    """A share in per cent: 12 %, 0.4 %; "<0.1 %" rather than a false zero."""
    if whole <= 0:
        return "–"
    value = 100.0 * part / whole
    if 0 < value < 0.1:
        return "<0.1\u202f%"
    if value > 99.9 and part < whole:
        return ">99.9\u202f%"
    return f"{value:.0f}\u202f%" if value >= 9.95 or value == 0 else f"{value:.1f}\u202f%"


def percent(value: float) -> str:
    """A fraction as a CSS percentage, clipped to 0..100%."""
    return f"{100.0 * min(max(value, 0.0), 1.0):.4g}%"


def seconds(value: float) -> str:
    """A duration: 0.42 s, 12 s, 3 min 05 s, 2 h 07 min."""
    if value < 9.95:
        return f"{value:.2g} s" if value >= 0.01 or value == 0 else "<0.01 s"
    if value < 119.5:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def setting(value: Any) -> str:
    """A config value as JSON, strings without quotes, nothing as a dash, fractions to five digits."""
    if value is None or value == "":
        return "–"
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def nice_ceiling(value: float) -> float:
    """The next of 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1 at or above a value: the length of a full bar."""
    for limit in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        if value <= limit:
            return limit
    return 1.0


def linear_histogram(counts: np.ndarray) -> Histogram:
    """Fine bins over 0..1, cut at a round value above the last one in use and merged to at most 40 bars."""
    used = np.flatnonzero(counts)
    size = len(counts)
    upper = nice_ceiling((int(used[-1]) + 1) / size) if len(used) else 1.0
    kept = counts[: max(1, round(upper * size))]
    merge = max(1, math.ceil(len(kept) / _MAX_BARS))
    kept = np.pad(kept, (0, -len(kept) % merge)).reshape(-1, merge).sum(axis=1)
    step = merge / size
    labels = [f"{i * step:.3g} to {(i + 1) * step:.3g}" for i in range(len(kept))]
    ticks = [(f, f"{f * upper:.3g}") for f in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return _histogram(kept, labels, ticks, upper)


def log_histogram(counts: np.ndarray, decades: int = 6) -> Histogram:
    """Bins of equal width in log10 up to 1, from the lowest power of ten in use; the first is 10^-decades."""
    used = np.flatnonzero(counts)
    unused = int(used[0]) * decades // len(counts) if len(used) else 0
    counts = counts[unused * len(counts) // decades :]
    decades -= unused
    step = decades / len(counts)
    edges = [10.0 ** (-decades + i * step) for i in range(len(counts) + 1)]
    labels = [f"{low:.2g} to {high:.2g}" for low, high in itertools.pairwise(edges)]
    texts = ["1" if d == decades else f"10{_superscript(d - decades)}" for d in range(decades + 1)]
    ticks = [(d / decades, text) for d, text in enumerate(texts)]
    return _histogram(counts, labels, ticks, 1.0)


def count_histogram(counts: np.ndarray) -> Histogram:
    """One bar a whole number from 0; the last bin of `counts` stands for that many or more."""
    used = np.flatnonzero(counts)
    kept = counts[: int(used[-1]) + 1] if len(used) else counts[:1]
    last = len(counts) - 1
    names = [f"{i}+" if i == last else str(i) for i in range(len(kept))]
    ticks = [((i + 0.5) / len(kept), name) for i, name in enumerate(names)]
    labels = [f"{name} label{'' if name == '1' else 's'}" for name in names]
    return _histogram(kept, labels, ticks, float(len(kept)))


def matrix(names: list[str], pairs: np.ndarray) -> Matrix:
    """Shares from pair counts int64 [k, k] whose diagonal holds each label's own count."""
    totals = [int(n) for n in np.diag(pairs)]
    rows = [
        [Cell(int(n), int(n) / total if total else 0.0) for n in line]
        for line, total in zip(pairs, totals, strict=True)
    ]
    return Matrix(names, totals, rows)


def _histogram(
    counts: np.ndarray, labels: list[str], ticks: list[tuple[float, str]], upper: float
) -> Histogram:
    highest = int(counts.max(initial=0))
    width = 1.0 / len(counts)
    bins = [
        HistogramBin(i * width, width, int(n) / highest if highest else 0.0, int(n), labels[i])
        for i, n in enumerate(counts)
    ]
    return Histogram(bins, ticks, highest, upper)


def _superscript(value: int) -> str:
    return str(value).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
