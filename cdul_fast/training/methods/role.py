"""Regularised online label estimation (Cole et al. 2021): labels learned beside the classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cdul_fast.training.methods.base import (
    Batch,
    Method,
    Output,
    Problem,
    count_penalty,
    entropy_terms,
    positive_terms,
)
from cdul_fast.training.methods.rows import RowAdam


@dataclass(frozen=True)
class RoleSettings:
    """Settings of ROLE.

    Attributes:
        label_lr: Learning rate of the label logits g (the paper has 10 times the network's).
        seed: Of the random start of g.
    """

    label_lr: float = 0.01
    seed: int = 0


class Role(Method):
    """Classifier f and free label logits g teach each other; both are held to the expected positives.

    The loss is the mean of the two sides, each side being -log p on observed positives, BCE against the other
    side's fixed probabilities, and the penalty on the count. g starts uniform within +-logit(0.6), observed
    positives at logit(0.995).
    """

    name = "role"
    supervision = "none"
    Settings = RoleSettings
    settings: RoleSettings

    def __init__(self, problem: Problem, settings: RoleSettings) -> None:
        super().__init__(problem, settings)
        generator = torch.Generator().manual_seed(settings.seed)
        bound = math.log(0.6 / 0.4)
        table = torch.empty(problem.soft.shape).uniform_(-bound, bound, generator=generator)
        table = table.to(problem.soft.device)
        table[problem.observed == 1] = math.log(0.995 / 0.005)
        self._adam = RowAdam(table, settings.label_lr)
        self._leaf: Tensor | None = None

    def targets(self, batch: Batch) -> Tensor:
        """The probabilities of the label logits, without gradient."""
        return self._adam.table[batch.rows].sigmoid()

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """Half of each side; remembers g's leaf, whose gradient ``after_step`` applies."""
        observed = self.problem.observed[batch.rows]
        network = output.logits
        labels = self._adam.table[batch.rows].clone().requires_grad_()
        self._leaf = labels
        expected = self.problem.expected_positives
        sides = (
            positive_terms(network, observed).mean()
            + positive_terms(labels, observed).mean()
            + entropy_terms(network, targets).mean()
            + entropy_terms(labels, network.detach().sigmoid()).mean()
            + count_penalty(network, expected)
            + count_penalty(labels, expected)
        )
        return 0.5 * sides

    def after_step(self, output: Output, batch: Batch) -> None:
        """Move the label logits of the batch."""
        if self._leaf is not None and self._leaf.grad is not None:
            self._adam.step(batch.rows, self._leaf.grad * batch.gradient_scale)
        self._leaf = None

    def labels(self) -> Tensor:
        """Probabilities of the label logits."""
        return self._adam.table.sigmoid()

    def state(self) -> dict[str, Tensor]:
        """Label logits and their moments."""
        return self._adam.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore label logits and moments."""
        self._adam.load_state(state)
