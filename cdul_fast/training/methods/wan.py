"""Weak assume negative (Mac Aodha et al.): assumed negatives weigh 1/(C - 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdul_fast.training.methods.an import An
from cdul_fast.training.methods.base import Batch, Output, entropy_terms


@dataclass(frozen=True)
class WanSettings:
    """Settings of WAN.

    Attributes:
        negative_weight: Weight of an assumed negative; 0 means the paper's 1/(C - 1).
    """

    negative_weight: float = 0.0


class Wan(An):
    """AN whose negatives weigh 1/(C - 1), so that one positive balances all of them."""

    name = "wan"
    Settings = WanSettings
    settings: WanSettings

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """Weighted BCE, mean over B x C."""
        weight = self.settings.negative_weight or 1.0 / max(1, self.problem.classes - 1)
        weights = torch.where(targets == 1, 1.0, weight)
        return (entropy_terms(output.logits, targets) * weights).mean()
