"""Settings of the train command: one flat frozen dataclass, documented field by field."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from cdul_fast.cli import option
from cdul_fast.data.datasets import Difficult
from cdul_fast.errors import ConfigError

_INPUT, _LABELS, _METHOD = "Input", "Labels", "Method"
_NETWORK, _TRAINING, _OUTPUT, _RUNNING = "Network", "Training", "Output", "Running"

Precision = Literal["auto", "fp32", "bf16", "fp16"]
FeatureScaling = Literal["standardise", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a classifier on the photos and soft labels of a labelled run, without annotations.

    Raises:
        ConfigError: A value is out of range; the message names the flag.
    """

    run: str | None = option(None, "run directory that label wrote", group=_INPUT, example="run/")
    truth: str | None = option(
        None,
        "true labels of the training photos (CSV, VOC folder, COCO file, NUS-WIDE folder): shows how the "
        "labels move, and pays for --observe",
        group=_INPUT,
        example="--truth train.csv",
    )
    truth_split: str | None = option(
        None, "split of a VOC or NUS-WIDE --truth", group=_INPUT, example="--truth-split train"
    )
    val: str | None = option(
        None,
        "photos with true labels to evaluate on each epoch: CSV, VOC folder, COCO file, NUS-WIDE folder",
        group=_INPUT,
        example="--val val.csv",
    )
    val_split: str | None = option(
        None, "split of a VOC or NUS-WIDE --val", group=_INPUT, example="--val-split val"
    )
    val_images: str | None = option(
        None,
        "folder of --val's photos, where it is not beside the CSV",
        group=_INPUT,
        example="--val-images val/",
    )
    least_positives: int = option(
        1,
        "classes with fewer positives in --val are not judged",
        group=_INPUT,
        unit="photos",
        example="--least-positives 10",
    )

    difficult: Difficult = option(
        "absent",
        "what a VOC class counts as in --truth and --val where all its objects are marked difficult",
        group=_INPUT,
        example="--difficult present",
    )

    drop_unlabelled: bool = option(
        False,
        "leave out photos that have none of the classes, by --val and by --truth (as the paper does on COCO)",
        group=_INPUT,
        example="--drop-unlabelled",
    )

    aggregator: Literal["global", "mean", "max", "cdul"] | None = option(
        None,
        "compute soft labels anew from the stored cosines; without it the run's own",
        group=_LABELS,
        example="--aggregator mean",
    )
    label_scale: float | None = option(
        None,
        "softmax scale of the soft labels; without it the run's own, with --freeze-backbone times what the "
        "measured recipe has (2 for cdul)",
        group=_LABELS,
        example="--label-scale 50",
    )
    zeta: float | None = option(
        None, "bound of the aggregator; without it the run's own", group=_LABELS, example="--zeta 0.5"
    )
    lam: float | None = option(
        None,
        "fusion of global and local scores; without it the run's own",
        group=_LABELS,
        example="--lam 0.5",
    )
    observe: str | None = option(
        None,
        "true labels the method may see: none, one (a positive a photo), a percentage of all labels, all; "
        "without it what the method's row of the paper's table has",
        group=_LABELS,
        example="--observe 10%",
    )

    method: str = option("cdul", "training method", group=_METHOD, example="--method soft")
    method_options: str | None = option(
        None,
        "the method's own settings, name=value joined by commas",
        group=_METHOD,
        example="--method-options sigma=0.3,step=0.1",
    )
    expected_positives: float = option(
        1.5,
        "positives a photo that EPR, ROLE and G2NetPL expect",
        group=_METHOD,
        unit="labels",
        example="--expected-positives 2.9",
    )

    backbone: str = option(
        "resnet101", "timm or torchvision model", group=_NETWORK, example="--backbone efficientnet_lite0"
    )
    weights: str = option(
        "auto",
        "auto (packaged or hub), none, or a weights file",
        group=_NETWORK,
        example="--weights r101.pth",
    )
    freeze_backbone: bool = option(
        False, "extract features once and train the head alone", group=_NETWORK, example="--freeze-backbone"
    )
    image_size: int = option(
        448, "side of the network's input", group=_NETWORK, unit="pixels", example="--image-size 224"
    )
    fit: Literal["squash", "center_crop", "letterbox"] = option(
        "squash", "how a photo becomes a square", group=_NETWORK, example="--fit center_crop"
    )
    map_grid: int = option(
        4,
        "side of stored feature maps (SST and SARB with --freeze-backbone)",
        group=_NETWORK,
        unit="cells",
        example="--map-grid 7",
    )
    feature_scaling: FeatureScaling = option(
        "standardise",
        "with --freeze-backbone: standardise each channel of the features by the training photos, or none to "
        "take them as the backbone gives them",
        group=_NETWORK,
        example="--feature-scaling none",
    )
    dropout: float = option(0.0, "dropout before the classifier", group=_NETWORK, example="--dropout 0.5")
    channels_last: bool | None = option(
        None,
        "keep photos and weights in the memory layout that convolutions like; without it, where much of the "
        "backbone is convolutions",
        group=_NETWORK,
        example="--no-channels-last",
    )
    compile: bool = option(
        False, "compile the network with torch.compile", group=_NETWORK, example="--compile"
    )

    epochs: int | None = option(
        None,
        "epochs; without it 20, or the measured recipe's with --freeze-backbone",
        group=_TRAINING,
        unit="epochs",
        example="--epochs 10",
    )
    batch_size: int | None = option(
        None,
        "photos a step, all processes together; without it 8, or 64 with --freeze-backbone",
        group=_TRAINING,
        unit="photos",
        example="--batch-size 32",
    )
    accumulate: int = option(
        1, "batches whose gradients make one step", group=_TRAINING, unit="batches", example="--accumulate 4"
    )
    optimizer: Literal["adam", "adamw", "sgd"] | None = option(
        None, "without it adam, or adamw with --freeze-backbone", group=_TRAINING, example="--optimizer sgd"
    )
    lr: float | None = option(
        None,
        "learning rate; without it 1e-5, or the measured recipe's with --freeze-backbone",
        group=_TRAINING,
        example="--lr 1e-4",
    )
    head_lr_factor: float = option(
        1.0, "the head learns at --lr times this", group=_TRAINING, example="--head-lr-factor 10"
    )
    weight_decay: float | None = option(
        None,
        "without it 0, or the measured recipe's with --freeze-backbone",
        group=_TRAINING,
        example="--weight-decay 1e-4",
    )
    schedule: Literal["constant", "cosine", "step"] | None = option(
        None,
        "learning rate over time; without it constant, or cosine with --freeze-backbone",
        group=_TRAINING,
        example="--schedule cosine",
    )
    warmup_share: float = option(
        0.0, "share of all steps over which the rate rises", group=_TRAINING, example="--warmup-share 0.05"
    )
    ema: float = option(
        0.0, "decay of the moving average of weights; 0 for none", group=_TRAINING, example="--ema 0.999"
    )
    precision: Precision = option(
        "auto",
        "arithmetic of the network in training; auto takes bf16 where the processor or GPU computes in it, "
        "fp16 on older GPUs, else fp32, and fp32 with --freeze-backbone",
        group=_TRAINING,
        example="--precision fp32",
    )
    flip: bool = option(True, "flip training photos at random", group=_TRAINING, example="--no-flip")
    crop_scale: float = option(
        1.0,
        "smallest share of a photo's area that a random training crop keeps; 1 for none",
        group=_TRAINING,
        example="--crop-scale 0.3",
    )

    out: str | None = option(
        None, "folder of the model; unfinished training in it goes on", group=_OUTPUT, example="--out model/"
    )
    overwrite: bool = option(
        False,
        "delete the model in --out and start again",
        group=_OUTPUT,
        example="--overwrite",
        free=True,
    )
    checkpoint_every: int = option(
        200,
        "steps between checkpoints; one is written after each epoch too",
        group=_OUTPUT,
        unit="steps",
        example="--checkpoint-every 50",
        free=True,
    )
    tensorboard: bool = option(
        True,
        "write TensorBoard logs, where it is installed",
        group=_OUTPUT,
        example="--no-tensorboard",
        free=True,
    )
    cam_photos: int = option(
        4,
        "photos whose class activation maps are kept",
        group=_OUTPUT,
        unit="photos",
        example="--cam-photos 8",
        free=True,
    )
    cam_every: int = option(
        5,
        "epochs between class activation maps",
        group=_OUTPUT,
        unit="epochs",
        example="--cam-every 1",
        free=True,
    )
    report: bool = option(
        True,
        "write report.html at the end",
        group=_OUTPUT,
        example="--no-report",
        free=True,
    )
    cache_dir: str | None = option(
        None,
        "folder for extracted features; without it features/ in --out",
        group=_OUTPUT,
        example="--cache-dir cache/",
        free=True,
    )

    seed: int = option(0, "decides every random draw", group=_RUNNING, example="--seed 1")
    deterministic: bool = option(
        False,
        "the same weights every time, on the same machine with the same threads",
        group=_RUNNING,
        example="--deterministic",
    )
    device: Literal["auto", "cpu", "cuda"] = option(
        "auto",
        "where to train",
        group=_RUNNING,
        example="--device cpu",
        free=True,
    )
    threads: int | None = option(
        None,
        "CPU threads; without it all cores",
        group=_RUNNING,
        unit="threads",
        example="--threads 4",
        free=True,
    )
    dry_run: bool = option(
        False,
        "open the data, show the plan and stop",
        group=_RUNNING,
        example="--dry-run",
        free=True,
    )
    quiet: bool = option(
        False,
        "no line per epoch",
        group=_RUNNING,
        example="--quiet",
        free=True,
    )
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info",
        "detail of train.log; debug also shows tracebacks",
        group=_RUNNING,
        example="--log-level debug",
        free=True,
    )

    def __post_init__(self) -> None:
        """Refuse values out of range, naming the flag."""
        from cdul_fast.training.methods import method_names

        for name, low, high in _RANGES:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} wants a value from {low:g} to {high:g}, got {value!r}")
        if self.run is None:
            raise ConfigError("the run directory is missing: python -m cdul_fast.train run/ --out model/")
        if self.out is None:
            raise ConfigError("--out is missing: the folder for the model")
        if self.method not in method_names():
            raise ConfigError(f"--method wants one of {', '.join(method_names())}; got {self.method!r}")
        if self.compile and self.freeze_backbone:
            raise ConfigError(
                "--compile is for a backbone that trains; with --freeze-backbone only a head does"
            )
        self.own_options()

    def own_options(self) -> dict[str, str]:
        """The method's own settings as given."""
        found: dict[str, str] = {}
        for part in (self.method_options or "").split(","):
            if part.strip():
                name, equals, value = part.partition("=")
                if not equals or not value.strip():
                    raise ConfigError(f"--method-options wants name=value joined by commas, got {part!r}")
                found[name.strip()] = value.strip()
        return found

    @classmethod
    def fixed_fields(cls) -> tuple[str, ...]:
        """Names of the settings that resumed training must share with what it continues."""
        return tuple(field.name for field in dataclasses.fields(cls) if not field.metadata["free"])

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain values."""
        return dataclasses.asdict(self)


# Field, lowest and highest allowed value (both included).
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("least_positives", 1, 2**31),
    ("label_scale", 1e-6, 1e6),
    ("zeta", 0, 1),
    ("lam", -1, 1),
    ("expected_positives", 0, 1e6),
    ("image_size", 32, 4096),
    ("map_grid", 0, 256),
    ("dropout", 0, 0.99),
    ("epochs", 1, 100_000),
    ("batch_size", 1, 65_536),
    ("accumulate", 1, 4096),
    ("lr", 0, 100),
    ("head_lr_factor", 0, 1e6),
    ("weight_decay", 0, 100),
    ("warmup_share", 0, 0.99),
    ("ema", 0, 0.999999),
    ("crop_scale", 0.01, 1),
    ("checkpoint_every", 1, 2**31),
    ("cam_photos", 0, 1000),
    ("cam_every", 1, 100_000),
    ("seed", 0, 2**31 - 1),
    ("threads", 1, 1024),
)
