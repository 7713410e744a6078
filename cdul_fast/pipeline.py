"""`label_images`: photos to soft labels, in a run directory that survives being killed at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdul_fast import __version__
from cdul_fast.config import LabelConfig
from cdul_fast.data.decode import own_pixel_limit
from cdul_fast.data.label_columns import sets_of_photos, settle_labels
from cdul_fast.data.lock import locked, waiting_for
from cdul_fast.data.manifest import Manifest, inputs_digest, prompts_digest, read_manifest
from cdul_fast.data.paths import encode_path, one_line, show_path
from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.data.shard_work import Layout, RunState, writing
from cdul_fast.data.sinks import FORMAT, info_name, part_prefix, remove_temporaries, write_json, write_texts
from cdul_fast.data.source import Source, select_part
from cdul_fast.data.sources import open_source
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.local_engine import Engine, Stages, available_cores
from cdul_fast.progress import Progress
from cdul_fast.run_log import logging_to, peak_memory_mib, versions
from cdul_fast.work import sample_views

if TYPE_CHECKING:
    from cdul_fast.prompts import ClassList

logger = logging.getLogger("cdul_fast.label")

# What int8 is calibrated on: so many photos of the run, fewer where their views would take more memory.
_CALIBRATION_PHOTOS, _CALIBRATION_BYTES = 32, 192 << 20


@dataclasses.dataclass(frozen=True)
class LabelResult:
    """What `label_images` did.

    Attributes:
        path: The run directory.
        counts: Rows by status, those kept from an earlier run included.
        seconds: Wall-clock time of this call.
        kept: Rows kept from an earlier run.
        images_per_second: Photos labelled by this call a second, without loading; 0 if there were none.
        limiting_stage: The stage that the others waited for.
        run: The results, read on demand.
    """

    path: Path
    counts: dict[str, int]
    seconds: float
    kept: int
    images_per_second: float
    limiting_stage: str
    run: Run

    @property
    def failure_rate(self) -> float:
        """Share of the rows that are not ok."""
        total = sum(self.counts.values())
        return (total - self.counts.get("ok", 0)) / max(1, total)

    def to_arrow(self) -> Any:
        """All rows as a `pyarrow.Table`."""
        return self.run.to_arrow()

    def to_pandas(self) -> Any:
        """All rows as a `pandas.DataFrame`; pandas must be installed."""
        return self.run.to_pandas()

    def show(self, n: int = 6) -> None:
        """Show a sample of ``n`` photos as `Run.show` does."""
        self.run.show(n)

    def __repr__(self) -> str:
        return f"{self.summary()}\n{self.run!r}"

    def _repr_html_(self) -> str:
        return self.run._repr_html_()

    def summary(self) -> str:
        """The result in one line."""
        total, ok = sum(self.counts.values()), self.counts.get("ok", 0)
        bad = ", ".join(f"{n} {status}" for status, n in sorted(self.counts.items()) if status != "ok" and n)
        parts = [f"{ok} of {total} photos labelled"]
        if bad:
            parts.append(f"failed: {bad}")
        if self.kept:
            parts.append(f"{self.kept} rows kept from before")
        if self.images_per_second:
            parts.append(f"{self.images_per_second:.1f} images/s, limited by {self.limiting_stage}")
        return f"{'; '.join(parts)} ({self.seconds:.1f} s): {show_path(self.path)}"


def label_images(config: LabelConfig) -> LabelResult:
    """Give every photo of a source a soft score for every class.

    The same call on the same folder goes on with an unfinished run, or returns a finished one.

    Args:
        config: All settings; ``config.out`` names the run directory.

    Returns:
        Counts, time, and the run for reading.

    Raises:
        ConfigError: A setting is wrong, or differs from those the run in ``config.out`` began with.
        CdulError: Nothing to label, no weights, a full disk, another run on the same directory.
        KeyboardInterrupt: After what was finished was brought to disk; the message says how to go on.
    """
    if config.out is None:
        raise ConfigError("--out is missing: the folder for the results")
    start = time.monotonic()
    folder, part, stages = Path(config.out), config.part(), Stages()
    with stages.timed("list"):
        everything = _open_inputs(config)
        source = select_part(everything, config.limit, part)
        classes = resolve_classes(config, source)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CdulError(f"cannot make the folder {show_path(folder)}: {error.strerror}") from None
    with locked(folder, part), contextlib.ExitStack() as stack:
        if config.overwrite:
            _delete_run(folder, part)
        before = read_manifest(folder, part)
        stack.enter_context(logging_to(folder / f"run{_suffix(part)}.log", config))
        remove_temporaries(folder, part)
        new = _new_manifest(config, source, classes)
        if before is not None:
            before.check_inputs(new, LabelConfig.fixed_fields(), folder)
        # All parts of a run calibrate on the same photos.
        sample = select_part(everything, config.limit, None)
        session = _Session(config, folder, source, sample, classes, stages, new, before)
        return session.run(start)


class _Session:
    """One call of `label_images`, under the lock of its directory."""

    def __init__(
        self,
        config: LabelConfig,
        folder: Path,
        source: Source,
        sample: Source,
        classes: ClassList,
        stages: Stages,
        new: Manifest,
        before: Manifest | None,
    ) -> None:
        self.config, self.folder, self.source, self.sample = config, folder, source, sample
        self.classes, self.stages, self.new, self.before = classes, stages, new, before
        self.part = config.part()

    def run(self, start: float) -> LabelResult:
        encoder = None
        try:
            manifest = self.before
            if manifest is None:
                encoder, manifest = self._begin()
            state = self._state(manifest)
            info_path = self.folder / info_name("run", self.part)
            processed, seconds = 0, 0.0
            if state.kept:
                self._say(f"kept {state.kept} of {len(self.source)} rows from before")
            if not state.complete:
                self._refuse_relabelled(info_path)
                if encoder is None:
                    encoder = self._load_encoder()
                    manifest.check_model(_model_info(encoder), self.folder)
                info_path.unlink(missing_ok=True)
                processed, seconds = self._process(encoder, state)
            if processed or not info_path.exists():
                self._write_info(manifest, state, processed, seconds, start)
            self._finish()
        finally:
            if encoder is not None:
                encoder.close()
        run = open_run(self.folder)
        counts = _counts(run, self.part)
        return LabelResult(
            path=self.folder,
            counts=counts,
            seconds=time.monotonic() - start,
            kept=state.kept,
            images_per_second=processed / seconds if processed else 0.0,
            limiting_stage=self.stages.limiting(self.config.threads or available_cores()),
            run=run,
        )

    def _refuse_relabelled(self, info_path: Path) -> None:
        """Stop before rows by the settings of `label` get in among rows by those of a later `relabel`."""
        if info_path.exists() and "provenance" in json.loads(info_path.read_text(encoding="utf-8")):
            raise ConfigError(
                f"the run in {show_path(self.folder)} was relabelled in place since, and more rows would not "
                "fit to it: choose another --out, or --overwrite to start again"
            )

    def _say(self, text: str) -> None:
        logger.info(text)
        if not self.config.quiet:
            print(text, file=sys.stderr, flush=True)

    def _load_encoder(self) -> Any:
        from cdul_fast.encoders import create_encoder

        config = self.config
        backend, precision = config.backend, config.precision
        if self.before is not None:
            # A run goes on with what it began with, whatever `auto` would choose today.
            backend = self.before.model["backend"] if backend == "auto" else backend
            precision = self.before.model["precision"] if precision == "auto" else precision
        with self.stages.timed("load"):
            return create_encoder(
                config.model,
                config.pretrained,
                backend=backend,
                precision=precision,
                threads=config.threads,
                quickgelu=config.quickgelu,
                cache_dir=config.cache_dir,
                calibration=lambda made: sample_views(
                    self.sample, config, made, _CALIBRATION_PHOTOS, _CALIBRATION_BYTES
                ),
            )

    def _begin(self) -> tuple[Any, Manifest]:
        encoder = self._load_encoder()
        manifest = dataclasses.replace(self.new, model=_model_info(encoder))
        with writing(self.folder):
            manifest.write(self.folder, self.part)
        return encoder, manifest

    def _state(self, manifest: Manifest) -> RunState:
        from cdul_fast.views import view_count

        layout = Layout(
            views=view_count(self.config.grid, self.config.grid2),
            classes=tuple(self.new.classes),
            dim=int(manifest.model["dim"]) if self.config.embeddings else None,
            shard_size=self.config.shard_size,
            part=self.part,
        )
        return RunState(
            self.folder,
            self.source,
            layout,
            config=manifest.config,
            fingerprint=manifest.model["fingerprint"],
            rule=lambda scores: sets_of_photos(
                scores, self.new.classes, threshold=self.config.threshold, top_k=self.config.top_k
            ),
            retry_failed=self.config.retry_failed,
        )

    def _texts(self, encoder: Any) -> np.ndarray:
        """Class embeddings [C, D]: those the run began with, where it did."""
        from cdul_fast.prompts import class_embeddings

        run = Run(self.folder)
        with contextlib.suppress(CdulError):
            stored = run.texts() if self.before is not None or self.part is not None else None
            if stored is not None and stored.shape == (len(self.new.classes), encoder.dim):
                return stored
        texts = class_embeddings(encoder, self.classes, self.config.template, cache_dir=self.config.cache_dir)
        with writing(self.folder):
            write_texts(self.folder, texts)
        return np.asarray(texts, np.float32)

    def _process(self, encoder: Any, state: RunState) -> tuple[int, float]:
        with self.stages.timed("texts"):
            texts = self._texts(encoder)
        engine = Engine(self.config, encoder, texts, state, self.stages)
        start = time.monotonic()
        progress = Progress(len(self.source), state.kept, state.kept_failed, self.config.quiet)
        try:
            with progress, own_pixel_limit():
                processed = engine.run(progress)
        except KeyboardInterrupt as error:
            raise type(error)(
                f"what was finished is in {show_path(self.folder)}; the same command goes on from there"
            ) from None
        return processed, time.monotonic() - start

    def _write_info(
        self, manifest: Manifest, state: RunState, processed: int, seconds: float, start: float
    ) -> None:
        run = open_run(self.folder)
        counts = _counts(run, self.part)
        info = {
            "format": FORMAT,
            "version": __version__,
            # True once the label sets are final too; a run killed before that catches up when called again.
            "finished": False,
            "config": manifest.config,
            "classes": manifest.classes,
            "model": manifest.model,
            "root": manifest.root,
            "inputs": manifest.inputs,
            "shards": manifest.shards,
            "counts": counts,
            "kept_rows": state.kept,
            "stages": {stage: round(value, 4) for stage, value in self.stages.seconds.items()},
            "limiting_stage": self.stages.limiting(self.config.threads or available_cores()),
            "images_per_second": round(processed / seconds, 3) if processed else 0.0,
            "seconds": round(time.monotonic() - start, 3),
            "peak_memory_mib": round(peak_memory_mib(), 1),
            "threads": self.config.threads or available_cores(),
            "versions": versions(),
        }
        with writing(self.folder):
            write_json(self.folder / info_name("run", self.part), info)
        logger.info(
            "summary %s", json.dumps({k: info[k] for k in ("counts", "seconds", "images_per_second")})
        )

    def _finish(self) -> None:
        """Label sets and report, once every part of the run is complete."""
        with waiting_for(self.folder, "finish"), writing(self.folder):
            run = open_run(self.folder)
            infos = [(part, info) for part, info in run.parts.items() if info is not None]
            if run.missing_shards or not all("counts" in info for _, info in infos):
                self._say(f"still missing: {', '.join(run.missing_shards[:5]) or 'unfinished parts'}")
                return
            if all(info["finished"] for _, info in infos):
                return
            thresholds = settle_labels(
                run,
                threshold=self.config.threshold,
                top_k=self.config.top_k,
                expected_labels=self.config.expected_labels,
            )
            more = {"finished": True, "thresholds": thresholds}
            for part, info in infos:
                write_json(self.folder / info_name("run", part if part[1] else None), info | more)
        if self.config.report:
            self._report()

    def _report(self) -> None:
        try:
            from cdul_fast.reporting import write_report

            write_report(self.folder)
        except Exception as error:
            # The labels are complete; a page about them must not take them away.
            logger.warning("no report: %s", one_line(str(error)), exc_info=True)
            print(f"warning: report.html was not written: {one_line(str(error))}", file=sys.stderr)


def plan(config: LabelConfig) -> str:
    """What a run would do, as text for ``--dry-run``: nothing is decoded, loaded or written.

    Raises:
        ConfigError: A setting is wrong.
        CdulError: Nothing to label.
    """
    from cdul_fast.views import view_count

    source = select_part(_open_inputs(config), config.limit, config.part())
    classes = resolve_classes(config, source)
    shards = -(-len(source) // config.shard_size)
    views = view_count(config.grid, config.grid2)
    lines = [
        f"{len(source)} photos from {show_path(source.root)} ({source.kind} source)",
        f"{len(classes.names)} classes: {one_line(', '.join(classes.names), 100)}",
        f"{views} views a photo, {len(source) * views} in all, through {config.model} ({config.pretrained})",
        f"{shards} shards of up to {config.shard_size} rows into {show_path(config.out or '(no --out)')}",
    ]
    return "\n".join(lines)


def _open_inputs(config: LabelConfig) -> Source:
    return open_source(
        config.source,
        list_file=config.list,
        format=config.format,
        images=config.images,
        split=config.split,
    )


def resolve_classes(config: LabelConfig, source: Source) -> ClassList:
    """The classes of a run: from ``--classes``, else the source's own, else those of the embedded model.

    Raises:
        ConfigError: There are none; or the file is missing or wrong.
    """
    from cdul_fast.encoders import tiny_classes
    from cdul_fast.prompts import ClassList, load_classes

    trained = tiny_classes() if config.model == "tiny" else None
    if config.classes is not None:
        classes = load_classes(config.classes)
    elif source.classes is not None:
        classes = ClassList(names=tuple(source.classes), prompts=None)
    elif trained is not None:
        return trained
    else:
        raise ConfigError("--classes is missing: a file with a class name a line")
    if trained is not None:
        unknown = [name for name in classes.names if name not in trained.names]
        if unknown:
            shown = one_line(", ".join(unknown), 120)
            print(
                f"warning: the model tiny was not trained on: {shown}; their scores mean nothing",
                file=sys.stderr,
            )
    return classes


def _new_manifest(config: LabelConfig, source: Source, classes: ClassList) -> Manifest:
    from cdul_fast.prompts import class_prompts

    return Manifest(
        config=config.to_dict(),
        classes=list(classes.names),
        prompts=prompts_digest(class_prompts(classes, config.template)),
        root=encode_path(str(source.root)),
        inputs=len(source),
        inputs_sha256=inputs_digest(source),
        model={},
    )


def _model_info(encoder: Any) -> dict[str, Any]:
    return {
        "name": encoder.name,
        "pretrained": encoder.pretrained,
        "backend": encoder.backend,
        "precision": encoder.precision,
        "fingerprint": encoder.fingerprint,
        "logit_scale": float(encoder.logit_scale),
        "image_size": int(encoder.image_size),
        "dim": int(encoder.dim),
        # What the encoder measured of itself, such as the cosine of int8 with fp32.
        **getattr(encoder, "report", {}),
    }


def _suffix(part: tuple[int, int] | None) -> str:
    return "" if part is None else f"-{part[0]}of{part[1]}"


def _counts(run: Run, part: tuple[int, int] | None) -> dict[str, int]:
    """Rows by status in the shards of one part."""
    counts: Counter[str] = Counter()
    for shard in run.shards:
        if part is None or shard.name.startswith(part_prefix(part)):
            counts.update(shard.table(["status"]).column("status").to_pylist())
    return dict(sorted(counts.items()))


def _delete_run(folder: Path, part: tuple[int, int] | None) -> None:
    """Remove what a run wrote, and nothing else: of one part, or of all."""
    if part is None:
        patterns = ["labels-*.parquet", "views-*.safetensors", "journal-*.bin", "texts.safetensors"]
        patterns += ["run*.json", "manifest*.json", "run*.log", "report.html", ".tmp-*"]
    else:
        prefix, suffix = part_prefix(part), _suffix(part)
        patterns = [f"labels-{prefix}*.parquet", f"views-{prefix}*.safetensors", f"journal-{prefix}*.bin"]
        patterns += [f"run{suffix}.json", f"manifest{suffix}.json", f"run{suffix}.log"]
    # The manifest last: a kill in between leaves a run that can be overwritten again.
    for pattern in sorted(patterns, key=lambda name: name.startswith("manifest")):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
