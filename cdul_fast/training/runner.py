"""`train_on_run`: a labelled run to a classifier, in a model directory that survives a kill at any moment."""

from __future__ import annotations

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

from cdul_fast.data.paths import show_path
from cdul_fast.data.run_dir import open_run
from cdul_fast.data.sinks import replacing
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.training.backbones import Backbone, create_backbone
from cdul_fast.training.batches import Batches, PhotoBatches, StoredBatches
from cdul_fast.training.checkpoint import BEST, LAST, load_checkpoint, save_checkpoint, save_network
from cdul_fast.training.config import TrainConfig
from cdul_fast.training.dataset import LabelledPhotos, TrainingSet, labelled_photos, training_set
from cdul_fast.training.distributed import World, join_world, leave_world
from cdul_fast.training.features import extract_features
from cdul_fast.training.latent import LatentLabels
from cdul_fast.training.loop import Loop, LoopSettings, Network, mean_average_precision
from cdul_fast.training.methods import Method, Problem, create_method, method_class
from cdul_fast.training.model_dir import BACKBONE, ModelInfo, write_info
from cdul_fast.training.observe import observe
from cdul_fast.training.recipes import Recipe, default_budget, recipe
from cdul_fast.training.watch import Watch

logger = logging.getLogger("cdul_fast.train")


@dataclass(frozen=True)
class TrainResult:
    """What `train_on_run` did.

    Attributes:
        path: The model directory.
        history: One entry per epoch: loss, rate, and what was evaluated.
        seconds: By stage: load (waiting for photos), train, labels, evaluate, features.
        limiting_stage: The stage that took longest.
        leads: Whether this process is the first of those that trained together.
    """

    path: Path
    history: list[dict[str, Any]]
    seconds: dict[str, float]
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
        return _Session(config, world).run()
    finally:
        leave_world(world)


class _Session:
    """One call of `train_on_run` in one process."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        assert config.run is not None and config.out is not None
        self.config, self.world = config, world
        self.folder = Path(config.out)
        self.feature_seconds = 0.0

    def run(self) -> TrainResult:
        config, world = self.config, self.world
        _set_up(config)
        if world.leads:
            self._open_folder()
        world.barrier()
        chosen = _resolve(config)
        assert config.run is not None
        data = training_set(
            open_run(config.run),
            truth=config.truth,
            truth_split=config.truth_split,
            aggregator=config.aggregator,
            scale=chosen.label_scale if config.label_scale is None else config.label_scale,
            zeta=config.zeta,
            lam=config.lam,
        )
        val = None
        if config.val is not None:
            val = labelled_photos(config.val, data.classes, config.val_images, config.val_split)
        torch.manual_seed(config.seed)  # a backbone without weights starts at random
        backbone = create_backbone(config.backbone, config.weights)
        batches, val_batches = self._inputs(backbone, data, val)
        method = self._method(data, chosen.options)
        torch.manual_seed(config.seed)
        head = method.build_head(backbone.info.channels, config.dropout)
        network = Network(None if config.freeze_backbone else backbone, head, backbone.info.channels)
        network.to(world.device)
        if isinstance(batches, StoredBatches):
            network.scaling.fit(batches.features)
        if config.channels_last:
            network.to(memory_format=torch.channels_last)
        run_network = torch.compile(network) if config.compile else None
        loop = Loop(network, method, batches, _loop_settings(config, chosen), world, run_network)
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

    def _open_folder(self) -> None:
        """Make the folder, or check that what is in it began with the same settings."""
        config, folder = self.config, self.folder
        if config.overwrite and folder.exists():
            _delete_model(folder)
        folder.mkdir(parents=True, exist_ok=True)
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
                data.soft, self.folder, rank=world.rank, world=world.size, barrier=world.barrier
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
            since[0] += 1
            if since[0] >= config.checkpoint_every:
                since[0] = 0
                if world.leads:
                    save_checkpoint(last, loop)

        first = loop.method.labels().cpu().numpy().copy()
        while loop.position.epoch < loop.settings.epochs:
            start = time.perf_counter()
            loop.train_epoch(after_step)
            since[0] = 0
            more: dict[str, Any] = label_figures(loop.method.labels().cpu().numpy(), first, data.truth)
            if val is not None and val_batches is not None:
                score, per_class = mean_average_precision(
                    loop.predict(val_batches), val.truth, config.least_positives
                )
                more["map"] = score
                more["ap"] = [None if np.isnan(value) else float(value) for value in per_class]
            more["seconds"] = round(time.perf_counter() - start, 3)
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

    def _finish(self, loop: Loop, data: TrainingSet, watch: Watch) -> TrainResult:
        seconds = {"features": self.feature_seconds, **loop.seconds}
        limiting = max(seconds, key=lambda stage: seconds[stage])
        if self.world.leads:
            content = {
                "history": loop.position.history,
                "classes": list(data.classes),
                "seconds": seconds,
                "limiting_stage": limiting,
            }
            with replacing(self.folder / "history.json") as temporary:
                temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
            watch.finish()
        return TrainResult(self.folder, loop.position.history, seconds, limiting, self.world.leads)

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
        figures["label_map"] = mean_average_precision(labels, truth)[0]
    return figures


def _epoch_line(entry: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {entry['epoch']}/{epochs}", f"loss {entry['loss']:.4f}"]
    if entry.get("map") is not None:
        parts.append(f"mAP {entry['map']:.1f}")
    if entry.get("label_map") is not None:
        parts.append(f"label mAP {entry['label_map']:.1f}")
    parts.append(f"{entry['label_positives']:.2f} labels a photo, {entry['label_changed']:.2%} changed")
    return ", ".join([*parts, f"{entry['seconds']:.1f} s"])


def _resolve(config: TrainConfig) -> Recipe:
    """The recipe behind settings that were left open."""
    if config.freeze_backbone:
        return recipe(config.method)
    return Recipe(lr=1e-5, epochs=20, options=dict(recipe(config.method).options))


def _loop_settings(config: TrainConfig, chosen: Recipe) -> LoopSettings:
    frozen = config.freeze_backbone
    return LoopSettings(
        epochs=config.epochs or chosen.epochs,
        batch_size=config.batch_size or (64 if frozen else 8),
        lr=chosen.lr if config.lr is None else config.lr,
        head_lr_factor=config.head_lr_factor,
        weight_decay=chosen.weight_decay if config.weight_decay is None else config.weight_decay,
        optimizer=config.optimizer or ("adamw" if frozen else "adam"),
        schedule=config.schedule or ("cosine" if frozen else "constant"),
        warmup_share=config.warmup_share,
        ema=config.ema,
        accumulate=config.accumulate,
        precision=config.precision,
        seed=config.seed,
    )


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
    if not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise CdulError(f"{show_path(folder)} is not a model directory; --overwrite deletes only such")
    for pattern in ("*.safetensors", "latent-*", "model.json", "history.json", "observed.npz", "report.html"):
        for path in folder.glob(pattern):
            path.unlink()
    for name in ("tensorboard", "cams"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "config.json").unlink(missing_ok=True)
