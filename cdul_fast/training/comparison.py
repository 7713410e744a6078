"""The comparison of methods on equal terms: the same photos, features, soft labels and number of seeds."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdul_fast.cli import option
from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.data.sinks import replacing
from cdul_fast.errors import ConfigError
from cdul_fast.training.backbones import create_backbone
from cdul_fast.training.dataset import LabelledPhotos, TrainingSet, labelled_photos, rescored, training_set
from cdul_fast.training.features import FeatureSet, extract_features
from cdul_fast.training.heads import HeadResult, train_head
from cdul_fast.training.loop import LoopSettings
from cdul_fast.training.methods import Problem, method_class, method_names
from cdul_fast.training.model_dir import ModelInfo, write_model
from cdul_fast.training.observe import observe
from cdul_fast.training.recipes import PAPER, PAPER_DATA, Recipe, default_budget, recipe
from cdul_fast.training.zeroshot import METHOD as ZEROSHOT
from cdul_fast.training.zeroshot import VARIANTS, zeroshot_rows

logger = logging.getLogger("cdul_fast.train")

_INPUT, _TRAINING, _OUTPUT = "Input", "Training", "Output"
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
        self.method_list()
        self.seed_list()

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


@dataclass
class Bench:
    """What every method shares: training set, test set and features of both."""

    run: Run
    train: TrainingSet
    test: LabelledPhotos
    train_features: FeatureSet
    test_features: FeatureSet
    classes: tuple[str, ...]
    expected_positives: float

    def features(self, method: str, *, test: bool = False) -> Tensor:
        """Pooled features, or maps for methods that want them."""
        chosen = self.test_features if test else self.train_features
        if method_class(method).wants_maps:
            assert chosen.maps is not None
            return torch.from_numpy(chosen.maps)
        return torch.from_numpy(chosen.pooled)

    def problem(
        self, method: str, scale: float, seed: int, rows: np.ndarray | None = None, budget: str | None = None
    ) -> Problem:
        """The training set as a method may see it.

        Args:
            method: Its name, which decides the annotation budget.
            scale: Softmax scale of the soft labels.
            seed: Of the draw of observed labels.
            rows: Part of the training set; all of it when None.
            budget: Instead of the method's own.
        """
        soft = rescored(self.run, scale=scale)
        chosen = np.arange(len(soft)) if rows is None else rows
        truth = None if self.train.truth is None else self.train.truth[chosen]
        budget = budget or default_budget(method)
        observed = observe(budget, truth=truth, soft=soft[chosen], seed=seed)
        vectors = self.train.class_vectors
        return Problem(
            torch.from_numpy(soft[chosen]),
            torch.from_numpy(observed),
            budget != "none",
            self.expected_positives,
            None if vectors is None else torch.from_numpy(vectors),
        )


def prepare(config: CompareConfig) -> Bench:
    """Open or make the run, read the truth, extract (or read) the features.

    Raises:
        ConfigError: For a file that is absent or does not fit.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    run = open_run(config.run) if config.run is not None else _run_of_scores(config, out / "run")
    train = training_set(run, truth=config.truth)
    assert config.test is not None
    test = labelled_photos(config.test, train.classes)
    backbone = create_backbone(config.backbone, config.weights).eval()
    needs_maps = any(method_class(name).wants_maps for name in config.method_list())
    found = [
        extract_features(
            backbone,
            photos,
            image_size=config.image_size,
            map_grid=config.map_grid if needs_maps else None,
            cache_dir=out / "features",
            threads=config.threads,
        )
        for photos in (train.photos, test.photos)
    ]
    return Bench(run, train, test, found[0], found[1], train.classes, config.expected_positives)


def train_one(
    bench: Bench,
    method: str,
    chosen: Recipe,
    seed: int,
    *,
    rows: np.ndarray | None = None,
    batch_size: int = 64,
    least: int = 10,
) -> HeadResult:
    """Train one method with one seed on the bench's features, or on some rows of them."""
    everything = bench.features(method)
    features = everything if rows is None else everything[torch.from_numpy(rows)]
    truth = bench.train.truth
    settings = LoopSettings(
        epochs=chosen.epochs,
        batch_size=batch_size,
        lr=chosen.lr,
        weight_decay=chosen.weight_decay,
        seed=seed,
    )
    return train_head(
        features,
        bench.problem(method, chosen.label_scale, seed, rows),
        method,
        chosen.options,
        settings,
        truth=truth if rows is None or truth is None else truth[rows],
        least=least,
    )


def compare_methods(config: CompareConfig) -> list[dict[str, Any]]:
    """Train all methods with all seeds, write models and ``comparison.json``, and return the table's rows.

    Raises:
        ConfigError: For inputs that are absent or do not fit.
    """
    start = time.perf_counter()
    bench = prepare(config)
    out = Path(config.out)
    backbone_file = out / "backbone.safetensors"
    _write_backbone(config, backbone_file)
    rows: list[dict[str, Any]] = []
    for method in config.method_list():
        chosen = recipe(method)
        if config.epochs is not None:
            chosen = dataclasses.replace(chosen, epochs=config.epochs)
        runs: list[dict[str, Any]] = []
        for seed in config.seed_list():
            result = train_one(
                bench, method, chosen, seed, batch_size=config.batch_size, least=config.least_positives
            )
            score, per_class = result.test(
                bench.features(method, test=True), bench.test.truth, config.least_positives
            )
            runs.append(
                {
                    "seed": seed,
                    "map": score,
                    "labels_before": result.labels_before,
                    "labels_after": result.labels_after,
                    "seconds": round(result.seconds, 2),
                    "ap": [None if np.isnan(value) else round(float(value), 2) for value in per_class],
                }
            )
            _keep(config, bench, method, chosen, seed, result, backbone_file)
        row: dict[str, Any] = {"method": method, "budget": default_budget(method), "runs": runs}
        row["map_mean"] = float(np.mean([run["map"] for run in runs]))
        row["map_spread"] = float(np.std([run["map"] for run in runs], ddof=1)) if len(runs) > 1 else 0.0
        rows.append(row)
        print(_line(row), file=sys.stderr, flush=True)
    if config.zeroshot:
        found = zeroshot_rows(
            bench.run,
            bench.test,
            config.least_positives,
            test_run=config.test_run,
            folder=out / "zeroshot",
            threads=config.threads,
        )
        for row in found:
            print(_line(row), file=sys.stderr, flush=True)
        rows += found
    result_file = {
        "config": dataclasses.asdict(config),
        "classes": list(bench.classes),
        "seconds": round(time.perf_counter() - start, 1),
        "feature_seconds": [bench.train_features.seconds, bench.test_features.seconds],
        "rows": rows,
    }
    with replacing(out / "comparison.json") as temporary:
        temporary.write_text(json.dumps(result_file, indent=1), encoding="utf-8")
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The comparison as a Markdown table in the layout of the paper's, the published figures beside it."""
    titles = {"all": "full", "10%": "10 % of labels", "one": "one observed label", "none": "none"}
    head = ["supervision", "method", "test mAP", "pseudo labels before", "after"]
    head += [f"paper, {name}" for name in PAPER_DATA.values()]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        if row["method"] == ZEROSHOT:
            lines.append(_zeroshot_line(row))
            continue
        title, published = PAPER[row["method"]]
        before = float(np.mean([run["labels_before"] for run in row["runs"]]))
        after = float(np.mean([run["labels_after"] for run in row["runs"]]))
        soft = row["method"] in ("soft", "cdul")
        cells = [
            titles.get(row["budget"], row["budget"]),
            f"{title} (`{row['method']}`)",
            f"{row['map_mean']:.1f} ± {row['map_spread']:.1f}",
            f"{before:.1f}" if soft else "",
            f"{after:.1f}" if row["budget"] != "all" else "",
            *(f"{published[key]:.1f}" if key in published else "-" for key in PAPER_DATA),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _zeroshot_line(row: Mapping[str, Any]) -> str:
    missing = row.get("missing")
    title = "CLIP alone" if missing else VARIANTS[row["variant"]]
    figure = f"not available: {missing}" if missing else f"{row['map_mean']:.1f}"
    cells = [
        "none",
        f"{title} (`{ZEROSHOT}`)",
        figure.replace("|", "\\|"),
        "",
        "",
        *("-" for _ in PAPER_DATA),
    ]
    return "| " + " | ".join(cells) + " |"


def _line(row: Mapping[str, Any]) -> str:
    if row["method"] == ZEROSHOT:
        return f"{ZEROSHOT:12} " + (row.get("missing") or f"{row['map_mean']:5.1f} ({row['variant']})")
    seconds = sum(run["seconds"] for run in row["runs"])
    return f"{row['method']:12} {row['map_mean']:5.1f} +- {row['map_spread']:.1f}  ({seconds:.0f} s)"


def _run_of_scores(config: CompareConfig, folder: Path) -> Run:
    """The run directory of cached cosines, made on first use."""
    assert config.scores is not None
    source = Path(config.scores)
    if not source.is_file():
        raise ConfigError(f"--scores {source}: no such file")
    if (folder / "run.json").is_file():
        return open_run(folder)
    from cdul_fast.data import from_cosines

    if folder.exists():
        shutil.rmtree(folder)
    with np.load(source) as stored:
        absent = [
            name
            for name in ("ids", "classes", "global_cos", "local_max_cos", "local_min_cos")
            if name not in stored
        ]
        if absent:
            raise ConfigError(f"--scores {source}: has no array {absent[0]!r}")
        run: Run = from_cosines(
            [str(name) for name in stored["ids"]],
            [str(name) for name in stored["classes"]],
            stored["global_cos"],
            stored["local_max_cos"],
            stored["local_min_cos"],
            config.photos,
            folder,
        )
    return run


def _write_backbone(config: CompareConfig, path: Path) -> None:
    from safetensors.torch import save_file

    backbone = create_backbone(config.backbone, config.weights)
    with replacing(path) as temporary:
        save_file(dict(backbone.state_dict()), temporary)


def _keep(
    config: CompareConfig,
    bench: Bench,
    method: str,
    chosen: Recipe,
    seed: int,
    result: HeadResult,
    backbone_file: Path,
) -> None:
    """Write one model; all models share the backbone's file."""
    folder = Path(config.out) / f"{method}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "backbone.safetensors"
    target.unlink(missing_ok=True)
    try:
        os.link(backbone_file, target)
    except OSError:
        shutil.copyfile(backbone_file, target)
    info = ModelInfo(
        classes=bench.classes,
        backbone=config.backbone,
        method=method,
        options=dict(chosen.options),
        image_size=config.image_size,
        fit="squash",
        frozen=True,
        map_grid=config.map_grid,
        class_vector_size=0 if bench.train.class_vectors is None else bench.train.class_vectors.shape[1],
    )
    write_model(folder, info, result.loop.best_network)
