"""Semantic-aware representation blending (Pu et al. 2022): unknown classes get features blended into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cdul_fast.training.methods.base import (
    Batch,
    ObservedMethod,
    Output,
    Problem,
    Sweep,
    entropy_terms,
    mean_over,
    mean_with,
)
from cdul_fast.training.methods.semantic import SemanticHead, class_features_of, contrastive


@dataclass(frozen=True)
class SarbSettings:
    """Settings of SARB.

    Attributes:
        start: First epoch (from 1) with blended features.
        prototypes: k-means centres per class.
        refresh: Epochs between new prototypes.
        blend: Start of the learnable share of the image's own feature.
        instance_weight: Factor of the loss on known labels and features blended from other images together.
        prototype_weight: Factor of the loss on known labels and features blended from prototypes together.
        contrastive_weight: Factor of the contrastive loss.
        rank: Rank of the attention's bilinear form.
        width: Channels of the class features; 0 keeps the feature map's own.
        seed: Of the draws of partners and prototypes.
    """

    start: int = 5
    prototypes: int = 10
    refresh: int = 5
    blend: float = 0.5
    instance_weight: float = 1.0
    prototype_weight: float = 1.0
    contrastive_weight: float = 0.05
    rank: int = 64
    width: int = 0
    seed: int = 0


class Sarb(ObservedMethod):
    """BCE on known labels and on blended class features, and contrast.

    An unknown class of an image takes a * its own feature + (1 - a) * a feature of the class from an image
    (or a prototype) known to have it; the blend counts as positive to the degree 1 - a. One a per class and
    kind is learned with the network. Every image has one other image as its partner, and one of its unknown
    classes is blended with a prototype. Each of the two BCEs is a mean over the blends and the known labels
    together, so that a blend counts as much as a known label.
    """

    name = "sarb"
    supervision = "10%"
    wants_maps = True
    Settings = SarbSettings
    settings: SarbSettings

    def __init__(self, problem: Problem, settings: SarbSettings) -> None:
        super().__init__(problem, settings)
        if not 0 < settings.blend < 1:
            raise ValueError(f"blend of sarb must be in (0, 1), got {settings.blend}")
        if settings.prototypes < 1 or settings.refresh < 1:
            raise ValueError(
                f"sarb needs prototypes >= 1 and refresh >= 1, got {settings.prototypes} and "
                f"{settings.refresh}"
            )
        start = torch.full((2, problem.classes), settings.blend).logit()
        self._shares = nn.ParameterDict({"blend": nn.Parameter(start)})
        self._head: SemanticHead | None = None
        self._centres: Tensor | None = None

    def build_head(self, channels: int, dropout: float = 0.0) -> nn.Module:
        """The semantic head, whose classifiers also judge the blends."""
        settings = self.settings
        self._head = SemanticHead(
            channels, self.problem, rank=settings.rank, width=settings.width, dropout=dropout
        )
        return self._head

    def modules(self) -> nn.Module | None:
        """The learnable shares."""
        return self._shares

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """The weighted sum of SARB's losses."""
        settings = self.settings
        features = class_features_of(output, self.name)
        observed = self.problem.observed[batch.rows]
        known, terms = observed != 0, entropy_terms(output.logits, targets)
        loss = mean_over(terms, known)
        loss = loss + settings.contrastive_weight * contrastive(features, observed)
        if batch.epoch < settings.start:
            return loss
        generator = torch.Generator().manual_seed(
            settings.seed * 1_000_003 + batch.epoch * 7919 + int(batch.rows[0])
        )
        shares = self._shares["blend"].sigmoid()
        partners, usable = draw_partners(observed, generator)
        blends = self._blends(features, features[partners], shares[0])
        loss = loss + settings.instance_weight * mean_with(terms, known, blends, usable)
        if self._centres is not None:
            drawn = torch.randint(self._centres.shape[1], observed.shape, generator=generator)
            donors = self._centres[torch.arange(observed.shape[1]), drawn].to(features.device)
            usable = draw_classes(~known & ~donors.isnan().any(dim=-1), generator)
            blends = self._blends(features, donors.nan_to_num(), shares[1])
            loss = loss + settings.prototype_weight * mean_with(terms, known, blends, usable)
        return loss

    def _blends(self, features: Tensor, donors: Tensor, share: Tensor) -> Tensor:
        """BCE of every class's feature blended with its donor, [B, C]."""
        assert self._head is not None
        own = share[None, :, None]
        logits = self._head.classify(own * features + (1 - own) * donors)
        return entropy_terms(logits, (1 - share).expand_as(logits))

    def after_epoch(self, epoch: int, sweep: Sweep) -> None:
        """New prototypes, ready for the first epoch that blends and every ``refresh`` epochs from then on."""
        since = epoch + 1 - self.settings.start
        if since < 0 or since % self.settings.refresh:
            return
        found: list[list[Tensor]] = [[] for _ in range(self.problem.classes)]
        for rows, output in sweep():
            positive = self.problem.observed[rows] == 1
            features = class_features_of(output, self.name)
            for number in range(self.problem.classes):
                found[number].append(features[positive[:, number], number].float().cpu())
        generator = torch.Generator().manual_seed(self.settings.seed + epoch)
        self._centres = torch.stack(
            [cluster_centres(torch.cat(parts), self.settings.prototypes, generator) for parts in found]
        )

    def state(self) -> dict[str, Tensor]:
        """The prototypes, once there are any."""
        return {} if self._centres is None else {"centres": self._centres}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the prototypes."""
        self._centres = state.get("centres")


def draw_partners(observed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """For each image another one of the batch, a random number of places on.

    Args:
        observed: [B, C] with 1, 0, -1.
        generator: Source of the draw.

    Returns:
        Image numbers, [B] int64, and where the entry is unknown and the partner has the class, [B, C] bool.
    """
    count = len(observed)
    step = 1 + int(torch.randint(max(count - 1, 1), (), generator=generator))
    partners = (torch.arange(count, device=observed.device) + step) % count
    return partners, (observed == 0) & (observed[partners] == 1)


def draw_classes(allowed: Tensor, generator: torch.Generator) -> Tensor:
    """One of the allowed classes of each image.

    Args:
        allowed: [B, C] bool.
        generator: Source of the draws.

    Returns:
        [B, C] bool, true once in each row that allows any.
    """
    noise = torch.rand(allowed.shape, generator=generator).to(allowed.device)
    chosen = torch.where(allowed, noise, -1.0).argmax(dim=1, keepdim=True)
    return torch.zeros_like(allowed).scatter(1, chosen, True) & allowed


def cluster_centres(points: Tensor, count: int, generator: torch.Generator, rounds: int = 20) -> Tensor:
    """k-means centres (Lloyd's algorithm from a random choice of points).

    Args:
        points: [M, F].
        count: K. With fewer than K points the points repeat; with none all centres are NaN.
        generator: Source of the choice.
        rounds: Most iterations.

    Returns:
        [K, F].
    """
    if len(points) == 0:
        return torch.full((count, points.shape[1]), float("nan"))
    order = torch.randperm(len(points), generator=generator)
    if len(points) <= count:
        return points[order[torch.arange(count) % len(points)]]
    centres = points[order[:count]].clone()
    nearest = torch.full((len(points),), -1)
    for _ in range(rounds):
        closest = torch.cdist(points, centres).argmin(dim=1)
        if torch.equal(closest, nearest):
            break
        nearest = closest
        for number in range(count):
            members = points[nearest == number]
            if len(members):
                centres[number] = members.mean(dim=0)
    return centres
