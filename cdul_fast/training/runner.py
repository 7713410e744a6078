"""`train_on_run`: a labelled run to a classifier, in a model directory that survives a kill at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cdul_fast import __version__
from cdul_fast.data.lock import locked
from cdul_fast.data.paths import show_path
from cdul_fast.data.sinks import replacing, write_json
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.execution.local_engine import available_cores
from cdul_fast.execution.run_log import logging_to, peak_memory_mib, versions
from cdul_fast.training.arithmetic import likes_channels_last, training_precision
from cdul_fast.training.backbones import Backbone, create_backbone
from cdul_fast.training.batches import Batches, PhotoBatches, StoredBatches
from cdul_fast.training.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint, save_network
from cdul_fast.training.config import TrainConfig
from cdul_fast.training.dataset import LabelledPhotos, TrainingSet, open_photos
from cdul_fast.training.distributed import World, join_world, leave_world
from cdul_fast.training.features import extract_features
from cdul_fast.training.latent import LatentLabels, label_step_device
from cdul_fast.training.loop import STAGES, Loop, Network, limiting_stage, mean_average_precision
from cdul_fast.training.methods import Method, Problem, create_method, method_class
from cdul_fast.training.model_dir import BACKBONE, FORMAT, ModelInfo, write_info
from cdul_fast.training.observe import observe
from cdul_fast.training.recipes import default_budget, loop_settings, resolved_recipe
from cdul_fast.training.watch import Watch

logger = logging.getLogger("cdul_fast.train")


@dataclass(frozen=True)
class TrainResult:
    """What `train_on_run` did.

    Attributes:
        path: The model directory.
        history: One entry per epoch: loss, rate, time by stage, and what was evaluated.
        seconds: Of this call by stage: features, and the stages of the loop, which follow one another.
        busy: Of this call, seconds of the threads that decode and augment ahead of the loop, all together.
        limiting_stage: What took longest: a stage, or ``network`` for forward, backward and step.
        leads: Whether this process is the first of those that trained together.
    """

    path: Path
    history: list[dict[str, Any]]
    seconds: dict[str, float]
    busy: dict[str, float]
    limiting_stage: str
    leads: bool = True

    def summary(self) -> str:
        """The result in one line."""
        last = self.history[-1]
        parts = [f"{len(self.history)} epochs", f"loss {last['loss']:.4f}"]
        if last.get("map") is not None:
            best = max(entry.get("map") or 0.0 for entry in self.history)
            parts.append(f"mAP {last['map']:.1f} (best {best:.1f})")
        total = sum(self.seconds.values())
        return f"{', '.join(parts)}; {total:.1f} s, mostly {self.limiting_stage}: {show_path(self.path)}"


def train_on_run(config: TrainConfig) -> TrainResult:
    """Train a classifier on a labelled run.

    The same call on the same folder goes on with unfinished training, or returns what is finished.

    Args:
        config: All settings.

    Raises:
        ConfigError: A setting is wrong, or differs from those that training in ``config.out`` began with.
        CdulError: No photos, no weights, or damaged files.
    """
    world = join_world(config.device)
    try:
        precision = training_precision(config.precision, world.device, frozen=config.freeze_backbone)
        return _Session(dataclasses.replace(config, precision=precision), world).run()
    finally:
        leave_world(world)


class _Session:
    """One call of `train_on_run` in one process."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        assert config.run is not None and config.out is not None
        self.config, self.world = config, world
        self.folder = Path(config.out)
        self.start = time.monotonic()
        self.feature_seconds = 0.0
        self.steps = 0  # of the optimiser, in this call

    def run(self) -> TrainResult:
        with contextlib.ExitStack() as stack:
            if self.world.leads:
                self._open_folder(stack)
            return self._run()

    def _run(self) -> TrainResult:
        config, world = self.config, self.world
        _set_up(config)
        world.barrier()
        chosen = resolved_recipe(config)
        data, val = open_photos(config, chosen.label_scale)
        torch.manual_seed(config.seed)  # a backbone without weights starts at random
        backbone = create_backbone(config.backbone, config.weights)
        if config.channels_last is None:
            config = self.config = dataclasses.replace(config, channels_last=likes_channels_last(backbone))
        batches, val_batches = self._inputs(backbone, data, val)
        method = self._method(data, chosen.options)
        torch.manual_seed(config.seed)
        head = method.build_head(backbone.info.channels, config.dropout)
        network = Network(None if config.freeze_backbone else backbone, head, backbone.info.channels)
        network.to(world.device)
        if isinstance(batches, StoredBatches) and config.feature_scaling == "standardise":
            network.scaling.fit(batches.features)
        if config.channels_last:
            network.to(memory_format=torch.channels_last)
        run_network = torch.compile(network) if config.compile else None
        loop = Loop(network, method, batches, loop_settings(config, chosen), world, run_network)
        info = ModelInfo(
            classes=data.classes,
            backbone=config.backbone,
            method=config.method,
            options=dataclasses.asdict(method.settings),
            image_size=config.image_size,
            fit=config.fit,
            frozen=config.freeze_backbone,
            map_grid=config.map_grid if config.freeze_backbone else 0,
            class_vector_size=0 if data.class_vectors is None else data.class_vectors.shape[1],
        )
        if world.leads:
            write_info(self.folder, info, {"config": config.to_dict()})
            if config.freeze_backbone:
                _save_backbone(self.folder / BACKBONE, backbone)
        watch = Watch(config, self.folder, data, backbone, enabled=world.leads)
        self._train(loop, data, val, val_batches, watch)
        return self._finish(loop, data, watch)

    def _open_folder(self, stack: contextlib.ExitStack) -> None:
        """Make the folder, lock it and log into it; check that what is in it began with the same settings."""
        config, folder = self.config, self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CdulError(f"cannot make the folder {show_path(folder)}: {error.strerror}") from None
        stack.enter_context(locked(folder))
        if config.overwrite:
            _delete_model(folder)
        stack.enter_context(logging_to(folder / "train.log", config))
        record = folder / "config.json"
        fixed = {name: value for name, value in config.to_dict().items() if name in config.fixed_fields()}
        if record.is_file():
            before = json.loads(record.read_text(encoding="utf-8"))
            for name, value in fixed.items():
                if before.get(name) != value:
                    raise ConfigError(
                        f"training in {show_path(folder)} began with {name} {before.get(name)!r}, now it is "
                        f"{value!r}; give another --out, or --overwrite"
                    )
        else:
            with replacing(record) as temporary:
                temporary.write_text(json.dumps(fixed, indent=1), encoding="utf-8")

    def _inputs(
        self, backbone: Backbone, data: TrainingSet, val: LabelledPhotos | None
    ) -> tuple[Batches, Batches | None]:
        config, world = self.config, self.world
        if not config.freeze_backbone:
            more: dict[str, Any] = {
                "seed": config.seed,
                "crop_scale": config.crop_scale,
                "flip": config.flip,
                "fit": config.fit,
                "threads": config.threads,
                "device": world.device,
                "channels_last": config.channels_last,
            }
            info = backbone.info
            train = PhotoBatches(data.photos, config.image_size, info.mean, info.std, **more)
            if val is None:
                return train, None
            return train, PhotoBatches(val.photos, config.image_size, info.mean, info.std, **more)
        wants_maps = method_class(config.method).wants_maps
        found: list[Batches] = []
        for photos in [data.photos] + ([] if val is None else [val.photos]):
            # One process extracts, the others read what it kept.
            for turn in ("lead", "rest"):
                if (turn == "lead") == world.leads:
                    features = extract_features(
                        backbone,
                        photos,
                        image_size=config.image_size,
                        map_grid=config.map_grid if wants_maps else None,
                        cache_dir=Path(config.cache_dir) if config.cache_dir else self.folder / "features",
                        fit=config.fit,
                        threads=config.threads,
                    )
                world.barrier()
            self.feature_seconds += features.seconds
            kept = features.maps if wants_maps else features.pooled
            assert kept is not None
            found.append(StoredBatches(torch.from_numpy(kept), world.device))
        return found[0], found[1] if len(found) > 1 else None

    def _method(self, data: TrainingSet, recipe_options: dict[str, Any]) -> Method:
        config, world = self.config, self.world
        budget = config.observe or default_budget(config.method)
        stored = self.folder / "observed.npz"
        if stored.is_file():
            with np.load(stored) as kept:
                observed = kept["observed"]
        else:
            try:
                observed = observe(budget, truth=data.truth, soft=data.soft, seed=config.seed)
            except ValueError as error:
                raise ConfigError(f"--{error}") from None
        world.barrier()
        if world.leads and not stored.is_file():
            with replacing(stored) as temporary, temporary.open("wb") as stream:
                np.savez_compressed(stream, observed=observed, paths=np.array(data.paths), budget=budget)
        vectors = data.class_vectors
        problem = Problem(
            torch.from_numpy(data.soft).to(world.device),
            torch.from_numpy(observed).to(world.device),
            budget != "none",
            config.expected_positives,
            None if vectors is None else torch.from_numpy(vectors),
        )
        extra: dict[str, Any] = {}
        if config.method == "cdul":
            extra["latent"] = LatentLabels(
                data.soft,
                self.folder,
                rank=world.rank,
                world=world.size,
                barrier=world.barrier,
                device=label_step_device(world.device),
            )
        options = {**recipe_options, **config.own_options()}
        try:
            return create_method(config.method, problem, options, **extra)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def _train(
        self,
        loop: Loop,
        data: TrainingSet,
        val: LabelledPhotos | None,
        val_batches: Batches | None,
        watch: Watch,
    ) -> None:
        config, world = self.config, self.world
        last = self.folder / LAST
        if last.is_file():
            load_checkpoint(last, loop)
            self._say(f"going on after epoch {loop.position.epoch}, step {loop.position.step}")
        since = [0]

        def after_step() -> None:
            self.steps += 1
            since[0] += 1
            if since[0] >= config.checkpoint_every:
                since[0] = 0
                if world.leads:
                    save_checkpoint(last, loop)

        first = loop.method.labels().cpu().numpy().copy()
        while loop.position.epoch < loop.settings.epochs:
            start, before = time.perf_counter(), dict(loop.seconds)
            loop.train_epoch(after_step)
            since[0] = 0
            if not np.isfinite(loop.position.loss_sum):
                raise CdulError(
                    f"the loss of epoch {loop.position.epoch} is not a finite number: training diverged; "
                    "start again with a lower --lr"
                )
            more: dict[str, Any] = label_figures(loop.method.labels().cpu().numpy(), first, data.truth)
            if val is not None and val_batches is not None:
                score, per_class = mean_average_precision(
                    loop.predict(val_batches), val.truth, config.least_positives
                )
                more["map"] = score if np.isfinite(score) else None
                more["ap"] = [None if np.isnan(value) else float(value) for value in per_class]
            more["seconds"] = round(time.perf_counter() - start, 3)
            more["stages"] = {stage: round(loop.seconds[stage] - before[stage], 3) for stage in STAGES}
            entry = loop.close_epoch(more)
            if world.leads:
                scores = [one.get("map") for one in loop.position.history]
                if entry.get("map") is None or entry["map"] >= max(s for s in scores if s is not None):
                    save_network(
                        self.folder / BEST, loop.best_network, with_backbone=not config.freeze_backbone
                    )
                save_checkpoint(last, loop)
                if hasattr(loop.method, "latent"):
                    loop.method.latent.discard_old()
                watch.epoch(loop, entry)
            world.barrier()
            self._say(_epoch_line(entry, loop.settings.epochs))
            if world.leads:
                spent = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in more["stages"].items())
                logger.info("epoch %d, seconds: %s", entry["epoch"], spent)

    def _finish(self, loop: Loop, data: TrainingSet, watch: Watch) -> TrainResult:
        seconds = {"features": self.feature_seconds, **loop.seconds}
        limiting = limiting_stage(seconds)
        result = TrainResult(
            self.folder, loop.position.history, seconds, dict(loop.data.busy), limiting, self.world.leads
        )
        if self.world.leads:
            # A call that found everything done leaves the record of the one that did it.
            if self.steps or not (self.folder / "run.json").is_file():
                self._write_record(loop, data, result)
            watch.finish()
        return result

    def _write_record(self, loop: Loop, data: TrainingSet, result: TrainResult) -> None:
        stages = {stage: round(value, 4) for stage, value in {**result.seconds, **result.busy}.items()}
        content = {
            "history": result.history,
            "classes": list(data.classes),
            "seconds": result.seconds,
            "limiting_stage": result.limiting_stage,
        }
        write_json(self.folder / "history.json", content)
        record = {
            "format": FORMAT,
            "version": __version__,
            "config": self.config.to_dict(),
            "photos": len(data.photos),
            "steps": self.steps,
            "stages": stages,
            "limiting_stage": result.limiting_stage,
            "images_per_second": round(loop.photos / loop.steps_seconds, 3) if loop.photos else 0.0,
            "seconds": round(time.monotonic() - self.start, 3),
            "peak_memory_mib": round(peak_memory_mib(), 1),
            "threads": self.config.threads or available_cores(),
            "processes": self.world.size,
            "device": str(self.world.device),
            "versions": versions(),
        }
        write_json(self.folder / "run.json", record)
        logger.info("summary %s", json.dumps({key: record[key] for key in ("stages", "limiting_stage")}))

    def _say(self, text: str) -> None:
        if self.world.leads:
            logger.info(text)
            if not self.config.quiet:
                print(text, file=sys.stderr, flush=True)


def label_figures(labels: np.ndarray, first: np.ndarray, truth: np.ndarray | None) -> dict[str, Any]:
    """How the labels stand: positives per image, share changed (across 1/2), mAP where truth is given."""
    figures: dict[str, Any] = {
        "label_positives": float(labels.sum(axis=1).mean()),
        "label_changed": float(((labels >= 0.5) != (first >= 0.5)).mean()),
    }
    if truth is not None:
        score = mean_average_precision(labels, truth)[0]
        figures["label_map"] = score if np.isfinite(score) else None
    return figures


def _epoch_line(entry: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {entry['epoch']}/{epochs}", f"loss {entry['loss']:.4f}"]
    if entry.get("map") is not None:
        parts.append(f"mAP {entry['map']:.1f}")
    if entry.get("label_map") is not None:
        parts.append(f"label mAP {entry['label_map']:.1f}")
    parts.append(f"{entry['label_positives']:.2f} labels a photo, {entry['label_changed']:.2%} changed")
    return ", ".join([*parts, f"{entry['seconds']:.1f} s"])


def _set_up(config: TrainConfig) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False


def _save_backbone(path: Path, backbone: Backbone) -> None:
    from safetensors.torch import save_file

    if not path.is_file():
        with replacing(path) as temporary:
            save_file(dict(backbone.state_dict()), temporary)


def _delete_model(folder: Path) -> None:
    """Remove what training wrote, and nothing else.

    Raises:
        CdulError: The folder holds files but no model.
    """
    found = [path for path in folder.iterdir() if not path.name.startswith(".lock")]
    if found and not (folder / "config.json").is_file():
        raise CdulError(f"{show_path(folder)} is not a model directory; --overwrite deletes only such")
    names = ("model.json", "history.json", "run.json", "observed.npz", "report.html", "train.log")
    for pattern in ("*.safetensors", "latent-*", *names):
        for path in folder.glob(pattern):
            path.unlink()
    for name in ("tensorboard", "cams"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "config.json").unlink(missing_ok=True)
