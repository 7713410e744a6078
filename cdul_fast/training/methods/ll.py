"""Large-loss methods (Kim et al. 2022): large losses of assumed negatives are likely missed positives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cdul_fast.training.methods.an import An
from cdul_fast.training.methods.base import Batch, Output, Problem, entropy_terms


@dataclass(frozen=True)
class LargeLossSettings:
    """Settings of LL-R, LL-Ct and LL-Cp.

    Attributes:
        delta: Share of the B x C entries that each further epoch adds (the paper has 0.001 to 0.005).
    """

    delta: float = 0.002


class LlR(An):
    """LL-R: AN, but epoch t drops the ceil(B C (t-1) delta) largest losses among unobserved entries."""

    name = "ll_r"
    supervision = "one"
    Settings = LargeLossSettings
    settings: LargeLossSettings

    def __init__(self, problem: Problem, settings: LargeLossSettings) -> None:
        super().__init__(problem, settings)
        if not 0 <= settings.delta < 1:
            raise ValueError(f"delta of {self.name} must be in [0, 1), got {settings.delta}")

    def quota(self, batch: Batch) -> int:
        """How many entries of the batch the method takes for missed positives."""
        entries = len(batch.rows) * self.problem.classes
        # The product of floats may lie a hair above a whole number; that must not cost one more entry.
        return math.ceil(entries * (batch.epoch - 1) * self.settings.delta - 1e-9)

    def suspects(self, terms: Tensor, batch: Batch) -> Tensor:
        """[B, C] bool: the entries with the largest losses among the unobserved."""
        free = self.problem.observed[batch.rows] == 0
        count = min(self.quota(batch), int(free.sum()))
        mask = torch.zeros_like(free)
        if count > 0:
            ranked = torch.where(free, terms.detach(), float("-inf")).flatten().topk(count).indices
            mask.view(-1)[ranked] = True
        return mask

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """Mean over B x C of the losses that are kept."""
        terms = entropy_terms(output.logits, targets)
        return (terms * ~self.suspects(terms, batch)).mean()


class LlCt(LlR):
    """LL-Ct: the same entries count as positives for the step."""

    name = "ll_ct"

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """Mean BCE over B x C with the suspects turned to 1."""
        suspects = self.suspects(entropy_terms(output.logits, targets), batch)
        return entropy_terms(output.logits, torch.where(suspects, 1.0, targets)).mean()


class LlCp(LlR):
    """LL-Cp: each epoch after the first turns ceil(B C delta) more entries of a batch positive for good."""

    name = "ll_cp"

    def __init__(self, problem: Problem, settings: LargeLossSettings) -> None:
        super().__init__(problem, settings)
        self.flipped = torch.zeros_like(problem.observed, dtype=torch.bool)

    def quota(self, batch: Batch) -> int:
        """ceil(B C delta) from the second epoch on."""
        if batch.epoch < 2:
            return 0
        return math.ceil(len(batch.rows) * self.problem.classes * self.settings.delta - 1e-9)

    def targets(self, batch: Batch) -> Tensor:
        """1 for observed positives and for entries turned before."""
        return torch.where(self.flipped[batch.rows], 1.0, super().targets(batch))

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """Mean BCE over B x C with the newly found entries turned to 1, and remembered."""
        terms = torch.where(targets == 1, float("-inf"), entropy_terms(output.logits, targets).detach())
        suspects = self.suspects(terms, batch) & (targets == 0)
        self.flipped[batch.rows] |= suspects
        return entropy_terms(output.logits, torch.where(suspects, 1.0, targets)).mean()

    def labels(self) -> Tensor:
        """Observed positives and entries turned so far."""
        return torch.where(self.flipped, 1.0, super().labels())

    def state(self) -> dict[str, Tensor]:
        """Which entries are turned."""
        return {"flipped": self.flipped}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the turned entries."""
        self.flipped = state["flipped"].to(self.flipped.device)
