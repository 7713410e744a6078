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

    pytest-benchmark keeps the record; the times are taken here, since its rounds know one contestant only.
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
            rounds: how many turns each has.
            target: rival -> how many times faster than it we mean to be.
            notes: anything to keep beside the figures, such as largest differences.
            missing: rivals that are not installed here.
            subject: what our side is called in the tables.
            warmup: untimed calls of each before; 0 where one call takes seconds.
        """
        turns = {name: _turn(call, warmup) for name, call in {subject: ours, **rivals}.items()}
        seconds: dict[str, list[float]] = {name: [] for name in turns}

        def turn(name: str) -> None:
            call, count = turns[name]
            time.sleep(_PAUSE_SECONDS)
            seconds[name].append(_timed(call, count))

        def rivals_turn() -> None:
            for name in rivals:
                turn(name)

        self._benchmark.pedantic(turn, args=(subject,), rounds=1)
        for _ in range(rounds - 1):
            rivals_turn()
            turn(subject)
        rivals_turn()
        timings = {name: _summary(values) for name, values in seconds.items()}
        ratios = {name: timings[name].median / timings[subject].median for name in rivals}
        self._benchmark.extra_info.update(
            subject=subject,
            timings={name: asdict(timing) for name, timing in timings.items()},
            calls_a_turn={name: count for name, (_, count) in turns.items()},
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


# A turn of short calls is a burst: what is timed is a call among its like, not the waking of a core.
_TURN_SECONDS = 0.02
# Before every turn, whoever's it is: the threads of OpenMP, which torch computes with, look for work for some
# 7 ms after their last call, and would take a core from the first third of the next contestant's turn.
_PAUSE_SECONDS = 0.01


def _turn(call: Contestant, warmup: int) -> tuple[Contestant, int]:
    """The call, and how many of it fill a turn."""
    if warmup == 0:
        return call, 1
    for _ in range(warmup):
        call()
    return call, max(1, min(1000, int(_TURN_SECONDS / _timed(call, 1))))


def _timed(call: Contestant, count: int) -> float:
    """Seconds a call, over ``count`` calls in a row."""
    gc.collect(0)
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count
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
