"""Threads that read, decode and crop photos, none of which can hold up a run.

A thread cannot be stopped from outside. A photo that takes longer than allowed is therefore given up on: its
row says ``timeout``, another thread takes the place of the one that hangs, and that one, should it ever come
back, may no longer write its views and ends. Threads that hang keep what they hold, so there is a bound on
them; beyond it the disk or the mount is at fault, not the photos, and the run stops.
"""

from __future__ import annotations

import functools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np

from cdul_fast.data.paths import one_line
from cdul_fast.data.source import Source
from cdul_fast.errors import CdulError
from cdul_fast.execution.work import Prepared, ViewSpec, prepare_photo

if TYPE_CHECKING:
    from cdul_fast.config import LabelConfig

logger = logging.getLogger("cdul_fast.label")

# How many threads may hang at a time, at least; as many as there are readers, where these are more.
_LEAST_BOUND = 8
# What a photo gets beyond the limit: if the process itself was stopped (Ctrl-Z), the photo was not slow.
_GRACE_SECONDS = 1.0

# Asked once by the work before it writes its views; False if they are no longer wanted.
Claim = Callable[[], bool]


class Reading:
    """A photo that is queued, being read, or done; made by `ReaderThreads.submit`."""

    def __init__(self, work: Callable[[Claim], Prepared]) -> None:
        self._work = work
        self._lock = threading.Lock()
        self._claimed = self._given_up = False
        self.done: Future[Prepared] = Future()
        self.started: float | None = None

    def run(self) -> bool:
        """Do the work; returns whether anybody still wanted it."""
        self.started = time.monotonic()
        try:
            prepared = self._work(self.claim)
        except BaseException as error:  # SystemExit too: what would end the thread costs one photo
            logger.debug("a reader failed", exc_info=True)
            reason = one_line(f"the reader failed: {type(error).__name__}: {error}")
            prepared = Prepared("decode_error", reason, 0, 0)
        with self._lock:
            if not self._given_up:
                self.done.set_result(prepared)
            return not self._given_up

    def claim(self) -> bool:
        """The right to write the views: refused once the photo was given up on."""
        with self._lock:
            self._claimed = not self._given_up
            return self._claimed

    def give_up(self) -> bool:
        """Stop waiting, if the work is neither done nor writing its views, which takes no long time."""
        with self._lock:
            self._given_up = not self._claimed and not self.done.done()
            return self._given_up


class ReaderThreads:
    """A fixed number of threads that work, and a bounded number that hang.

    Args:
        threads: How many.
        timeout: Seconds that one photo may take from the moment a thread begins it.
    """

    def __init__(self, threads: int, timeout: float) -> None:
        self._timeout = timeout
        self._threads = threads
        self._bound = max(_LEAST_BOUND, threads)
        self._queue: queue.SimpleQueue[Reading | None] = queue.SimpleQueue()
        self._hanging = 0
        self._lock = threading.Lock()
        for _ in range(threads):
            self._start()

    @property
    def hanging(self) -> int:
        """How many threads were given up on and have not come back."""
        with self._lock:
            return self._hanging

    def submit(self, work: Callable[[Claim], Prepared]) -> Reading:
        """Queue the work on one photo, which asks its argument before it writes the views."""
        reading = Reading(work)
        self._queue.put(reading)
        return reading

    def result(self, reading: Reading) -> Prepared:
        """Wait for a photo; readings must be asked for in the order in which they were submitted.

        Raises:
            CdulError: Too many threads hang.
        """
        while True:
            try:
                return reading.done.result(self._seconds_left(reading))
            except TimeoutError:
                if self._seconds_left(reading) > 0:
                    continue  # it began later than it was waited for
            try:
                return reading.done.result(min(_GRACE_SECONDS, self._timeout))
            except TimeoutError:
                if reading.give_up():
                    break
        with self._lock:
            self._hanging += 1
            hanging = self._hanging
        reason = f"not read and decoded within {self._timeout:g} s (--photo-timeout)"
        if hanging > self._bound:
            raise CdulError(
                f"{hanging} photos at a time were {reason}: the disk or network mount hangs; finished rows "
                "are kept, the same command goes on from there"
            )
        self._start()
        return Prepared("timeout", reason, 0, 0)

    def close(self) -> None:
        """Let the threads end, and drop what they have not begun; waits for none of them."""
        while True:
            try:
                self._queue.get_nowait()
            except queue.Empty:
                break
        for _ in range(self._threads):
            self._queue.put(None)

    def _seconds_left(self, reading: Reading) -> float:
        if reading.started is None:
            return self._timeout
        return max(0.0, reading.started + self._timeout - time.monotonic())

    def _start(self) -> None:
        # Daemons: a thread that hangs must not keep the process from ending.
        threading.Thread(target=self._run, name="cdul-read", daemon=True).start()

    def _run(self) -> None:
        while (reading := self._queue.get()) is not None:
            if not reading.run():
                with self._lock:
                    self._hanging -= 1
                return  # another thread has taken this one's place


def sample_views(
    source: Source, config: LabelConfig, encoder: Any, photos: int, max_bytes: int
) -> np.ndarray:
    """Views of a few photos, evenly spaced over a source: float32 [n, 3, S, S].

    Args:
        source: Where the photos are; those that cannot be used are passed over.
        config: The run's settings.
        encoder: Something with the encoder's ``image_size``, ``mean`` and ``std``.
        photos: At most so many photos.
        max_bytes: The views together take no more, unless one photo's alone do.

    Raises:
        CdulError: Too many of the photos hang.
    """
    spec = ViewSpec.of(config, encoder, "float32")
    shape = (spec.views, 3, spec.size, spec.size)
    most = max(1, min(photos, max_bytes // (4 * math.prod(shape))))
    threads = ReaderThreads(1, config.photo_timeout)
    found = []
    try:
        for index in np.linspace(0, len(source) - 1, min(most, len(source))).astype(int).tolist():
            views = np.empty(shape, np.float32)
            work = functools.partial(prepare_photo, source, index, spec, views)
            if threads.result(threads.submit(work)).status == "ok":
                found.append(views)
    finally:
        threads.close()
    return np.concatenate(found) if found else np.empty((0, *shape[1:]), np.float32)
