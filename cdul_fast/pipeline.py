"""`label_images`: photos to soft labels, in a run directory that survives being killed at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cdul_fast.config import LabelConfig
from cdul_fast.data.decode import PhotoProblem, decode_photo
from cdul_fast.data.manifest import Manifest, prompts_digest
from cdul_fast.data.paths import one_line, show_path
from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.data.shard_work import Layout, writing
from cdul_fast.data.sinks import write_texts
from cdul_fast.data.source import Source, select_part
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.execution.devices import chosen_devices
from cdul_fast.execution.local_engine import Engine, available_cores
from cdul_fast.execution.readers import sample_views
from cdul_fast.execution.session import RunResult, Session, counts_of, engine_for, open_inputs
from cdul_fast.execution.work import ScoreSpec, ViewSpec
from cdul_fast.progress import MakeProgress, Progress

if TYPE_CHECKING:
    from cdul_fast.prompts import ClassList

# What int8 is calibrated on: so many photos of the run, fewer where their views would take more memory.
_CALIBRATION_PHOTOS, _CALIBRATION_BYTES = 32, 192 << 20
# Photos that both decoders are tried on.
_DECODED_TO_CHOOSE = 64


@dataclasses.dataclass(frozen=True, repr=False)
class LabelResult(RunResult):
    """What `label_images` did; the attributes are those of `RunResult`."""

    done: ClassVar[str] = "labelled"


def label_images(config: LabelConfig, *, progress: MakeProgress = Progress) -> LabelResult:
    """Give every photo of a source a soft score for every class.

    The same call on the same folder goes on with an unfinished run, or returns a finished one.

    Args:
        config: All settings; ``config.out`` names the run directory. Where ``config.device`` means several
            GPUs, a process works on each.
        progress: What shows how far the run is, where one process works.

    Returns:
        Counts, time, and the run for reading.

    Raises:
        ConfigError: A setting is wrong, or differs from those the run in ``config.out`` began with.
        CdulError: Nothing to label, no weights, a full disk, another run on the same directory.
        KeyboardInterrupt: After what was finished was brought to disk; the message says how to go on.
    """
    start, devices = time.monotonic(), chosen_devices(config.device)
    if len(devices) > 1:
        return _label_on_devices(config, devices, start)
    result = _LabelSession(config, progress).run()
    assert isinstance(result, LabelResult)
    return result


def _label_on_devices(config: LabelConfig, devices: Sequence[str], start: float) -> LabelResult:
    from cdul_fast.execution.device_processes import label_on

    summary = label_on(config, devices)
    run = open_run(Path(config.out or ""))
    return LabelResult(
        path=run.path,
        counts=counts_of(run, None),
        seconds=time.monotonic() - start,
        run=run,
        **dataclasses.asdict(summary),
    )


class _LabelSession(Session[LabelConfig]):
    """One call of `label_images`."""

    result_class = LabelResult
    doing = "labelling"

    def find_classes(self) -> ClassList:
        return resolve_classes(self.config, self.source)

    def prompts(self) -> str:
        from cdul_fast.prompts import class_prompts

        return prompts_digest(class_prompts(self.classes, self.config.template))

    def load_encoder(self, precision: str) -> Any:
        from cdul_fast.encoders import create_encoder

        config, backend = self.config, self.config.backend
        if self.before is not None and backend == "auto":
            backend = self.before.model["backend"]
        # All parts of a run calibrate on the same photos.
        sample = select_part(self.everything, config.limit, None)
        encoder: Any = create_encoder(
            config.model,
            config.pretrained,
            backend=backend,
            precision=precision,
            device=chosen_devices(config.device)[0],
            compiled=config.compile,
            threads=config.threads,
            quickgelu=config.quickgelu,
            cache_dir=config.cache_dir,
            calibration=lambda made: sample_views(
                sample, config, made, _CALIBRATION_PHOTOS, _CALIBRATION_BYTES
            ),
        )
        self._settle_decoder(encoder)
        return encoder

    def _settle_decoder(self, encoder: Any) -> None:
        """What decodes the photos, for the run's record: beside a GPU there is a choice."""
        from cdul_fast.data.gpu_decode import GpuDecoder, has_gpu_decoder

        decode: str = self.config.decode
        if self.config.engine == "ray" or engine_for(encoder) is Engine:
            if decode == "gpu":
                raise ConfigError("--decode gpu needs a model that runs on a GPU")
            return
        if decode == "auto" and self.before is not None:
            decode = self.before.model.get("decode", "cpu")
        if decode == "auto":
            decode = self._faster_decoder(encoder) if has_gpu_decoder() else "cpu"
        if decode == "gpu":
            GpuDecoder(encoder.device)  # says so at once where it does not load
        encoder.report = {**getattr(encoder, "report", {}), "decode": decode}

    def _faster_decoder(self, encoder: Any) -> str:
        """Both decoders on the first photos of the run; `cpu` where none of them is for a GPU."""
        from concurrent.futures import ThreadPoolExecutor

        from cdul_fast.data.gpu_decode import GpuDecoder, faster_decoder, fit_for_gpu

        files: list[bytes] = []
        for index in range(min(len(self.source), _DECODED_TO_CHOOSE)):
            with contextlib.suppress(PhotoProblem):
                data = self.source.read(index)
                if fit_for_gpu(data, self.view_spec(encoder)) is not None:
                    files.append(data)
        gpu = GpuDecoder(encoder.device)

        def on_gpu(batch: Sequence[bytes]) -> None:
            for pixels in gpu.decode(batch):
                if pixels is None:
                    raise CdulError("a whole JPEG was not decoded")
                int(pixels[0, 0, 0])  # waits for it

        with (
            self.stages.timed("choose"),
            ThreadPoolExecutor(self.config.threads or available_cores()) as pool,
        ):
            return faster_decoder(files, lambda batch: list(pool.map(decode_photo, batch)), on_gpu)

    def layout(self, manifest: Manifest) -> Layout:
        from cdul_fast.views import view_count

        return Layout(
            views=view_count(self.config.grid, self.config.grid2),
            classes=tuple(self.new.classes),
            dim=int(manifest.model["dim"]) if self.config.embeddings else None,
            shard_size=self.config.shard_size,
            part=self.part,
        )

    def texts(self, encoder: Any) -> np.ndarray:
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

    def view_spec(self, encoder: Any) -> ViewSpec:
        return ViewSpec.of(self.config, encoder)

    def score_spec(self, encoder: Any) -> ScoreSpec:
        config = self.config
        scale = encoder.logit_scale if config.scale is None else config.scale
        return ScoreSpec(config.aggregator, float(scale), config.zeta, config.lam)

    def engine_class(self, encoder: Any) -> type[Engine]:
        if self.config.engine == "ray":
            from cdul_fast.execution.ray_engine import RayEngine

            return RayEngine
        return super().engine_class(encoder)

    def label_rule(self) -> dict[str, Any]:
        config = self.config
        return {
            "threshold": config.threshold,
            "top_k": config.top_k,
            "expected_labels": config.expected_labels,
        }


def plan(config: LabelConfig) -> str:
    """What a run would do, as text for ``--dry-run``: nothing is decoded, loaded or written.

    Raises:
        ConfigError: A setting is wrong.
        CdulError: Nothing to label.
    """
    from cdul_fast.views import view_count

    source = select_part(open_inputs(config), config.limit, config.part())
    classes = resolve_classes(config, source)
    shards = -(-len(source) // config.shard_size)
    views = view_count(config.grid, config.grid2)
    lines = [
        f"{len(source)} photos from {show_path(source.place)} ({source.kind} source)",
        f"{len(classes.names)} classes: {one_line(', '.join(classes.names), 100)}",
        f"{views} views a photo, {len(source) * views} in all, through {config.model} ({config.pretrained})",
        f"{shards} shards of up to {config.shard_size} rows into {show_path(config.out or '(no --out)')}",
    ]
    return "\n".join(lines)


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
