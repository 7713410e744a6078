"""What a run says of itself: its log file, the versions behind it, the memory it took."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import platform
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from cdul_fast import __version__
from cdul_fast.data.paths import one_line, show_path
from cdul_fast.errors import CdulError

logger = logging.getLogger("cdul_fast.label")

_PACKAGES = (
    "numpy",
    "pillow",
    "simplejpeg",
    "pyarrow",
    "safetensors",
    "torch",
    "open_clip_torch",
    "openvino",
)
_LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class LoggedSettings(Protocol):
    """The settings of any command."""

    @property
    def log_level(self) -> str:
        """``debug``, ``info``, ``warning`` or ``error``."""

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""


class _LogFile(logging.FileHandler):
    """A log file that keeps silent when it cannot be written to: a full disk is reported once, elsewhere."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the record."""


@contextlib.contextmanager
def logging_to(path: Path, config: LoggedSettings) -> Iterator[None]:
    """Send this package's log to a file for the block."""
    root = logging.getLogger("cdul_fast")
    try:
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise CdulError(f"cannot write to {show_path(path.parent)}: {error.strerror}") from None
    handler.setFormatter(logging.Formatter(_LOG_FORMAT))
    level, propagate = root.level, root.propagate
    # Some libraries give the root logger a handler of their own; the log is for the file alone.
    root.propagate = False
    root.setLevel(config.log_level.upper())
    root.addHandler(handler)
    logger.info("cdul_fast %s, settings %s", __version__, json.dumps(config.to_dict()))
    try:
        yield
    except BaseException as error:
        logger.error("ended by %s: %s", type(error).__name__, one_line(str(error)))
        raise
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        root.propagate = propagate
        with contextlib.suppress(OSError):
            handler.close()


def peak_memory_mib() -> float:
    """Largest resident size of this process so far."""
    # Linux hands getrusage's maximum down through fork and exec: it may be that of who began this process.
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
        if found is not None:
            return int(found[1]) / (1 << 10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def versions() -> dict[str, str]:
    """Versions of Python, this package and what its results depend on."""
    found = {"python": platform.python_version(), "cdul_fast": __version__, "machine": platform.machine()}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
