"""New scores and label sets from the stored views of a run: no photo is decoded and no image encoded."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdul_fast import __version__, ops
from cdul_fast.data.label_columns import carried_metadata, label_column, ok_rows, score_column
from cdul_fast.data.lock import locked
from cdul_fast.data.paths import show_path
from cdul_fast.data.run_dir import Run, Shard, open_run
from cdul_fast.data.sinks import (
    info_name,
    replacing,
    views_path,
    write_json,
    write_labels_table,
    write_texts,
    write_views,
)
from cdul_fast.data.staging import new_folder, replaced_files
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.prompts import ClassList, class_embeddings, load_classes
from cdul_fast.pseudo_labels import LabelSettings, soft_labels
from cdul_fast.run_settings import run_settings
from cdul_fast.scoring.label_sets import LabelRule, choose_rule
from cdul_fast.tables import TableResult, shorten

# Cosine between embeddings of one text by two backends or precisions of the same weights: bf16 gives 0.9999.
_SAME_TEXT = 0.999
_KEPT_COLUMNS = ("path", "status", "error", "width", "height")


@dataclasses.dataclass(frozen=True, eq=False)
class RelabelResult(TableResult):
    """What `relabel_run` wrote: a row for each class with the photos labelled and their share.

    Attributes:
        path: The run directory.
        classes: The class names.
        labelled: [C] photos that have the label.
        photos: Photos with scores.
        failed: Rows without scores, kept as they were.
        missing_shards: Shards that the source lacks.
        seconds: Time taken.
    """

    path: Path
    classes: tuple[str, ...]
    labelled: NDArray[np.int64]
    photos: int
    failed: int
    missing_shards: tuple[str, ...]
    seconds: float

    percent = frozenset({"share"})

    def columns(self) -> dict[str, list[Any]]:
        """One row a class: name, photos labelled, their share."""
        shares = (self.labelled / max(1, self.photos)).tolist()
        return {"class": list(self.classes), "labelled": self.labelled.tolist(), "share": shares}

    def summary(self) -> list[str]:
        """Lines for the end of a run."""
        lines = [
            f"{show_path(self.path)}: {self.photos} photos relabelled, {self.failed} kept without scores, "
            f"{self.labelled.sum() / max(1, self.photos):.2f} labels a photo, {self.seconds:.2f} s"
        ]
        if self.missing_shards:
            lines.append(f"missing from the source, and so from the result: {shorten(self.missing_shards)}")
        return lines

    def open(self) -> Run:
        """The relabelled run."""
        return open_run(self.path)

    def __repr__(self) -> str:
        return f"RelabelResult({str(self.path)!r}, {self.photos} photos, {len(self.classes)} classes)"


@dataclasses.dataclass(frozen=True)
class _Views:
    """Where the cosines of a shard come from: as stored, some of the stored columns, or stored embeddings."""

    columns: NDArray[np.int64] | None = None
    texts: NDArray[np.float32] | None = None  # [C, D]

    def cosines(self, shard: Shard, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """float32 [n, V, C] of the shard's ok rows, or of some of them."""
        if self.texts is not None:
            embeddings = shard.embeddings()
            if embeddings is None:
                raise ConfigError(
                    f"{show_path(shard.views_path)} has no embeddings, so new classes need the photos again: "
                    "run label with them"
                )
            return np.asarray(ops.cosines(embeddings if rows is None else embeddings[rows], self.texts))
        stored = shard.cosines() if rows is None else shard.cosines()[rows]
        return stored if self.columns is None else np.ascontiguousarray(stored[:, :, self.columns])

    @property
    def unchanged(self) -> bool:
        """Whether the stored views serve as they are."""
        return self.columns is None and self.texts is None


def relabel_run(
    run: Run | str | Path,
    out: str | Path | None = None,
    *,
    in_place: bool = False,
    aggregator: str | None = None,
    scale: float | None = None,
    zeta: float | None = None,
    lam: float | None = None,
    threshold: float | None = None,
    top_k: int | None = None,
    expected_labels: float | None = None,
    calibrated: bool = False,
    classes: ClassList | str | Path | None = None,
    encoder: Any = None,
) -> RelabelResult:
    """Scores and labels a run anew from its stored cosines, or from its embeddings for new classes.

    What is not given stays as the run has it. With the same settings the scores equal the run's to the byte.
    A class list of names that the run has picks their stored cosines; any other is embedded by the run's text
    encoder and compared with the stored float16 embeddings.

    Args:
        run: A run directory, or what `open_run` gave.
        out: The new run directory; must not hold anything yet.
        in_place: Replace the labels of ``run`` itself instead of writing to ``out``.
        aggregator: ``global``, ``mean``, ``max`` or ``cdul``.
        scale: The softmax scale.
        zeta: The bound of ``cdul``.
        lam: The fusion of global and local scores.
        threshold: A fixed bound for all classes in place of the run's rule.
        top_k: At most so many labels a photo in place of the run's rule.
        expected_labels: Thresholds per class that give so many labels a photo on average.
        calibrated: Thresholds per class from the scores themselves, whatever the run used.
        classes: A class list or its file, for other classes than the run's.
        encoder: What embeds the texts of new classes; the run's own model without it.

    Raises:
        ConfigError: For settings that do not fit the run, or an ``out`` that holds something.
        CdulError: For a run that is missing or damaged.
    """
    started = time.perf_counter()
    run = run if isinstance(run, Run) else open_run(run)
    if in_place == (out is not None):
        raise ConfigError("give either --out or --in-place")
    if not run.shards:
        raise CdulError(f"{show_path(run.path)} holds no complete shard yet")
    settings = run_settings(run, aggregator=aggregator, scale=scale, zeta=zeta, lam=lam)
    names, views = _new_views(run, classes, encoder)
    config = _new_config(run, settings, threshold, top_k, expected_labels, calibrated, classes, len(names))
    layout = run.view_layout

    def scores_of(index: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return soft_labels(views.cosines(run.shards[index], rows), settings, view_layout=layout)

    rule = choose_rule(
        [len(shard.cosines()) for shard in run.shards],
        len(names),
        scores_of,
        threshold=config["threshold"],
        top_k=config["top_k"],
        expected_labels=config["expected_labels"],
    )
    with _result_folder(run, out) as folder:
        job = _Job(run, folder, in_place, names, views, settings, layout, rule, config)
        # Two threads: one writes and waits for the disk while the other computes.
        with ThreadPoolExecutor(max_workers=2) as pool:
            counts = list(pool.map(job.shard, run.shards))
        _write_rest(job, seconds=time.perf_counter() - started)
    if in_place:
        # The page shows scores that are no more.
        (run.path / "report.html").unlink(missing_ok=True)
    labelled = np.sum([labelled for labelled, _, _ in counts], axis=0)
    return RelabelResult(
        path=run.path if out is None else Path(out),
        classes=names,
        labelled=labelled,
        photos=sum(ok for _, ok, _ in counts),
        failed=sum(failed for _, _, failed in counts),
        missing_shards=tuple(run.missing_shards),
        seconds=time.perf_counter() - started,
    )


@dataclasses.dataclass(frozen=True)
class _Job:
    run: Run
    folder: Path
    in_place: bool
    names: tuple[str, ...]
    views: _Views
    settings: LabelSettings
    layout: str
    rule: LabelRule
    config: dict[str, Any]

    def shard(self, shard: Shard) -> tuple[NDArray[np.int64], int, int]:
        """Writes one shard; gives the photos labelled by class, the ok rows and the others."""
        table = shard.table(_KEPT_COLUMNS)
        ok = ok_rows(table)
        cosines = self.views.cosines(shard)
        if len(cosines) != ok.sum():
            raise CdulError(
                f"{show_path(shard.views_path)} has {len(cosines)} photos, its labels file has {ok.sum()}"
            )
        scores = soft_labels(cosines, self.settings, view_layout=self.layout)
        chosen = self.rule.select(scores)
        kept = carried_metadata(table)
        views = views_path(self.folder, shard.name)
        if self.views.unchanged:
            if not self.in_place:
                _link(shard.views_path, views)
        else:
            kept["views_sha256"] = write_views(
                views,
                cosines,
                shard.embeddings(),
                view_layout=self.layout,
                fingerprint=kept.get("fingerprint", ""),
            )
        columns = {name: table[name] for name in _KEPT_COLUMNS}
        columns["scores"] = score_column(ok, scores)
        columns["labels"] = label_column(ok, chosen, self.names)
        write_labels_table(
            self.folder, shard.name, _table(columns), classes=self.names, config=self.config, metadata=kept
        )
        return chosen.sum(axis=0), int(ok.sum()), int((~ok).sum())


@contextlib.contextmanager
def _result_folder(run: Run, out: str | Path | None) -> Iterator[Path]:
    """The folder to fill: a new one, or one whose files replace those of the run, locked meanwhile."""
    if out is not None:
        with new_folder(Path(out)) as folder:
            yield folder
        return
    with contextlib.ExitStack() as locks:
        for part in run.parts:
            locks.enter_context(locked(run.path, part if part[1] else None))
        yield locks.enter_context(replaced_files(run.path))


def _table(columns: dict[str, Any]) -> Any:
    import pyarrow as pa

    return pa.table(columns)


def _new_views(
    run: Run, classes: ClassList | str | Path | None, encoder: Any
) -> tuple[tuple[str, ...], _Views]:
    """The class names of the result and where its cosines come from."""
    if classes is None:
        return tuple(run.classes), _Views()
    listed = classes if isinstance(classes, ClassList) else load_classes(classes)
    index = {name: position for position, name in enumerate(run.classes)}
    if listed.prompts is None and all(name in index for name in listed.names):
        if listed.names == tuple(run.classes):
            return listed.names, _Views()
        return listed.names, _Views(columns=np.array([index[name] for name in listed.names], dtype=np.int64))
    new = next((name for name in listed.names if name not in index), listed.names[0])
    if run.shards[0].embeddings() is None:
        raise ConfigError(
            f"{show_path(run.path)} keeps no embeddings, so the class {new!r} needs the photos again: "
            "run label with the new class list"
        )
    encoder = encoder if encoder is not None else _text_encoder(run)
    template = run.config.get("template") or "single"
    cache_dir = run.config.get("cache_dir")
    if encoder.fingerprint != run.model.get("fingerprint") and not _same_texts(run, encoder, template):
        raise ConfigError(
            f"{show_path(run.path)} was made with other weights than this {run.model.get('name')}: the texts "
            "of its classes come out differently, so its embeddings cannot be compared with new ones"
        )
    texts = class_embeddings(encoder, listed, template, cache_dir)
    return listed.names, _Views(texts=np.asarray(texts, dtype=np.float32))


def _same_texts(run: Run, encoder: Any, template: str) -> bool:
    """Whether the encoder gives the stored texts of the run's classes, as another backend or precision would.

    The middle one decides: a class that had prompts of its own differs without meaning anything.
    """
    stored = run.texts()
    if stored is None:
        return False
    now = class_embeddings(encoder, ClassList(tuple(run.classes)), template, run.config.get("cache_dir"))
    return now.shape == stored.shape and float(np.median((now * stored).sum(axis=1))) > _SAME_TEXT


def _text_encoder(run: Run) -> Any:
    from cdul_fast.encoders import create_encoder

    model, config = run.model, run.config
    # The text tower is that of full precision, whatever ran the image tower: int8 and fp8 are calibrated on
    # the run's own photos, and TensorRT wants the GPU.
    engine = model.get("backend") == "tensorrt"
    own = engine or model.get("precision") == "int8"
    return create_encoder(
        model["name"] if engine else config.get("model") or model["name"],
        (model["pretrained"] if engine else config.get("pretrained")) or "",
        backend="auto" if engine else model.get("backend") or "auto",
        precision="auto" if own else model.get("precision") or "auto",
        quickgelu=config.get("quickgelu"),
        cache_dir=config.get("cache_dir"),
    )


def _new_config(
    run: Run,
    settings: LabelSettings,
    threshold: float | None,
    top_k: int | None,
    expected_labels: float | None,
    calibrated: bool,
    classes: ClassList | str | Path | None,
    count: int,
) -> dict[str, Any]:
    """The run's config with what was asked for in its place; a new label rule replaces the old one whole."""
    if calibrated and threshold is not None:
        raise ConfigError("--threshold fixes what --calibrate is to find: give one of them")
    if expected_labels is not None and (threshold is not None or top_k is not None):
        raise ConfigError(
            "--expected-labels excludes --threshold and --top-k: these fix the labels themselves"
        )
    if expected_labels is not None and not 0 < expected_labels <= count:
        raise ConfigError(
            f"--expected-labels wants a value above 0 and up to the {count} classes, got {expected_labels!r}"
        )
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise ConfigError(f"--threshold wants a value from 0 to 1, got {threshold!r}")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"--top-k wants at least 1, got {top_k!r}")
    own = run.config
    new_rule = calibrated or threshold is not None or top_k is not None or expected_labels is not None
    rule = {"threshold": threshold, "top_k": top_k, "expected_labels": expected_labels}
    config = {**own, **(rule if new_rule else {name: own.get(name) for name in rule})}
    config.update(aggregator=settings.aggregator, zeta=settings.zeta, lam=settings.lam)
    if own.get("scale") is not None or settings.scale != run.model.get("logit_scale"):
        config["scale"] = settings.scale
    if classes is not None:
        config["classes"] = None if isinstance(classes, ClassList) else str(classes)
    return config


def _write_rest(job: _Job, *, seconds: float) -> None:
    """Writes texts.safetensors and the run's information, of each part where it has several."""
    run, folder = job.run, job.folder
    if job.views.texts is not None:
        write_texts(folder, job.views.texts)
    else:
        texts = run.texts()
        if texts is not None and (job.views.columns is not None or not job.in_place):
            write_texts(folder, texts if job.views.columns is None else texts[job.views.columns])
    provenance = {
        "relabelled_from": str(run.path.resolve()),
        "in_place": job.in_place,
        "settings": job.settings.to_dict(),
        "new_classes": not job.views.unchanged,
        "missing_shards": run.missing_shards,
        "seconds": seconds,
        "before": run.info.get("provenance"),
    }
    for part, info in run.parts.items():
        if info is None:
            continue
        content = {
            **info,
            "version": __version__,
            "config": job.config,
            "classes": list(job.names),
            "thresholds": job.rule.to_json(job.names),
            "provenance": provenance,
        }
        write_json(folder / info_name("run", part if part[1] else None), content)


def _link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the file system has no such thing.

    Nothing writes into a finished views file (it is replaced whole), so both names stay right.
    """
    try:
        os.link(source, target)
    except OSError:
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
