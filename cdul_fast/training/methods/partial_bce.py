"""Partial BCE (Durand et al. 2019): only known labels count, weighted by how many of them are known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cdul_fast.training.methods.base import Batch, Method, Output, Problem, entropy_terms


@dataclass(frozen=True)
class PartialBceSettings:
    """Settings of partial BCE.

    Attributes:
        known: Share of the classes taken as known where nothing is annotated: CLIP's most confident class as
            the positive, the rest of the share from its lowest scores as negatives.
        slope: a of g(r) = a * r^gamma + b.
        offset: b of g.
        gamma: Exponent of g.
    """

    known: float = 0.5
    slope: float = -4.45
    offset: float = 5.45
    gamma: float = 1.0


class PartialBce(Method):
    """(g(r)/C) times the sum of BCE over an image's known labels, r the share known, averaged over images.

    With positives alone the loss falls to zero for a network that says yes to everything, so without any
    observed negative the classes of lowest score stand in for them.
    """

    name = "partial_bce"
    supervision = "none"
    Settings = PartialBceSettings
    settings: PartialBceSettings

    def __init__(self, problem: Problem, settings: PartialBceSettings) -> None:
        super().__init__(problem, settings)
        if not 0 < settings.known <= 1:
            raise ValueError(f"known of partial_bce must be in (0, 1], got {settings.known}")
        self.known = problem.observed
        if not bool((problem.observed == -1).any()):
            self.known = lowest_as_negatives(problem.observed, problem.soft, settings.known)

    def targets(self, batch: Batch) -> Tensor:
        """1 for known positives, 0 elsewhere."""
        return (self.known[batch.rows] == 1).float()

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """The weighted sum per image, mean over the batch."""
        known = (self.known[batch.rows] != 0).float()
        share = known.mean(dim=1)
        factor = self.settings.slope * share.pow(self.settings.gamma) + self.settings.offset
        sums = (entropy_terms(output.logits, targets) * known).sum(dim=1)
        return (factor / known.shape[1] * sums).mean()

    def labels(self) -> Tensor:
        """The known positives."""
        return (self.known == 1).float()


def lowest_as_negatives(observed: Tensor, soft: Tensor, share: float) -> Tensor:
    """Mark the lowest-scored unobserved classes negative until ``share`` of the classes is known.

    Args:
        observed: [N, C] int8 without negatives.
        soft: [N, C] scores.
        share: Share of the C classes that shall be known per image; at least one negative is always taken.

    Returns:
        [N, C] int8 with 1, 0 and -1.
    """
    classes = observed.shape[1]
    positives = (observed == 1).sum(dim=1, keepdim=True)
    wanted = (round(share * classes) - positives).clamp(min=1)
    ranked = torch.where(observed == 1, float("inf"), soft).argsort(dim=1, stable=True)
    rank = torch.empty_like(ranked)
    rank.scatter_(1, ranked, torch.arange(classes, device=ranked.device).expand_as(ranked).contiguous())
    negative = (rank < wanted) & (observed != 1)
    return torch.where(negative, torch.full_like(observed, -1), observed)
