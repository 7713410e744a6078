"""Adam over the rows of a [N, C] table of which a step touches only the batch's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8


class RowAdam:
    """Adam whose moments and step counts belong to a row: rows outside the batch do not move.

    Args:
        table: [N, C] float32, changed in place.
        lr: Learning rate.
    """

    def __init__(self, table: Tensor, lr: float) -> None:
        self.table = table
        self.lr = lr
        self.mean = torch.zeros_like(table)
        self.square = torch.zeros_like(table)
        self.steps = torch.zeros(table.shape[0], 1, device=table.device)

    def step(self, rows: Tensor, gradient: Tensor) -> None:
        """Move ``table[rows]`` against ``gradient`` [B, C]; every row at most once."""
        first, second = _BETAS
        steps = self.steps[rows] + 1
        mean = self.mean[rows].lerp_(gradient, 1 - first)
        square = self.square[rows].lerp_(gradient.square(), 1 - second)
        self.steps[rows], self.mean[rows], self.square[rows] = steps, mean, square
        corrected = mean / (1 - first**steps)
        spread = (square / (1 - second**steps)).sqrt_().add_(_EPSILON)
        self.table[rows] -= self.lr * corrected / spread

    def state(self) -> dict[str, Tensor]:
        """Table, moments and step counts."""
        return {"table": self.table, "mean": self.mean, "square": self.square, "steps": self.steps}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` gave."""
        for name, own in self.state().items():
            own.copy_(state[name])
