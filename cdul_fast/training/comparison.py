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

from cdul_fast.data.run_dir import Run, open_run
from cdul_fast.data.sinks import replacing
from cdul_fast.errors import ConfigError
from cdul_fast.execution.run_log import versions
from cdul_fast.training.backbones import create_backbone
from cdul_fast.training.compare_config import CompareConfig
from cdul_fast.training.dataset import (
    LabelledPhotos,
    TrainingSet,
    labelled_photos,
    recipe_scale,
    rescored,
    training_set,
)
from cdul_fast.training.features import FeatureSet, extract_features
from cdul_fast.training.finetune import finetune
from cdul_fast.training.heads import HeadResult, train_head
from cdul_fast.training.loop import LoopSettings
from cdul_fast.training.methods import Problem, method_class
from cdul_fast.training.model_dir import BACKBONE, ModelInfo, write_model
from cdul_fast.training.observe import observe
from cdul_fast.training.recipes import PAPER, PAPER_DATA, Recipe, default_budget
from cdul_fast.training.zeroshot import METHOD as ZEROSHOT
from cdul_fast.training.zeroshot import VARIANTS, zeroshot_rows

logger = logging.getLogger("cdul_fast.train")


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
    standardise: bool = True

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
            scale: Softmax scale of the soft labels, for a run whose own scale is 100 (`recipe_scale`).
            seed: Of the draw of observed labels.
            rows: Part of the training set; all of it when None.
            budget: Instead of the method's own.
        """
        soft = rescored(self.run, scale=recipe_scale(self.run, scale))
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


def open_data(config: CompareConfig) -> tuple[Run, TrainingSet, LabelledPhotos]:
    """The run (made first where only scores are given), its training set, and the test set.

    Raises:
        ConfigError: For a file that is absent or does not fit.
    """
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    run = open_run(config.run) if config.run is not None else _run_of_scores(config, out / "run")
    train = training_set(run, truth=config.truth)
    assert config.test is not None
    return run, train, labelled_photos(config.test, train.classes)


def prepare(config: CompareConfig) -> Bench:
    """Open or make the run, read the truth, extract (or read) the features.

    Raises:
        ConfigError: For a file that is absent or does not fit.
    """
    run, train, test = open_data(config)
    out = Path(config.out)
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
    scaled = config.feature_scaling == "standardise"
    return Bench(run, train, test, found[0], found[1], train.classes, config.expected_positives, scaled)


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
        standardise=bench.standardise,
    )


def compare_methods(config: CompareConfig) -> list[dict[str, Any]]:
    """Train all methods with all seeds, write models and ``comparison.json``, and return the table's rows.

    Raises:
        ConfigError: For inputs that are absent or do not fit.
    """
    start = time.perf_counter()
    out = Path(config.out)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    bench = None
    if config.finetune:
        run, train, test = open_data(config)
    else:
        bench = prepare(config)
        run, train, test = bench.run, bench.train, bench.test
        _write_backbone(config, out / BACKBONE)
    rows: list[dict[str, Any]] = []
    for method in config.method_list():
        chosen = config.recipe(method)
        runs: list[dict[str, Any]] = []
        for seed in config.seed_list():
            if bench is None:
                runs.append(finetune(config, run, test, method, chosen, seed))
            else:
                runs.append(_train_and_test(config, bench, method, chosen, seed))
        row: dict[str, Any] = {"method": method, "budget": default_budget(method), "runs": runs}
        row["map_mean"] = float(np.mean([run["map"] for run in runs]))
        row["map_spread"] = float(np.std([run["map"] for run in runs], ddof=1)) if len(runs) > 1 else 0.0
        rows.append(row)
        print(_line(row), file=sys.stderr, flush=True)
    if config.zeroshot:
        found = zeroshot_rows(
            run,
            test,
            config.least_positives,
            test_run=config.test_run,
            folder=out / "zeroshot",
            threads=config.threads,
        )
        for row in found:
            print(_line(row), file=sys.stderr, flush=True)
        rows += found
    result_file: dict[str, Any] = {
        "config": dataclasses.asdict(config),
        "classes": list(train.classes),
        "seconds": round(time.perf_counter() - start, 1),
        "versions": versions(),
        "rows": rows,
    }
    if bench is not None:
        result_file["feature_seconds"] = [bench.train_features.seconds, bench.test_features.seconds]
    with replacing(out / "comparison.json") as temporary:
        temporary.write_text(json.dumps(result_file, indent=1), encoding="utf-8")
    return rows


def _train_and_test(
    config: CompareConfig, bench: Bench, method: str, chosen: Recipe, seed: int
) -> dict[str, Any]:
    """One training on the bench's features, its figures, and its model in ``config.out``."""
    least = config.least_positives
    result = train_one(bench, method, chosen, seed, batch_size=config.batch_size, least=least)
    score, per_class = result.test(bench.features(method, test=True), bench.test.truth, least)
    _keep(config, bench, method, chosen, seed, result, Path(config.out) / BACKBONE)
    return {
        "seed": seed,
        "map": score,
        "labels_before": result.labels_before,
        "labels_after": result.labels_after,
        "seconds": round(result.seconds, 2),
        "ap": [None if np.isnan(value) else round(float(value), 2) for value in per_class],
    }


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
    target = folder / BACKBONE
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
