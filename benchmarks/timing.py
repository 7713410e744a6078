"""The one timing helper: contestants take turns in one process, so the machine's drift meets all alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pytest

Contestant = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant over its rounds."""

    median: float
    minimum: float
    maximum: float
    rounds: int


class Race:
    """Times several ways to do one job, in turn, and keeps the figures with the benchmark's JSON record.

    Our own way is timed by pytest-benchmark; every rival is timed just before each of its rounds.
    """

    def __init__(self, benchmark: Any) -> None:
        self._benchmark = benchmark

    def run(
        self,
        ours: Contestant,
        rivals: Mapping[str, Contestant],
        *,
        rounds: int,
        target: Mapping[str, float] | None = None,
        notes: Mapping[str, object] | None = None,
        missing: tuple[str, ...] = (),
        subject: str = "cdul_fast",
        warmup: int = 1,
    ) -> dict[str, Timing]:
        """Times all contestants.

        Args:
            ours: our way; the results must have been compared by the caller before.
            rivals: name -> a rival's way.
            rounds: how often each is timed.
            target: rival -> how many times faster than it we mean to be.
            notes: anything to keep beside the figures, such as largest differences.
            missing: rivals that are not installed here.
            subject: what our side is called in the tables.
            warmup: untimed calls of each before.
        """
        seconds: dict[str, list[float]] = {name: [] for name in rivals}
        for call in (*rivals.values(), ours):
            for _ in range(warmup):
                call()

        def rivals_turn() -> None:
            for name, call in rivals.items():
                seconds[name].append(_timed(call))

        self._benchmark.pedantic(ours, setup=rivals_turn, rounds=rounds, iterations=1)
        own = list(self._benchmark.stats.stats.data)
        timings = {subject: _summary(own), **{name: _summary(values) for name, values in seconds.items()}}
        ratios = {name: timings[name].median / timings[subject].median for name in rivals}
        self._benchmark.extra_info.update(
            subject=subject,
            timings={name: asdict(timing) for name, timing in timings.items()},
            ratios=ratios,
            targets=dict(target or {}),
            missing=list(missing),
            notes=dict(notes or {}),
        )
        return timings


@pytest.fixture
def race(benchmark: Any) -> Race:
    """A race recorded under the test's name."""
    return Race(benchmark)


def _timed(call: Contestant) -> float:
    gc.collect(0)
    gc.disable()
    try:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    finally:
        gc.enable()


def _summary(values: list[float]) -> Timing:
    return Timing(statistics.median(values), min(values), max(values), len(values))


@contextmanager
def library_threads(count: int) -> Any:
    """Sets the thread counts of torch and OpenCV (where installed) inside a ``with`` block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        import cv2
    except ImportError:
        cv2 = None
    cv2_before = cv2.getNumThreads() if cv2 else 0
    if cv2:
        cv2.setNumThreads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if cv2:
            cv2.setNumThreads(cv2_before)
