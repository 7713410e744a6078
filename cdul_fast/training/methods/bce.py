"""Binary cross entropy on the observed labels: full supervision where all of them are observed."""

from __future__ import annotations

from torch import Tensor

from cdul_fast.training.methods.base import Batch, ObservedMethod, Output, Problem, entropy_terms, mean_over


class Bce(ObservedMethod):
    """BCE, averaged over the observed entries (all B x C of them when every label is known)."""

    name = "bce"
    supervision = "all"
    smoothing = 0.0

    def __init__(self, problem: Problem, settings: object) -> None:
        super().__init__(problem, settings)
        if not bool((problem.observed == -1).any()):
            raise ValueError(
                f"method {self.name} needs observed negatives as well as positives: use --observe all or "
                "10%, or an AN variant where only positives are known"
            )

    def targets(self, batch: Batch) -> Tensor:
        """1 - e for observed positives, e for the rest (e = 0 without smoothing)."""
        return super().targets(batch) * (1 - 2 * self.smoothing) + self.smoothing

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """Mean BCE over the observed entries."""
        known = self.problem.observed[batch.rows] != 0
        return mean_over(entropy_terms(output.logits, targets), known)
