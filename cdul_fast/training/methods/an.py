"""Assume negative: every label that is not an observed positive counts as a negative."""

from __future__ import annotations

from torch import Tensor

from cdul_fast.training.methods.base import Batch, Method, Output, entropy_terms


class An(Method):
    """AN: mean BCE over all entries, unknown as negative."""

    name = "an"
    supervision = "none"

    def targets(self, batch: Batch) -> Tensor:
        """1 for observed positives, 0 for everything else."""
        return (self.problem.observed[batch.rows] == 1).float()

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """Mean BCE over B x C."""
        return entropy_terms(output.logits, targets).mean()

    def labels(self) -> Tensor:
        """The observed positives."""
        return (self.problem.observed == 1).float()
