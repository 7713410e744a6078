"""Writes a run's report: one HTML page that needs nothing beside itself."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdul_fast.reporting import figures
from cdul_fast.reporting.collect import MAX_FAILURES, RunStatistics, collect, cooccurrence
from cdul_fast.reporting.samples import Sample, choose, load_samples

if TYPE_CHECKING:
    from cdul_fast.data.run_dir import Run

MAX_CLASSES = 120
MAX_NAMED = 200
MAX_PAIRS = 24
_TEMPLATES = Path(__file__).with_name("templates")
# What the page names; a run that was interrupted, or made from cached scores, lacks some of it.
_INFO_KEYS = (
    "version",
    "images_per_second",
    "seconds",
    "peak_memory_mib",
    "stages",
    "limiting_stage",
    "provenance",
    "thresholds",
)
_MODEL_KEYS = ("name", "pretrained", "backend", "precision")
_GROUP_TEXTS = {
    "confident": ("Confident", "The highest scores, of different classes where there are enough."),
    "uncertain": ("Uncertain", "The lowest best score: nothing stands out."),
    "many": ("Many labels", "The photos with the most labels."),
    "few": ("Few labels", "The fewest labels among the photos not shown above."),
}


@dataclass(frozen=True)
class Group:
    """Photos chosen for one reason."""

    title: str
    text: str
    samples: list[Sample]


@dataclass(frozen=True)
class ClassRow:
    """One class over the whole run. `whole` and `tiles` add up to `mean`, or are None where not known."""

    name: str
    photos: int
    mean: float
    whole: float | None
    tiles: float | None


def write_report(
    run_path: str | Path,
    *,
    out: str | Path | None = None,
    samples: int = 24,
    images_root: str | Path | None = None,
) -> Path:
    """Writes a run's report as one self-contained HTML page, from its saved files alone.

    Nothing is computed by a model and nothing is fetched. The photos are read again from where the run found
    them; one that is gone shows a placeholder. Shards are read one at a time.

    Args:
        run_path: the run directory.
        out: the page's file; `report.html` in the run directory by default.
        samples: how many photos to show in all.
        images_root: where the photos lie now, if not where the run found them.

    Returns:
        The page's path.

    Raises:
        ValueError: `samples` is negative.
        CdulError: There is no run in `run_path`, or one of its files is damaged.
    """
    from cdul_fast.data.run_dir import open_run
    from cdul_fast.data.sinks import replacing

    if samples < 0:
        raise ValueError(f"samples must be 0 or more, got {samples}")
    run = open_run(run_path)
    target = Path(out) if out is not None else Path(run_path) / "report.html"
    root = Path(images_root) if images_root is not None else None
    html = render(run, samples=samples, images_root=root)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        # A setting may hold a name that is no Unicode; that must not cost the page.
        temporary.write_bytes(html.encode("utf-8", errors="backslashreplace"))
    return target


def render(run: Run, *, samples: int = 24, images_root: Path | None = None, photos_only: bool = False) -> str:
    """The page as text, whole or with nothing but the photos; see `write_report`."""
    import jinja2

    from cdul_fast.data.paths import show_path

    stats = collect(run, samples)
    shown = load_samples(run, choose(stats, samples), images_root)
    groups = [Group(*_GROUP_TEXTS[name], found) for name, found in shown.items()]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "count": figures.count,
        "score": figures.score,
        "share": figures.share,
        "seconds": figures.seconds,
        "percent": figures.percent,
        "setting": figures.setting,
    }
    script = (_TEMPLATES / "report.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    info = dict.fromkeys(_INFO_KEYS) | run.info
    classes, never = _class_rows(stats)
    return environment.get_template("report.html.j2").render(
        photos_only=photos_only,
        script=script,
        script_hash=digest,
        style=(_TEMPLATES / "report.css").read_text("utf-8"),
        info=info,
        model=dict.fromkeys(_MODEL_KEYS) | run.model,
        config=dict(sorted(run.config.items())),
        thresholds=_thresholds(info),
        root=show_path(run.root),
        root_name=show_path(run.root.name or run.root),
        stats=stats,
        missing=run.missing_shards,
        groups=groups,
        full_bar=figures.nice_ceiling(
            max((bar.score for group in groups for s in group.samples for bar in s.bars), default=1.0)
        ),
        classes=classes[:MAX_CLASSES],
        more_classes=len(classes) - MAX_CLASSES,
        full_mean=figures.nice_ceiling(max((row.mean for row in classes), default=1.0)),
        never=never[:MAX_NAMED],
        more_never=len(never) - MAX_NAMED,
        best=figures.linear_histogram(stats.best_histogram),
        every=figures.log_histogram(stats.all_histogram),
        per_photo=figures.count_histogram(stats.labels_per_photo),
        threshold=_threshold(run),
        pairs=_pairs(run, stats),
        stages=_stages(info),
        failures=stats.failures,
        more_failures=sum(n for s, n in stats.counts.items() if s != "ok") - MAX_FAILURES,
        reasons=stats.reasons.most_common(12),
        mean_labels=_mean_labels(stats),
    )


def _class_rows(stats: RunStatistics) -> tuple[list[ClassRow], list[str]]:
    """The classes that were assigned, most photos first, and the names of those that never were."""
    rows: list[ClassRow] = []
    order = np.argsort(-stats.label_counts, kind="stable")
    for c in order:
        photos = int(stats.label_counts[c])
        if not photos:
            break
        mean = float(stats.label_score_sums[c]) / photos
        whole = float(stats.label_whole_sums[c]) / photos if stats.parts_known else None
        tiles = None if whole is None else max(mean - whole, 0.0)
        rows.append(ClassRow(stats.classes[c], photos, mean, whole, tiles))
    never = [name for name, n in zip(stats.classes, stats.label_counts, strict=True) if not n]
    return rows, never


def _mean_labels(stats: RunStatistics) -> float:
    return float(stats.label_counts.sum()) / stats.labelled if stats.labelled else 0.0


def _threshold(run: Run) -> float | None:
    """The one threshold of all classes, if there is one."""
    stored = run.info.get("thresholds")
    value = run.config.get("threshold") if stored is None else stored.get("value")
    return float(value) if isinstance(value, int | float) else None


def _thresholds(info: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
    """The stored rule that chose the labels, and its bound for each class; None without one."""
    stored = info.get("thresholds")
    if not isinstance(stored, dict):
        return None
    values = stored.get("values")
    rule = {key: value for key, value in stored.items() if key != "values"}
    return {"rule": rule, "values": values if isinstance(values, dict) else {}}


def _pairs(run: Run, stats: RunStatistics) -> figures.Matrix | None:
    """How often labels go together, for the most frequent classes; None with fewer than two of them."""
    order = np.argsort(-stats.label_counts, kind="stable")[:MAX_PAIRS]
    chosen = [int(c) for c in order if stats.label_counts[c]]
    if len(chosen) < 2:
        return None
    return figures.matrix([run.classes[c] for c in chosen], cooccurrence(run, chosen))


def _stages(info: dict[str, Any]) -> list[tuple[str, float]]:
    stages = info.get("stages") or {}
    return [(str(name), float(value)) for name, value in stages.items() if isinstance(value, int | float)]
