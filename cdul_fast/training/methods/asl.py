"""Asymmetric loss (Ridnik et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdul_fast.training.methods.base import Batch, ObservedMethod, Output


@dataclass(frozen=True)
class AslSettings:
    """Settings of ASL.

    Attributes:
        gamma_negative: Focusing exponent of negatives.
        gamma_positive: Focusing exponent of positives (the paper has 1, and 0 on COCO).
        margin: m; probabilities of negatives below it cost nothing.
        unknown_negative: Count unknown labels as negatives instead of leaving them out.
    """

    gamma_negative: float = 4.0
    gamma_positive: float = 1.0
    margin: float = 0.05
    unknown_negative: bool = False


class Asl(ObservedMethod):
    """ASL over the known labels, summed."""

    name = "asl"
    supervision = "10%"
    Settings = AslSettings
    settings: AslSettings

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """The sum over the entries that count."""
        terms = asymmetric_terms(
            output.logits,
            targets,
            self.settings.gamma_negative,
            self.settings.gamma_positive,
            self.settings.margin,
        )
        if self.settings.unknown_negative:
            return terms.sum()
        return (terms * (self.problem.observed[batch.rows] != 0)).sum()


def asymmetric_terms(
    logits: Tensor, targets: Tensor, gamma_negative: float, gamma_positive: float, margin: float
) -> Tensor:
    """The asymmetric loss of each entry: -(1-p)^g+ log p, or -pm^g- log(1-pm) with pm = max(p - m, 0)."""
    probability = logits.sigmoid()
    shifted = (probability - margin).clamp(min=0)
    # The smallest normal float keeps log and its gradient finite where p underflows.
    floor = torch.finfo(torch.float32).tiny
    positive = (1 - probability).pow(gamma_positive) * -probability.clamp(min=floor).log()
    negative = shifted.pow(gamma_negative) * -torch.log1p(-shifted.clamp(max=1 - 1e-7))
    return torch.where(targets == 1, positive, negative)
