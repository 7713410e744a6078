"""Settings of the compare command."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from cdul_fast.cli import option
from cdul_fast.data.paths import one_line
from cdul_fast.errors import ConfigError
from cdul_fast.training.config import FeatureScaling, Precision
from cdul_fast.training.methods import method_names
from cdul_fast.training.recipes import Recipe, recipe

_INPUT, _TRAINING, _FINETUNE, _OUTPUT = "Input", "Training", "With --finetune", "Output"
_ORDER = (
    *("bce_ls", "bce", "sarb", "asl", "sst", "ll_r", "ll_ct", "ll_cp", "g2netpl"),
    *("an", "an_ls", "wan", "partial_bce", "epr", "role", "soft", "cdul"),
)


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Train every method on the same frozen features with several seeds, and print the comparison table."""

    run: str | None = option(
        None, "run directory with the soft labels of the training photos", group=_INPUT, example="--run run/"
    )
    scores: str | None = option(
        None,
        "instead of a run: npz file of cached CLIP cosines (ids, classes, global_cos, local_max_cos, "
        "local_min_cos); it becomes a run directory in --out",
        group=_INPUT,
        example="--scores scores.npz",
    )
    photos: str | None = option(
        None, "folder of the training photos that --scores names", group=_INPUT, example="--photos train/"
    )
    truth: str | None = option(
        None, "CSV with the true labels of the training photos", group=_INPUT, example="--truth train.csv"
    )
    test: str | None = option(
        None, "CSV with the true labels of the test photos", group=_INPUT, example="--test test.csv"
    )
    zeroshot: bool = option(
        True, "also judge CLIP alone on the test photos", group=_INPUT, example="--no-zeroshot"
    )
    test_run: str | None = option(
        None,
        "run directory that label made of the test photos, for --zeroshot; without it they are labelled as "
        "the training photos were, where that can be done",
        group=_INPUT,
        example="--test-run runs/test",
    )
    least_positives: int = option(
        10,
        "classes with fewer positives among the test photos are not judged",
        group=_INPUT,
        unit="photos",
        example="--least-positives 20",
    )
    methods: str = option(
        "all", "methods to compare, joined by commas", group=_TRAINING, example="--methods cdul,soft,an"
    )
    seeds: str = option("0,1,2", "seeds, joined by commas", group=_TRAINING, example="--seeds 0,1")
    epochs: int | None = option(
        None,
        "epochs of every method; without it each recipe's own",
        group=_TRAINING,
        unit="epochs",
        example="--epochs 10",
    )
    options: str | None = option(
        None,
        "settings of methods instead of the recipes', method.name=value joined by commas",
        group=_TRAINING,
        example="--options cdul.warmup=2,cdul.step=0.1",
    )
    recipes: str | None = option(
        None,
        "JSON file with the settings of every method, instead of the shipped recipes: the record of "
        "benchmarks.training_sweep, whose best trials are taken",
        group=_TRAINING,
        example="--recipes sweep.json",
    )
    feature_scaling: FeatureScaling = option(
        "standardise",
        "standardise each channel of the frozen features by the training photos, or none for features as the "
        "backbone gives them",
        group=_TRAINING,
        example="--feature-scaling none",
    )
    batch_size: int = option(64, "photos a step", group=_TRAINING, unit="photos", example="--batch-size 128")
    expected_positives: float = option(
        1.5,
        "positives a photo that EPR, ROLE and G2NetPL expect (the paper has 1.5 on VOC 2012)",
        group=_TRAINING,
        example="--expected-positives 2.9",
    )
    backbone: str = option(
        "efficientnet_lite0", "timm or torchvision model", group=_TRAINING, example="--backbone resnet50"
    )
    weights: str = option("auto", "auto, none or a weights file", group=_TRAINING, example="--weights none")
    image_size: int = option(
        256, "side of the backbone's input", group=_TRAINING, unit="pixels", example="--image-size 224"
    )
    map_grid: int = option(
        4,
        "side of the stored feature maps (SST and SARB)",
        group=_TRAINING,
        unit="cells",
        example="--map-grid 7",
    )
    finetune: bool = option(
        False,
        "train the whole network end to end instead of a head on frozen features",
        group=_FINETUNE,
        example="--finetune",
    )
    lr: float = option(3e-4, "learning rate of AdamW", group=_FINETUNE, example="--lr 1e-4")
    head_lr_factor: float = option(
        10.0, "the head learns at --lr times this", group=_FINETUNE, example="--head-lr-factor 1"
    )
    weight_decay: float = option(
        0.05, "decoupled weight decay", group=_FINETUNE, example="--weight-decay 0.01"
    )
    crop_scale: float = option(
        1.0,
        "smallest share of a photo's area that a random training crop keeps; 1 for none",
        group=_FINETUNE,
        example="--crop-scale 0.5",
    )
    precision: Precision = option(
        "auto",
        "arithmetic of the network in training; auto as in the train command",
        group=_FINETUNE,
        example="--precision fp32",
    )

    out: str = option(
        "build/compare", "folder for models and results", group=_OUTPUT, example="--out build/other"
    )
    threads: int | None = option(
        None,
        "CPU threads; without it all cores",
        group=_OUTPUT,
        unit="threads",
        example="--threads 4",
        free=True,
    )

    def __post_init__(self) -> None:
        """Refuse what cannot be run, naming the flag."""
        if (self.run is None) == (self.scores is None):
            raise ConfigError("give --run or --scores, one of the two")
        if self.scores is not None and self.photos is None:
            raise ConfigError("--scores needs --photos, the folder of the photos it names")
        if self.truth is None or self.test is None:
            raise ConfigError("--truth and --test are needed: CSV files with the true labels")
        if self.finetune and self.epochs is None:
            raise ConfigError(
                "--finetune needs --epochs: the recipes' are those of a head on frozen features"
            )
        self.method_list()
        self.seed_list()
        self.own_options()

    def method_list(self) -> tuple[str, ...]:
        """The methods, in the order of the table."""
        names = list(_ORDER) if self.methods == "all" else [m.strip() for m in self.methods.split(",")]
        for name in names:
            if name not in method_names():
                raise ConfigError(f"--methods wants names among {', '.join(method_names())}; got {name!r}")
        return tuple(sorted(names, key=_ORDER.index))

    def seed_list(self) -> tuple[int, ...]:
        """The seeds."""
        try:
            return tuple(int(seed) for seed in self.seeds.split(","))
        except ValueError:
            raise ConfigError(f"--seeds wants whole numbers joined by commas, got {self.seeds!r}") from None

    def own_options(self) -> dict[str, dict[str, str]]:
        """The settings of ``--options`` by method."""
        found: dict[str, dict[str, str]] = {}
        for part in (self.options or "").split(","):
            if part.strip():
                target, equals, value = part.partition("=")
                method, dot, name = target.strip().partition(".")
                if not (equals and dot and name and value.strip()) or method not in method_names():
                    raise ConfigError(
                        f"--options wants method.name=value joined by commas, got {part.strip()!r}"
                    )
                found.setdefault(method, {})[name] = value.strip()
        return found

    def recipe(self, method: str) -> Recipe:
        """The recipe of a method with what was given in its place.

        Raises:
            ConfigError: The file of ``--recipes`` has none, or was measured with other features.
        """
        known = recipe(method) if self.recipes is None else self._swept(method)
        return dataclasses.replace(
            known,
            epochs=known.epochs if self.epochs is None else self.epochs,
            options={**known.options, **self.own_options().get(method, {})},
        )

    def _swept(self, method: str) -> Recipe:
        """The best trial of a method in the record of a sweep."""
        assert self.recipes is not None
        try:
            record = json.loads(Path(self.recipes).read_text(encoding="utf-8"))
            scaling, trials = record["feature_scaling"], record["methods"][method]["trials"]
            best = max(trials, key=lambda trial: sum(trial["validation"]) / len(trial["validation"]))
            found = Recipe(**{field.name: best[field.name] for field in dataclasses.fields(Recipe)})
        except OSError as error:
            raise ConfigError(f"--recipes {self.recipes}: {error.strerror}") from None
        except (KeyError, TypeError, ValueError, ZeroDivisionError, RecursionError):
            raise ConfigError(
                f"--recipes {one_line(self.recipes, 100)} has no trials of {method}; "
                "python -m benchmarks.training_sweep writes such files"
            ) from None
        if scaling != self.feature_scaling:
            raise ConfigError(
                f"--recipes {one_line(self.recipes, 100)} was measured with --feature-scaling "
                f"{one_line(str(scaling), 50)}, this is {self.feature_scaling}"
            )
        return found
