"""How many photos go through the model at a time: fewer once memory ran out."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from cdul_fast.data.paths import one_line

logger = logging.getLogger("cdul_fast.label")

Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the GPU, or the machine, has no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "out of memory" in str(error).lower()


class Halving:
    """Cuts batches into what fits into memory; what once did not fit is not tried again.

    Safe to use from several threads.

    Args:
        photos: How many to begin with.
        encoder: Asked for smaller passes of its own where one photo is too much, if it has ``halve_batch``:
            a method that returns whether it could.
    """

    def __init__(self, photos: int, encoder: Any = None) -> None:
        self.photos = photos
        self._encoder = encoder
        self._lock = threading.Lock()

    def run(self, count: int, work: Callable[[int, int], Result]) -> list[Result]:
        """Calls ``work(start, stop)`` for consecutive parts of ``count`` photos.

        Raises:
            Exception: What ``work`` raises, other than for memory, or for memory with the smallest batch.
        """
        results: list[Result] = []
        start = 0
        while start < count:
            stop = min(count, start + self.photos)
            try:
                results.append(work(start, stop))
            except Exception as error:
                if not is_out_of_memory(error) or not self._shrink(stop - start, error):
                    raise
                continue
            start = stop
        return results

    def _shrink(self, tried: int, error: Exception) -> bool:
        """Go on with half of ``tried`` photos, or smaller passes of the encoder; whether that is less."""
        with self._lock:
            halve = getattr(self._encoder, "halve_batch", None)
            # The encoder pads to a batch of its own: fewer photos alone might take as much memory as before.
            smaller = bool(halve()) if halve is not None else False
            half = max(1, tried // 2)
            if half < self.photos:
                self.photos = half
                smaller = True
            if not smaller:
                return False
        logger.warning(
            "out of memory with %d photos at a time, going on with %d: %s",
            tried,
            self.photos,
            one_line(str(error), 200),
        )
        _free_cached_memory()
        return True


def _free_cached_memory() -> None:
    """Give back what torch keeps for later, in pieces that may be of no use to a smaller batch."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
