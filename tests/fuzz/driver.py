"""Runs a target on well-formed files, on its corpus, and for a time on mutations, and says what it did."""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import hypothesis
from hypothesis import strategies as st
from mutate import mutated, mutated_json
from targets import JSON_TARGETS, TARGETS

CORPUS = Path(__file__).parent / "corpus"
# An input that takes longer is a finding: the seeds take milliseconds.
HANG_SECONDS = 20
_EXAMPLES_AT_A_TIME = 200
_SHRINK_SECONDS = 10.0


class Hang(Exception):
    """An input took too long."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise `Hang` in the block when it takes too long; in the main thread.

    Seconds are counted one by one, so that those in which the process was stopped do not count: a machine
    that was suspended is no slow parser.
    """
    left = HANG_SECONDS

    def tick(signum: int, frame: FrameType | None) -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            raise Hang(f"an input took more than {HANG_SECONDS} s")

    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, 1.0, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_one(name: str, data: bytes) -> None:
    """Give a target one input, in a folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="cdul-fuzz-"))
    try:
        with limited():
            TARGETS[name].check(data, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def known_inputs(name: str) -> list[bytes]:
    """The seeds of a target, and the files in its corpus: inputs that once were findings."""
    return TARGETS[name].seeds() + [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def fuzz(name: str, seconds: float, first_seed: int, record: Callable[[bytes], None] = lambda _: None) -> int:
    """Mutations of the known inputs for some seconds; returns how many there were.

    Args:
        name: The target.
        seconds: How long; an input that is under way is finished.
        first_seed: Same seed, same inputs (as far as the time reaches).
        record: Given every input before the target is.

    Raises:
        Exception: What the target raised, after hypothesis has made the input as small as it could.
    """
    inputs = known_inputs(name)
    end = time.monotonic() + seconds
    count = failures = 0

    def example(data: bytes, rng: random.Random, structural: bool, noise: bytes) -> None:
        nonlocal count, end, failures
        if structural and name in JSON_TARGETS:
            data = mutated_json(data, rng)
        else:
            data = mutated(data, rng, [*inputs, noise], rng.choice((None, 64, 600)))
        if time.monotonic() > end:
            return
        count += 1
        record(data)
        try:
            run_one(name, data)
        except Exception:
            end += _SHRINK_SECONDS / (1 + failures)  # for hypothesis to make it small
            failures += 1
            raise

    given = hypothesis.given(
        st.sampled_from(inputs), st.randoms(use_true_random=False), st.booleans(), st.binary(max_size=64)
    )
    settings = hypothesis.settings(
        max_examples=_EXAMPLES_AT_A_TIME,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    seed = first_seed
    while time.monotonic() < end:
        hypothesis.seed(seed)(settings(given(example)))()
        seed += 1
    return count
