"""Class-specific features from spatial feature maps, shared by SST and SARB."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from cdul_fast.training.methods.base import Output, Problem


class SemanticHead(nn.Module):
    """Attention per class over the cells of a feature map, guided by a vector per class.

    A cell x_l and a class vector e_c meet in a low-rank bilinear form, a_cl = w . tanh(U x_l * V e_c); a
    softmax over the cells gives the weights with which the cells make up the class's feature f_c; each class
    has its own linear classifier on its own feature. The class vectors are the run's text embeddings where
    there are any (fixed), else learned from a random start.

    Args:
        channels: D, channels of the feature map.
        problem: Gives the number of classes and their vectors.
        rank: Rank of the bilinear form.
        width: Channels of the class features; 0 keeps the map's own.
        dropout: On the class features.
    """

    wants_maps: ClassVar[bool] = True

    def __init__(
        self, channels: int, problem: Problem, *, rank: int = 64, width: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        classes = problem.classes
        if problem.class_vectors is None:
            self.class_vectors = nn.Parameter(torch.randn(classes, rank) * rank**-0.5)
        else:
            vectors = functional.normalize(problem.class_vectors.float(), dim=1)
            self.class_vectors = nn.Parameter(vectors, requires_grad=False)
        self.reduce = nn.Linear(channels, width) if width else nn.Identity()
        self.cells = nn.Linear(channels, rank)
        self.guides = nn.Linear(self.class_vectors.shape[1], rank, bias=False)
        self.score = nn.Linear(rank, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        features = width or channels
        self.weight = nn.Parameter(torch.empty(classes, features).uniform_(-1, 1) * features**-0.5)
        self.bias = nn.Parameter(torch.zeros(classes))

    def attention(self, cells: Tensor) -> Tensor:
        """[B, L, D] cells to [B, C, L] weights that sum to 1 over the cells."""
        joint = self.cells(cells)[:, None] * self.guides(self.class_vectors)[None, :, None]
        weights: Tensor = self.score(joint.tanh()).squeeze(-1).softmax(dim=-1)
        return weights

    def classify(self, class_features: Tensor) -> Tensor:
        """[B, C, F] class features to [B, C] logits."""
        # A product per class, not a multiplication by [C, F] and a sum: OpenVINO 2026.4 fuses the latter into
        # the layer before and broadcasts it wrongly.
        products = torch.bmm(class_features.transpose(0, 1), self.weight[:, :, None])
        return products.squeeze(-1).transpose(0, 1) + self.bias

    def forward(self, maps: Tensor) -> Output:
        """[B, D, h, w] feature maps to logits and class features."""
        cells = maps.flatten(2).transpose(1, 2)
        features = self.reduce(torch.bmm(self.attention(cells), cells))
        if not isinstance(self.reduce, nn.Identity):
            features = features.relu()
        features = self.dropout(features)
        return Output(self.classify(features), features)


def class_features_of(output: Output, method: str) -> Tensor:
    """The class features [B, C, F] of an output.

    Raises:
        ValueError: The network has another head than the method's own.
    """
    if output.class_features is None:
        raise ValueError(f"method {method} needs class features: build its network with its own head")
    return output.class_features


def class_similarity(features: Tensor, others: Tensor | None = None) -> Tensor:
    """Cosine of the same class's features in pairs of images.

    Args:
        features: [B, C, F].
        others: [M, C, F], ``features`` itself when None.

    Returns:
        [C, B, M].
    """
    unit = functional.normalize(features, dim=-1).transpose(0, 1)
    other = unit if others is None else functional.normalize(others, dim=-1).transpose(0, 1)
    return torch.bmm(unit, other.transpose(1, 2))


def contrastive(features: Tensor, observed: Tensor) -> Tensor:
    """Pull a class's features together where both images have the class, apart where only one has it.

    1 - cos for pairs of known positives, 1 + cos for a known positive with a known negative, averaged over
    all such pairs of different images; 0 where the batch has none.

    Args:
        features: [B, C, F] class features.
        observed: [B, C] with 1, 0, -1.
    """
    similarity = class_similarity(features)
    positive = (observed == 1).T
    negative = (observed == -1).T
    together = positive[:, :, None] & positive[:, None, :]
    together &= ~torch.eye(observed.shape[0], dtype=torch.bool, device=observed.device)
    apart = positive[:, :, None] & negative[:, None, :]
    terms = (1 - similarity) * together + (1 + similarity) * apart
    return terms.sum() / (together.sum() + apart.sum()).clamp(min=1)
