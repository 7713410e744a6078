"""Short cuts of the tests that run the label command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import cdul_fast

Label = Callable[..., int]


def scores_of(folder: Path) -> dict[str, np.ndarray]:
    """Scores by path."""
    paths, scores = cdul_fast.open_run(folder).scores()
    return dict(zip(paths, scores, strict=True))


def score_bytes(folder: Path) -> list[bytes]:
    """The score columns of all shards, to the byte."""
    columns = [shard.table(["scores"]).column("scores") for shard in cdul_fast.open_run(folder).shards]
    return [column.combine_chunks().flatten().to_numpy().tobytes() for column in columns]
