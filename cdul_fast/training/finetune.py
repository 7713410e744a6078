"""The comparison with networks trained end to end: every method through the train and predict commands' code.

The test photos are scored once, with the last weights; no epoch is chosen by them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from cdul_fast.data.run_dir import Run
from cdul_fast.predict_config import PredictConfig
from cdul_fast.training.compare_config import CompareConfig
from cdul_fast.training.config import TrainConfig
from cdul_fast.training.dataset import LabelledPhotos, recipe_scale, rescored, training_set, write_list
from cdul_fast.training.loop import mean_average_precision
from cdul_fast.training.predicting import predict_photos
from cdul_fast.training.recipes import Recipe
from cdul_fast.training.runner import train_on_run


def finetune(
    config: CompareConfig, run: Run, test: LabelledPhotos, method: str, chosen: Recipe, seed: int
) -> dict[str, Any]:
    """Train one method with one seed end to end and score the test photos.

    The model goes to ``<method>-seed<k>/`` in ``config.out``, its predictions to ``test/`` in there; both go
    on where an earlier call stopped.

    Returns:
        What the comparison keeps of a training: mAP and AP on the test photos, mAP of the labels before and
        after (over all classes that occur), and of the training its time by stage.
    """
    folder = Path(config.out) / f"{method}-seed{seed}"
    given = ",".join(f"{name}={value}" for name, value in chosen.options.items())
    scale = recipe_scale(run, chosen.label_scale)
    trained = train_on_run(
        TrainConfig(
            run=str(run.path),
            truth=config.truth,
            label_scale=scale,
            method=method,
            method_options=given or None,
            expected_positives=config.expected_positives,
            backbone=config.backbone,
            weights=config.weights,
            image_size=config.image_size,
            epochs=config.epochs,
            batch_size=config.batch_size,
            optimizer="adamw",
            lr=config.lr,
            head_lr_factor=config.head_lr_factor,
            weight_decay=config.weight_decay,
            schedule="cosine",
            precision=config.precision,
            crop_scale=config.crop_scale,
            tensorboard=False,
            cam_photos=0,
            report=False,
            out=str(folder),
            seed=seed,
            threads=config.threads,
        )
    )
    listed = folder / "test.list"
    write_list(listed, test.photos)
    scored = predict_photos(
        PredictConfig(
            model=str(folder),
            which="last",
            list=str(listed),
            out=str(folder / "test"),
            precision="fp32",
            threads=config.threads,
            report=False,
            quiet=True,
        )
    )
    _, scores = scored.run.scores()
    score, per_class = mean_average_precision(scores, test.truth, config.least_positives)
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    truth = training_set(run, truth=config.truth).truth
    assert truth is not None
    print(f"{method} seed {seed}: {score:.1f}", file=sys.stderr, flush=True)
    return {
        "seed": seed,
        "map": score,
        "labels_before": mean_average_precision(rescored(run, scale=scale), truth)[0],
        "labels_after": trained.history[-1]["label_map"],
        "seconds": record["seconds"],
        "stages": record["stages"],
        "limiting_stage": record["limiting_stage"],
        "images_per_second": record["images_per_second"],
        "threads": record["threads"],
        "epochs": len(trained.history),
        "losses": [round(entry["loss"], 4) for entry in trained.history],
        "ap": [None if np.isnan(value) else round(float(value), 2) for value in per_class],
    }
