"""Many label settings in one pass over the stored views of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.data.truth import Truth, load_truth
from cdul_fast.errors import CdulError
from cdul_fast.pseudo_labels import LabelSettings, soft_labels
from cdul_fast.run_settings import run_settings
from cdul_fast.scoring.evaluation import match_truth
from cdul_fast.scoring.metrics import average_precision
from cdul_fast.tables import TableResult


@dataclass(frozen=True, eq=False)
class SweepResult(TableResult):
    """The scores of each setting; shown as a row for each setting, with its mAP where a truth was given.

    Attributes:
        settings: The S settings, in the order asked for.
        paths: The N photos with scores.
        scores: S arrays [N, C].
        mean_average_precision: [S] in 0..1, or None without a truth.
    """

    settings: tuple[LabelSettings, ...]
    paths: tuple[str, ...]
    scores: tuple[NDArray[np.float32], ...]
    mean_average_precision: tuple[float, ...] | None

    percent = frozenset({"map"})

    def columns(self) -> dict[str, list[Any]]:
        """One row a setting: aggregator, scale, zeta, lam and, with a truth, map."""
        columns: dict[str, list[Any]] = {
            name: [getattr(setting, name) for setting in self.settings]
            for name in ("aggregator", "scale", "zeta", "lam")
        }
        if self.mean_average_precision is not None:
            columns["map"] = list(self.mean_average_precision)
        return columns

    def __repr__(self) -> str:
        return f"SweepResult({len(self.settings)} settings, {len(self.paths)} photos)"


def sweep(
    run: Run | str | Path,
    settings: Iterable[LabelSettings | Mapping[str, Any]],
    *,
    truth: Truth | str | Path | None = None,
) -> SweepResult:
    """Scores a run under many settings, reading its stored views once.

    Args:
        run: A run directory, or what `open_run` gave.
        settings: Each a `LabelSettings`, or a mapping of some of its fields; the others stay as the run has
            them.
        truth: Where given, the mAP of each setting too.

    Raises:
        ConfigError: For a setting that does not fit the run.
        CdulError: For a run without a complete shard.
    """
    run = run if isinstance(run, Run) else open_run(run)
    wanted = tuple(
        run_settings(run, **(setting.to_dict() if isinstance(setting, LabelSettings) else setting))
        for setting in settings
    )
    if not run.shards:
        raise CdulError(f"{run.path} holds no complete shard yet")
    layout = run.view_layout
    parts: list[list[NDArray[np.float32]]] = [[] for _ in wanted]
    for shard in run.shards:
        cosines = shard.cosines()
        for scores, setting in zip(parts, wanted, strict=True):
            scores.append(soft_labels(cosines, setting, view_layout=layout))
    results = tuple(np.concatenate(scores) for scores in parts)
    paths = ok_paths(run)
    marks = None
    if truth is not None:
        truth = truth if isinstance(truth, Truth) else load_truth(truth)
        matched = match_truth(paths, run.classes, truth, root=str(run.root), run=str(run.path))
        marks = tuple(
            float(np.nanmean(average_precision(scores[matched.alignment.rows], matched.targets)))
            for scores in results
        )
    return SweepResult(wanted, tuple(paths), results, marks)


def ok_paths(run: Run) -> list[str]:
    """The paths of the photos with scores, in the order of the stored views."""
    table = run.table(["path", "status"])
    rows = zip(table["path"].to_pylist(), table["status"].to_pylist(), strict=True)
    return [path for path, status in rows if status == "ok"]
