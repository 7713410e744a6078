"""One call over a folder of results, with what makes it survive: lock, log, manifest, journal, run.json.

`Session` knows nothing of CLIP. `cdul_fast.pipeline` labels with it, `cdul_fast.training.predicting` predicts
with it; what differs between the two is in the methods that they override.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy as np

from cdul_fast import __version__
from cdul_fast.data.decode import own_pixel_limit
from cdul_fast.data.label_columns import sets_of_photos, settle_labels
from cdul_fast.data.lock import locked, waiting_for
from cdul_fast.data.manifest import Manifest, inputs_digest, read_manifest
from cdul_fast.data.paths import encode_path, one_line, show_path
from cdul_fast.data.remote import Remote
from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.data.run_removal import delete_run
from cdul_fast.data.shard_work import Layout, RunState, writing
from cdul_fast.data.sinks import FORMAT, info_name, part_prefix, remove_temporaries, write_json
from cdul_fast.data.source import Source, select_part
from cdul_fast.data.sources import open_source
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.execution.local_engine import Engine, Stages, available_cores
from cdul_fast.execution.run_log import logging_to, peak_memory_mib, versions
from cdul_fast.execution.work import ScoreSpec, ViewSpec
from cdul_fast.progress import MakeProgress, Progress

if TYPE_CHECKING:
    from cdul_fast.config import LabelConfig
    from cdul_fast.predict_config import PredictConfig
    from cdul_fast.prompts import ClassList

logger = logging.getLogger("cdul_fast.label")

Settings = TypeVar("Settings", bound="LabelConfig | PredictConfig")


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a call over a folder of results did.

    Attributes:
        path: The folder.
        counts: Rows by status, those kept from an earlier call included.
        seconds: Wall-clock time of this call.
        kept: Rows kept from an earlier call.
        images_per_second: Photos done by this call a second, without loading; 0 if there were none.
        limiting_stage: The stage that the others waited for.
        run: The results, read on demand.
    """

    done: ClassVar[str] = "done"

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
        parts = [f"{ok} of {total} photos {self.done}"]
        if bad:
            parts.append(f"failed: {bad}")
        if self.kept:
            parts.append(f"{self.kept} rows kept from before")
        if self.images_per_second:
            parts.append(f"{self.images_per_second:.1f} images/s, limited by {self.limiting_stage}")
        return f"{'; '.join(parts)} ({self.seconds:.1f} s): {show_path(self.path)}"


def too_many_failures(result: RunResult, config: LabelConfig | PredictConfig) -> bool:
    """Whether more photos failed than ``--max-failure-rate`` allows; says so on standard error."""
    if result.failure_rate <= config.max_failure_rate:
        return False
    print(
        f"error: {result.failure_rate:.1%} of the photos failed, more than --max-failure-rate "
        f"{config.max_failure_rate:.1%} allows",
        file=sys.stderr,
    )
    return True


def open_inputs(config: LabelConfig | PredictConfig) -> Source:
    """The source that a configuration names."""
    return open_source(
        config.source,
        list_file=config.list,
        format=config.format,
        images=config.images,
        split=config.split,
        remote=Remote(config.read_timeout, config.read_retries),
    )


class Session(ABC, Generic[Settings]):
    """One call over a folder of results.

    The same call on the same folder goes on with unfinished work, or returns what is finished.

    Args:
        config: All settings; ``config.out`` names the folder.
        progress: What shows how far the work is.
    """

    result_class: ClassVar[type[RunResult]] = RunResult
    doing: ClassVar[str] = "working"

    def __init__(self, config: Settings, progress: MakeProgress = Progress) -> None:
        if config.out is None:
            raise ConfigError("--out is missing: the folder for the results")
        self.config, self._progress = config, progress
        self.start = time.monotonic()
        self.folder, self.part, self.stages = Path(config.out), config.part(), Stages()
        with self.stages.timed("list"):
            self.everything = open_inputs(config)
            self.source = select_part(self.everything, config.limit, self.part)
            self.classes = self.find_classes()
        self.new: Manifest
        self.before: Manifest | None = None
        self.device_report: dict[str, Any] = {}

    # What differs between labelling and predicting.

    @abstractmethod
    def find_classes(self) -> ClassList:
        """The classes of the results."""

    def prompts(self) -> str:
        """`prompts_digest` of the classes; empty where no prompts play a part."""
        return ""

    def check_before(self, before: Manifest) -> None:
        """Refuse to go on with results of something else; settings and inputs were compared already."""

    @abstractmethod
    def load_encoder(self, precision: str) -> Any:
        """What embeds the views; ``precision`` is the one to use, or ``auto``."""

    @abstractmethod
    def layout(self, manifest: Manifest) -> Layout:
        """What every row must look like."""

    @abstractmethod
    def texts(self, encoder: Any) -> np.ndarray:
        """Class embeddings [C, D] as the engine takes them."""

    @abstractmethod
    def view_spec(self, encoder: Any) -> ViewSpec:
        """How a photo becomes the encoder's input."""

    @abstractmethod
    def score_spec(self, encoder: Any) -> ScoreSpec:
        """How embeddings become scores."""

    def engine_class(self, encoder: Any) -> type[Engine]:
        """What does the work."""
        return engine_for(encoder)

    @abstractmethod
    def label_rule(self) -> dict[str, Any]:
        """``threshold``, ``top_k`` and ``expected_labels`` as `settle_labels` takes them."""

    def run(self) -> RunResult:
        """Do all that is still to be done.

        Raises:
            ConfigError: A setting is wrong, or differs from those the results in the folder began with.
            CdulError: Nothing to do, no weights, a full disk, another call on the same folder.
            KeyboardInterrupt: After what was finished was brought to disk; the message says how to go on.
        """
        config, folder, part = self.config, self.folder, self.part
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CdulError(f"cannot make the folder {show_path(folder)}: {error.strerror}") from None
        with locked(folder, part), contextlib.ExitStack() as stack:
            if config.overwrite:
                delete_run(folder, part)
            self.before = read_manifest(folder, part)
            stack.enter_context(logging_to(folder / f"run{_suffix(part)}.log", config))
            remove_temporaries(folder, part)
            self.new = self._new_manifest()
            if self.before is not None:
                self.before.check_inputs(self.new, type(config).fixed_fields(), folder)
                self.check_before(self.before)
            return self._run()

    def _new_manifest(self) -> Manifest:
        return Manifest(
            config=self.config.to_dict(),
            classes=list(self.classes.names),
            prompts=self.prompts(),
            root=encode_path(self.source.place),
            inputs=len(self.source),
            inputs_sha256=inputs_digest(self.source),
            model={},
        )

    def _run(self) -> RunResult:
        encoder = None
        try:
            manifest = self.before
            if manifest is None:
                encoder, manifest = self._begin()
            state = self._state(manifest)
            info_path = self.folder / info_name("run", self.part)
            processed, seconds = 0, 0.0
            if state.kept:
                self.say(f"kept {state.kept} of {len(self.source)} rows from before")
            if not state.complete:
                self._refuse_relabelled(info_path)
                if encoder is None:
                    encoder = self._load_encoder()
                    manifest.check_model(_model_info(encoder), self.folder)
                info_path.unlink(missing_ok=True)
                processed, seconds = self._process(encoder, state)
            if processed or not info_path.exists():
                self._write_info(manifest, state, processed, seconds)
            self._finish()
        finally:
            if encoder is not None:
                encoder.close()
        run = open_run(self.folder)
        counts = counts_of(run, self.part)
        return self.result_class(
            path=self.folder,
            counts=counts,
            seconds=time.monotonic() - self.start,
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

    def say(self, text: str) -> None:
        """A line for the log, and for the user unless ``--quiet``."""
        logger.info(text)
        if not self.config.quiet:
            print(text, file=sys.stderr, flush=True)

    def _load_encoder(self) -> Any:
        precision = self.config.precision
        if self.before is not None and precision == "auto":
            # A run goes on with what it began with, whatever `auto` would choose today.
            precision = self.before.model["precision"]
        with self.stages.timed("load"):
            return self.load_encoder(precision)

    def _begin(self) -> tuple[Any, Manifest]:
        encoder = self._load_encoder()
        manifest = dataclasses.replace(self.new, model=_model_info(encoder))
        with writing(self.folder):
            manifest.write(self.folder, self.part)
        return encoder, manifest

    def _state(self, manifest: Manifest) -> RunState:
        rule = self.label_rule()
        return RunState(
            self.folder,
            self.source,
            self.layout(manifest),
            config=manifest.config,
            fingerprint=manifest.model["fingerprint"],
            rule=lambda scores: sets_of_photos(
                scores, self.new.classes, threshold=rule["threshold"], top_k=rule["top_k"]
            ),
            retry_failed=self.config.retry_failed,
        )

    def _process(self, encoder: Any, state: RunState) -> tuple[int, float]:
        with self.stages.timed("texts"):
            texts = self.texts(encoder)
        engine = self.engine_class(encoder)(
            self.config,
            encoder,
            texts,
            state,
            self.stages,
            views=self.view_spec(encoder),
            scores=self.score_spec(encoder),
        )
        start = time.monotonic()
        progress = self._progress(
            len(self.source), state.kept, state.kept_failed, self.config.quiet, self.doing
        )
        try:
            with progress, own_pixel_limit():
                processed = engine.run(progress)
        except KeyboardInterrupt as error:
            raise type(error)(
                f"what was finished is in {show_path(self.folder)}; the same command goes on from there"
            ) from None
        self.device_report = engine.report()
        return processed, time.monotonic() - start

    def _write_info(self, manifest: Manifest, state: RunState, processed: int, seconds: float) -> None:
        run = open_run(self.folder)
        counts = counts_of(run, self.part)
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
            "seconds": round(time.monotonic() - self.start, 3),
            "peak_memory_mib": round(peak_memory_mib(), 1),
            "threads": self.config.threads or available_cores(),
            **self.device_report,
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
                self.say(f"still missing: {', '.join(run.missing_shards[:5]) or 'unfinished parts'}")
                return
            if all(info["finished"] for _, info in infos):
                return
            thresholds = settle_labels(run, **self.label_rule())
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


def engine_for(encoder: Any) -> type[Engine]:
    """The engine that an encoder works best with."""
    if getattr(encoder, "device", None) is not None and encoder.device.type == "cuda":
        from cdul_fast.execution.device_engine import DeviceEngine

        return DeviceEngine
    return Engine


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


def counts_of(run: Run, part: tuple[int, int] | None) -> dict[str, int]:
    """Rows by status in the shards of one part."""
    counts: Counter[str] = Counter()
    for shard in run.shards:
        if part is None or shard.name.startswith(part_prefix(part)):
            counts.update(shard.table(["status"]).column("status").to_pylist())
    return dict(sorted(counts.items()))
