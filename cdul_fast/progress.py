"""Progress of a long run: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

_SECONDS_BETWEEN_LINES = 5.0


class ProgressLike(Protocol):
    """What shows how far a run is: `Progress`, or something in its place."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def update(self, done: int, failed: int) -> None:
        """Count ``done`` more photos, ``failed`` of them not usable."""
        ...


# (total, kept, failed, quiet, doing) -> what shows it.
MakeProgress = Callable[[int, int, int, bool, str], ProgressLike]


class Progress:
    """Shows photos done, photos a second, time left and failures on standard error."""

    def __init__(
        self, total: int, kept: int = 0, failed: int = 0, quiet: bool = False, doing: str = "working"
    ) -> None:
        """Begin at ``kept`` of ``total`` photos, ``failed`` of them not usable; ``quiet`` shows nothing."""
        self._total, self._kept, self._quiet, self._doing = total, kept, quiet, doing
        self._done, self._failed = kept, failed
        self._start = self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        self._start = self._last = time.monotonic()
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn(self._doing),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:.1f} images/s"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[failed]} failed"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                "", total=self._total, completed=self._kept, rate=0.0, failed=self._failed
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, failed: int) -> None:
        """Count ``done`` more photos, ``failed`` of them not usable."""
        self._done += done
        self._failed += failed
        now = time.monotonic()
        rate = (self._done - self._kept) / max(now - self._start, 1e-9)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=rate, failed=self._failed)
        elif not self._quiet and now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            left = (self._total - self._done) / rate if rate > 0 else float("inf")
            print(
                f"{self._done}/{self._total} photos, {rate:.1f} images/s, {self._failed} failed, "
                f"about {_duration(left)} left",
                file=sys.stderr,
                flush=True,
            )


def _duration(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
