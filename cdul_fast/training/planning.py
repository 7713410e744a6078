"""What training would do, as text for ``--dry-run``: data and settings are opened, nothing is trained."""

from __future__ import annotations

import numpy as np

from cdul_fast.data.paths import one_line, show_path
from cdul_fast.training.config import TrainConfig
from cdul_fast.training.dataset import open_photos
from cdul_fast.training.recipes import default_budget, loop_settings, resolved_recipe


def plan(config: TrainConfig) -> str:
    """What `train_on_run` would do with these settings.

    Raises:
        ConfigError: A setting is wrong, or a data set lacks a file.
        CdulError: The run holds nothing to train on.
    """
    chosen = resolved_recipe(config)
    data, val = open_photos(config, chosen.label_scale)
    settings = loop_settings(config, chosen)
    steps = -(-len(data.photos) // (settings.batch_size * settings.accumulate))
    frozen = ", frozen" if config.freeze_backbone else ""
    lines = [
        f"{len(data.photos)} photos of {show_path(config.run or '')}, "
        f"{data.soft.sum(axis=1).mean():.2f} soft labels each",
        f"{len(data.classes)} classes: {one_line(', '.join(data.classes), 100)}",
        f"method {config.method}, true labels it may see: {config.observe or default_budget(config.method)}",
        f"{config.backbone} (weights: {config.weights}{frozen}) at {config.image_size} pixels",
        f"{settings.epochs} epochs of {steps} steps, {settings.optimizer}, rate {settings.lr:g} "
        f"({settings.schedule}), into {show_path(config.out or '')}",
    ]
    if config.truth is not None and data.truth is not None:
        judged = int((data.truth != -1).any(axis=1).sum())
        lines.append(f"truth of {judged} of these photos from {show_path(config.truth)}")
    if config.val is not None and val is not None:
        positives = (val.truth == 1).sum(axis=0)
        few = int(np.count_nonzero(positives < config.least_positives))
        lines.append(
            f"{len(val.photos)} photos to evaluate on from {show_path(config.val)}"
            + (f"; {few} classes have too few positives there" if few else "")
        )
    return "\n".join(lines)
