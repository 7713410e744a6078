"""Fixed soft labels: the pseudo labels of the labelling run, never changed."""

from __future__ import annotations

from torch import Tensor

from cdul_fast.training.methods.base import Batch, Method, Output, entropy_terms


class Soft(Method):
    """Mean BCE against the soft pseudo labels. What CDUL is without its label step."""

    name = "soft"
    supervision = "none"

    def targets(self, batch: Batch) -> Tensor:
        """The soft pseudo labels."""
        return self.problem.soft[batch.rows]

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """Mean BCE over B x C."""
        return entropy_terms(output.logits, targets).mean()
