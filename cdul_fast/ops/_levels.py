"""Which instruction set the CPU loops use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cdul_fast import _native

LEVELS = ("baseline", "avx2", "avx512")


def best_cpu_level() -> str:
    """The highest level that this processor runs: ``baseline``, ``avx2`` or ``avx512`` (VBMI and VNNI)."""
    return _native.best_cpu_level()


def cpu_level() -> str:
    """The level in use: the best one, unless :func:`force_cpu_level` lowered it."""
    return _native.cpu_level()


@contextmanager
def force_cpu_level(level: str) -> Iterator[None]:
    """Runs the ops of the whole process on ``level`` inside a ``with`` block.

    Args:
        level: ``baseline``, ``avx2`` or ``avx512``.

    Raises:
        ValueError: the level is unknown, or this processor lacks it.
    """
    before = _native.cpu_level()
    _native.set_cpu_level(level)
    try:
        yield
    finally:
        _native.set_cpu_level(before)
