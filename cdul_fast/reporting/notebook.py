"""How a run, and tables of results, look in a notebook and at a Python prompt."""

from __future__ import annotations

import importlib
import sys
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from cdul_fast.reporting import figures
from cdul_fast.tables import TableResult, shorten

if TYPE_CHECKING:
    from cdul_fast.data.run_dir import Run

_PREVIEW_ROWS = 5
_TOP = 3
_FRAME_HEIGHT = 560


class RunPreview(TableResult):
    """The first rows of a run with their best classes; beneath them what the run is."""

    def __init__(self, run: Run, rows: int) -> None:
        """Reads no more shards than the rows need."""
        self._run = run
        self._rows = _first_rows(run, rows)

    def columns(self) -> dict[str, list[Any]]:
        """Path, status, labels and best scores."""
        names = ("path", "status", "labels", "best scores")
        return {name: [row[i] for row in self._rows] for i, name in enumerate(names)}

    def summary(self) -> list[str]:
        """What the run is, a fact a line."""
        return [f"{name}: {value}" for name, value in run_facts(self._run)]


def run_facts(run: Run) -> list[tuple[str, str]]:
    """What a run is, as pairs of a name and a text."""
    from cdul_fast.data.paths import show_path

    counts = run.counts
    total = sum(counts.values())
    failed = ", ".join(f"{n:,} {status}" for status, n in sorted(counts.items()) if status != "ok")
    model = " ".join(filter(None, (str(run.model.get(key) or "") for key in ("name", "pretrained"))))
    how = ", ".join(filter(None, (str(run.model.get(key) or "") for key in ("backend", "precision"))))
    facts = [
        ("photos", f"{counts.get('ok', 0):,} of {total:,} labelled" + (f" ({failed})" if failed else "")),
        ("classes", f"{len(run.classes):,}: {shorten(run.classes, 6)}"),
        ("model", f"{model} ({how})" if how else model),
        ("photos in", show_path(run.root)),
    ]
    missing = run.missing_shards
    if missing:
        facts.append(("missing", shorten(missing, 6)))
    return facts


def run_text(run: Run) -> str:
    """A run in a few lines of text: what `repr` gives."""
    from cdul_fast.data.paths import one_line, show_path

    facts = run_facts(run)
    width = max(len(name) for name, _ in facts)
    lines = [f"  {name.ljust(width)}  {one_line(value)}" for name, value in facts]
    return "\n".join([f"Run {show_path(run.path)}", *lines])


def run_html(run: Run) -> str:
    """A run as its first photos with their best classes, and what it is beneath."""
    return RunPreview(run, _PREVIEW_ROWS)._repr_html_()


def show_run(run: Run, n: int = 6) -> None:
    """Shows a sample of n photos with their classes as bars; at a plain prompt, prints rows instead.

    The photos are chosen as for the report: confident, uncertain, with many labels, with few.

    Raises:
        ValueError: `n` is not positive.
    """
    if n < 1:
        raise ValueError(f"n must be 1 or more, got {n}")
    shell = _notebook()
    if shell is None:
        RunPreview(run, n).show()
        return
    shell.display({"text/html": photos_html(run, n), "text/plain": run_text(run)}, raw=True)


def photos_html(run: Run, n: int) -> str:
    """The report's photos alone, in a frame of their own, so that neither style reaches the other."""
    from cdul_fast.reporting.page import render

    page = render(run, samples=n, photos_only=True)
    return (
        f'<iframe title="Photos of {escape(run.path.name)}" sandbox="allow-scripts" srcdoc="{escape(page)}" '
        f'style="width:100%;height:{_FRAME_HEIGHT}px;border:0"></iframe>'
    )


def _notebook() -> Any:
    """IPython's display module inside a notebook, else None."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or type(shell).__name__ == "TerminalInteractiveShell":
        return None
    return importlib.import_module("IPython.display")


def _first_rows(run: Run, n: int) -> list[tuple[str, str, str, str]]:
    """Path, status, labels and best scores of the first rows."""
    rows: list[tuple[str, str, str, str]] = []
    for shard in run.shards:
        table = shard.table(["path", "status", "scores", "labels"]).slice(0, n - len(rows))
        run.check_table(shard, table)
        for row in table.to_pylist():
            best = _best(run, row["scores"])
            rows.append((row["path"], row["status"], ", ".join(row["labels"] or []), best))
        if len(rows) >= n:
            break
    return rows


def _best(run: Run, scores: list[float] | None) -> str:
    if scores is None:
        return ""
    order = np.argsort(-np.asarray(scores), kind="stable")[:_TOP]
    return ", ".join(f"{run.classes[c]} {figures.score(scores[c])}" for c in order)
