"""Photos in, labels out: sources, decoding, run directories."""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> the module that defines it; imported on use, for pyarrow and Pillow take their time.
_EXPORTS = {
    "from_cosines": "cdul_fast.data.cached_scores",
    "load_truth": "cdul_fast.data.truth",
    "open_run": "cdul_fast.data.run_dir",
}

__all__ = ["from_cosines", "load_truth", "open_run"]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'cdul_fast.data' has no attribute {name!r}")
