"""Measured defaults: what each method trains best with on stored features, and its row of the paper's table.

Every method had the same number of trials on a validation part of the training photos (never on the test
photos); grid, outcome and evidence are in benchmarks/NOTES.md, section "Training".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cdul_fast.training.loop import LoopSettings
from cdul_fast.training.methods import method_class

if TYPE_CHECKING:
    from cdul_fast.training.config import TrainConfig


@dataclass(frozen=True)
class Recipe:
    """Settings of a method for a linear (or semantic) head on frozen features.

    Attributes:
        lr: Base learning rate of AdamW.
        weight_decay: Decoupled weight decay.
        label_scale: Softmax scale of the pseudo labels where CLIP's own is 100, as it was in the measurement;
            in proportion elsewhere. Only methods that use soft labels mind it.
        epochs: Epochs; 60 for linear heads, fewer where a step costs more.
        options: The method's own settings.
    """

    lr: float = 1e-3
    weight_decay: float = 0.0
    label_scale: float = 100.0
    epochs: int = 60
    options: dict[str, Any] = field(default_factory=dict)


RECIPES: dict[str, Recipe] = {
    "bce_ls": Recipe(0.0003, 10.0, 100.0, 60, {"smoothing": 0.1}),
    "bce": Recipe(0.0003, 10.0, 100.0, 60, {}),
    "sarb": Recipe(
        0.003,
        0.3,
        100.0,
        8,
        {
            "start": 5,
            "width": 256,
            "contrastive_weight": 0.05,
            "instance_weight": 0.1,
            "prototype_weight": 0.1,
        },
    ),
    "asl": Recipe(0.0015, 0.6, 100.0, 60, {"gamma_negative": 8.0, "margin": 0.1, "unknown_negative": False}),
    "sst": Recipe(
        0.003, 6.0, 100.0, 8, {"start": 3, "width": 512, "cooccurrence_weight": 0.1, "margin": 0.95}
    ),
    "ll_r": Recipe(0.003, 0.3, 100.0, 60, {"delta": 0.0005}),
    "ll_ct": Recipe(0.0005, 6.0, 100.0, 60, {"delta": 0.00025}),
    "ll_cp": Recipe(0.0005, 1.5, 100.0, 60, {"delta": 0.00025}),
    "g2netpl": Recipe(0.0003, 20.0, 100.0, 60, {"draw": 0.0, "rate": 0.03, "warmup": 10}),
    "an": Recipe(0.0003, 20.0, 100.0, 60, {}),
    "an_ls": Recipe(0.0003, 20.0, 100.0, 60, {"smoothing": 0.05}),
    "wan": Recipe(0.0003, 20.0, 100.0, 60, {"negative_weight": 0.1}),
    "partial_bce": Recipe(0.001, 1.5, 100.0, 60, {"known": 0.9}),
    "epr": Recipe(0.00015, 40.0, 100.0, 60, {"weight": 0.5}),
    "role": Recipe(0.001, 6.0, 100.0, 60, {"label_lr": 0.1}),
    "soft": Recipe(0.0005, 20.0, 100.0, 60, {}),
    "cdul": Recipe(0.002, 5.0, 200.0, 60, {"sigma": 0.95, "step": 0.2, "warmup": 10}),
}

PAPER_DATA = {"voc2012": "VOC2012", "voc2007": "VOC2007", "coco": "COCO", "nus": "NUS"}
"""The data sets of the paper's comparison, as columns of the table."""

PAPER: dict[str, tuple[str, dict[str, float]]] = {
    "bce_ls": ("BCE-LS", {"voc2012": 91.6, "voc2007": 92.6, "coco": 79.4, "nus": 51.7}),
    "bce": ("BCE", {"voc2012": 90.1, "voc2007": 91.3, "coco": 78.5, "nus": 50.7}),
    "sarb": ("SARB", {"voc2007": 85.7, "coco": 72.5}),
    "asl": ("ASL", {"voc2007": 82.9, "coco": 69.7}),
    "sst": ("SST", {"voc2007": 81.5, "coco": 68.1}),
    "ll_r": ("LL-R", {"voc2012": 89.7, "voc2007": 90.6, "coco": 72.6, "nus": 47.4}),
    "g2netpl": ("G2NetPL", {"voc2012": 89.5, "voc2007": 89.9, "coco": 72.5, "nus": 48.5}),
    "an": ("Naive AN", {"voc2012": 85.5, "voc2007": 86.5, "coco": 65.1, "nus": 40.8}),
    "an_ls": ("Szegedy et al.", {"voc2012": 86.8, "voc2007": 87.9, "coco": 65.5, "nus": 41.3}),
    "wan": ("Aodha et al.", {"voc2012": 84.2, "voc2007": 86.2, "coco": 63.9, "nus": 40.1}),
    "partial_bce": ("Durand et al.", {"voc2012": 81.3, "voc2007": 83.1, "coco": 63.2, "nus": 39.4}),
    "role": ("ROLE", {"voc2012": 82.6, "voc2007": 84.6, "coco": 67.1, "nus": 43.2}),
    "cdul": ("CDUL", {"voc2012": 88.6, "voc2007": 89.0, "coco": 69.2, "nus": 44.0}),
    "ll_ct": ("LL-Ct", {}),
    "ll_cp": ("LL-Cp", {}),
    "epr": ("EPR", {}),
    "soft": ("soft labels, fixed", {}),
}
"""Method -> its name in the paper's table and the published mAP by data set (method.md, section 1.4)."""


def recipe(method: str) -> Recipe:
    """The measured settings of a method; the built-in ones where nothing was measured."""
    method_class(method)
    return RECIPES.get(method, Recipe())


def default_budget(method: str) -> str:
    """The annotation budget of a method's row in the comparison table."""
    return method_class(method).supervision


def resolved_recipe(config: TrainConfig) -> Recipe:
    """The recipe behind settings that were left open."""
    if config.freeze_backbone:
        return recipe(config.method)
    return Recipe(lr=1e-5, epochs=20, options=dict(recipe(config.method).options))


def loop_settings(config: TrainConfig, chosen: Recipe) -> LoopSettings:
    """How the loop trains: what was given, and the recipe for the rest."""
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
