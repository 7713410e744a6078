"""Files that are either whole or absent, and the folder where reusable results are kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside ``path``, and gives it the real name once the block ends well.

    The bytes reach the disk before the name does, so a crash leaves the old file or the new one. When the
    block raises, the temporary file is removed. Two writers of one name do not disturb each other: the last
    one wins.

    Args:
        path: the final name; its folder is made when absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        _set_usual_mode(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def user_cache_dir() -> Path:
    """The user's cache folder for this package: ``$XDG_CACHE_HOME/cdul_fast`` or ``~/.cache/cdul_fast``."""
    # The desktop convention, not a setting of ours: every cache_dir argument overrides it.
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache"
    return root / "cdul_fast"


def _set_usual_mode(path: Path) -> None:
    # mkstemp makes private files; a result is as readable as any file the user writes.
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
