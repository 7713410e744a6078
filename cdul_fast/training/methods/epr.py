"""Expected positive regularisation (Cole et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cdul_fast.training.methods.an import An
from cdul_fast.training.methods.base import Batch, Output, count_penalty, positive_terms


@dataclass(frozen=True)
class EprSettings:
    """Settings of EPR.

    Attributes:
        weight: Factor of the penalty on the number of positives; the paper's formula has 1.
    """

    weight: float = 1.0


class Epr(An):
    """-log p on observed positives, and a penalty that holds the expected count of positives at k."""

    name = "epr"
    Settings = EprSettings
    settings: EprSettings

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """Mean of -log p over B x C, plus ((mean count) - k)^2 / C^2."""
        positives = positive_terms(output.logits, self.problem.observed[batch.rows]).mean()
        penalty = count_penalty(output.logits, self.problem.expected_positives)
        return positives + self.settings.weight * penalty
