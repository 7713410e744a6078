"""Structured semantic transfer (Chen et al. 2022): labels from co-occurrence and from other images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdul_fast.training.methods.asl import asymmetric_terms
from cdul_fast.training.methods.base import (
    Batch,
    ObservedMethod,
    Output,
    Problem,
    entropy_terms,
    mean_over,
    mean_with,
)
from cdul_fast.training.methods.semantic import (
    SemanticHead,
    class_features_of,
    class_similarity,
    contrastive,
)


@dataclass(frozen=True)
class SstSettings:
    """Settings of SST.

    Attributes:
        margin: Score from which an unknown label counts as a pseudo positive.
        start: First epoch (from 1) with pseudo labels.
        pseudo_weight: Factor of the losses on known and pseudo labels together.
        cooccurrence_weight: Factor of the loss on the co-occurrence matrix.
        contrastive_weight: Factor of the contrastive loss.
        rank: Rank of the attention's and of the co-occurrence's bilinear forms.
        width: Channels of the class features; 0 keeps the feature map's own.
    """

    margin: float = 0.95
    start: int = 5
    pseudo_weight: float = 1.0
    cooccurrence_weight: float = 10.0
    contrastive_weight: float = 0.05
    rank: int = 64
    width: int = 0


class CoOccurrence(nn.Module):
    """How likely class j is present beside class i in this image, from the pair of class features: [B, C, C].

    A low-rank bilinear form on the two features; entry (i, j) is a logit.
    """

    def __init__(self, rank: int) -> None:
        super().__init__()
        # The channels of the class features are known once the head is built.
        self.given = nn.LazyLinear(rank)
        self.asked = nn.LazyLinear(rank)
        self.scale = rank**-0.5

    def forward(self, features: Tensor) -> Tensor:
        """[B, C, F] class features to [B, C, C] logits."""
        given: Tensor = self.given(features)
        asked: Tensor = self.asked(features)
        pairs: Tensor = torch.bmm(given, asked.transpose(1, 2)) * self.scale
        return pairs


class Sst(ObservedMethod):
    """BCE on known labels, on labels transferred within and between images, co-occurrence and contrast.

    Each of the two BCEs on transferred labels is a mean over these and the known labels together, so that a
    transferred label counts as much as a known one, however few there are.
    """

    name = "sst"
    supervision = "10%"
    wants_maps = True
    Settings = SstSettings
    settings: SstSettings

    def __init__(self, problem: Problem, settings: SstSettings) -> None:
        super().__init__(problem, settings)
        if not 0 < settings.margin <= 1:
            raise ValueError(f"margin of sst must be in (0, 1], got {settings.margin}")
        self.cooccurrence = CoOccurrence(settings.rank)

    def build_head(self, channels: int, dropout: float = 0.0) -> nn.Module:
        """The semantic head; also gives the co-occurrence module its width."""
        settings = self.settings
        head = SemanticHead(channels, self.problem, rank=settings.rank, width=settings.width, dropout=dropout)
        self.cooccurrence(torch.zeros(1, 1, settings.width or channels))
        return head

    def modules(self) -> nn.Module | None:
        """The co-occurrence module."""
        return self.cooccurrence

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """The weighted sum of SST's losses."""
        settings = self.settings
        features = class_features_of(output, self.name)
        observed = self.problem.observed[batch.rows]
        known = observed != 0
        terms = entropy_terms(output.logits, targets)
        pairs = self.cooccurrence(features)
        loss = mean_over(terms, known)
        loss = loss + settings.cooccurrence_weight * cooccurrence_loss(pairs, observed)
        loss = loss + settings.contrastive_weight * contrastive(features, observed)
        if batch.epoch >= settings.start:
            positive_terms = entropy_terms(output.logits, torch.ones_like(targets))
            for score in (
                within_image(pairs.detach().sigmoid(), observed),
                between_images(features.detach(), observed),
            ):
                found = (score >= settings.margin) & ~known
                loss = loss + settings.pseudo_weight * mean_with(terms, known, positive_terms, found)
        return loss


def cooccurrence_loss(pairs: Tensor, observed: Tensor) -> Tensor:
    """Asymmetric loss (g- 2, g+ 1, no margin) on pairs of different classes that are both known.

    Args:
        pairs: [B, C, C] logits.
        observed: [B, C] with 1, 0, -1.
    """
    known = observed != 0
    positive = observed == 1
    mask = known[:, :, None] & known[:, None, :]
    mask &= ~torch.eye(observed.shape[1], dtype=torch.bool, device=observed.device)
    target = (positive[:, :, None] & positive[:, None, :]).float()
    return mean_over(asymmetric_terms(pairs, target, 2.0, 1.0, 0.0), mask)


def within_image(pairs: Tensor, observed: Tensor) -> Tensor:
    """Score of each class: mean co-occurrence with the image's known positives, 0 where it has none.

    Args:
        pairs: [B, C, C] probabilities, entry (i, j) for class j beside class i.
        observed: [B, C] with 1, 0, -1.
    """
    positive = (observed == 1).float()
    total = torch.bmm(positive[:, None], pairs).squeeze(1)
    return total / positive.sum(dim=1, keepdim=True).clamp(min=1)


def between_images(features: Tensor, observed: Tensor) -> Tensor:
    """Score of each class: mean cosine with the class's features in the batch's images known to have it.

    Args:
        features: [B, C, F] class features.
        observed: [B, C] with 1, 0, -1.
    """
    positive = (observed == 1).float().T
    total = torch.bmm(class_similarity(features), positive[:, :, None]).squeeze(-1)
    return (total / positive.sum(dim=1, keepdim=True).clamp(min=1)).T
