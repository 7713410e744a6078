"""G2NetPL (arXiv 2210.11469): network and labels as two players.

The paper's constants are not public. What is chosen here, and why:

- The label player of an unobserved entry minimises (y - p)^2 - draw * (y - 1/2)^2 over y in [0, 1]: the
  first term is the penalty for leaving the prediction p, the second draws the label to 0 or 1. With draw < 1
  its best answer is y = 1/2 + (p - 1/2) / (1 - draw), clipped: certain predictions become hard labels,
  predictions near 1/2 stay soft. A label goes ``rate`` of the way to that answer per step, so that one wild
  batch does not decide a label.
- Unobserved labels start at the share of positives one expects besides the observed one, (k - 1)/(C - 1):
  at 1/2 the game would start from "everything is half there", at 0 it would be AN.
- Easy to hard: an unobserved entry weighs (2 |y - 1/2|)^kappa with kappa falling linearly from ``kappa`` to 0
  over ``ramp`` epochs, so uncertain labels count little at first and fully later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cdul_fast.training.methods.base import Batch, Method, Output, Problem, entropy_terms


@dataclass(frozen=True)
class G2NetPlSettings:
    """Settings of G2NetPL, explained in the module's docstring.

    Attributes:
        draw: Strength that draws labels to 0 or 1, in [0, 1).
        rate: Share of the way a label goes per step, in (0, 1].
        kappa: Exponent of the confidence weight in the first epoch.
        ramp: Epochs until every entry weighs 1.
        warmup: Epochs before labels move.
    """

    draw: float = 0.2
    rate: float = 0.1
    kappa: float = 2.0
    ramp: int = 10
    warmup: int = 2


class G2NetPl(Method):
    """Soft pseudo labels for unobserved entries, answered by the label player after each step."""

    name = "g2netpl"
    supervision = "one"
    Settings = G2NetPlSettings
    settings: G2NetPlSettings

    def __init__(self, problem: Problem, settings: G2NetPlSettings) -> None:
        super().__init__(problem, settings)
        if not 0 <= settings.draw < 1:
            raise ValueError(f"draw of g2netpl must be in [0, 1), got {settings.draw}")
        if not 0 < settings.rate <= 1:
            raise ValueError(f"rate of g2netpl must be in (0, 1], got {settings.rate}")
        if settings.ramp < 1 or settings.kappa < 0:
            raise ValueError(
                f"g2netpl needs ramp >= 1 and kappa >= 0, got {settings.ramp} and {settings.kappa}"
            )
        start = (problem.expected_positives - 1) / max(1, problem.classes - 1)
        self._table = torch.full_like(problem.soft, min(max(start, 0.0), 1.0))
        self._table[problem.observed == 1] = 1.0
        self._table[problem.observed == -1] = 0.0

    def targets(self, batch: Batch) -> Tensor:
        """Observed labels and the present pseudo labels."""
        return self._table[batch.rows]

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """Mean over B x C of BCE, unobserved entries weighted easy to hard."""
        kappa = self.settings.kappa * max(0.0, 1.0 - (batch.epoch - 1) / self.settings.ramp)
        confidence = (2 * (targets - 0.5)).abs().pow(kappa)
        weights = torch.where(self.problem.observed[batch.rows] == 0, confidence, 1.0)
        return (entropy_terms(output.logits, targets) * weights).mean()

    def after_step(self, output: Output, batch: Batch) -> None:
        """The label player's move on the unobserved entries of the batch."""
        if batch.epoch <= self.settings.warmup:
            return
        prediction = output.logits.detach().float().sigmoid()
        answer = (0.5 + (prediction - 0.5) / (1 - self.settings.draw)).clamp(0, 1)
        current = self._table[batch.rows]
        moved = current + self.settings.rate * (answer - current)
        self._table[batch.rows] = torch.where(self.problem.observed[batch.rows] == 0, moved, current)

    def labels(self) -> Tensor:
        """Observed labels and pseudo labels."""
        return self._table

    def state(self) -> dict[str, Tensor]:
        """The label table."""
        return {"table": self._table}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the label table."""
        self._table.copy_(state["table"])
