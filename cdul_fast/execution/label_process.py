"""One of the processes of a run over several devices: a part of the source on one device.

Started by `cdul_fast.execution.device_processes`: the settings come as JSON on standard input, messages go as
JSON lines to standard output, everything else to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import warnings
from types import TracebackType
from typing import Any, Self

from cdul_fast.cli import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK
from cdul_fast.config import LabelConfig
from cdul_fast.data.paths import one_line

logger = logging.getLogger("cdul_fast.label")


class Reporter:
    """Sends messages to the process that started this one; ends this one if that one is gone."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """One message.

        Raises:
            KeyboardInterrupt: Nobody reads it: the run was ended from outside, so this part ends too, after
                what was finished is on disk.
        """
        line = (json.dumps(message) + "\n").encode()
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except BrokenPipeError:
                raise KeyboardInterrupt("the process that shows the progress is gone") from None


class SentProgress:
    """Takes the place of `cdul_fast.progress.Progress`: sends the counts instead of showing them."""

    def __init__(self, reporter: Reporter, total: int, kept: int = 0, failed: int = 0) -> None:
        self._reporter = reporter
        reporter.send(kind="start", total=total, kept=kept, failed=failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def update(self, done: int, failed: int) -> None:
        """Count ``done`` more photos, ``failed`` of them not usable."""
        self._reporter.send(kind="progress", done=done, failed=failed)


def main(reporter: Reporter) -> int:
    """Label the part; the result or the error goes to the reporter."""
    from cdul_fast import pipeline

    config = LabelConfig(**json.loads(sys.stdin.read()))
    warnings.filterwarnings("ignore", module=r"PIL\\..*")
    try:
        result = pipeline.label_images(
            config, progress=lambda total, kept, failed, *_: SentProgress(reporter, total, kept, failed)
        )
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):
            # What was finished is on disk. A thread stuck in a driver must not keep the process alive.
            os._exit(EXIT_INTERRUPTED)
        # The parent says what went wrong, once for all parts.
        logger.debug("the part failed", exc_info=True)
        reporter.send(kind="error", type=type(error).__name__, text=one_line(str(error), 500))
        return EXIT_ERROR
    reporter.send(
        kind="result",
        kept=result.kept,
        images_per_second=result.images_per_second,
        limiting_stage=result.limiting_stage,
    )
    return EXIT_OK


def run() -> int:
    """Keep the messages' pipe for messages alone, and do the part; returns the exit code."""
    # A parent in the background has Ctrl-C ignored, and its children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    own = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return main(Reporter(own))


if __name__ == "__main__":
    sys.exit(run())
