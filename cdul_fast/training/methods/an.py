"""Assume negative: every label that is not an observed positive counts as a negative."""

from __future__ import annotations

from torch import Tensor

from cdul_fast.training.methods.base import Batch, ObservedMethod, Output, entropy_terms


class An(ObservedMethod):
    """AN: mean BCE over all entries, unknown as negative."""

    name = "an"
    supervision = "none"

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """Mean BCE over B x C."""
        return entropy_terms(output.logits, targets).mean()
