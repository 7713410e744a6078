"""The image tower of an open_clip model as a module of its own."""

from __future__ import annotations

from typing import Any

import torch


class ImageTower(torch.nn.Module):
    """Pixels [n, 3, S, S] to embeddings [n, D], not yet of length one."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.visual = model.visual

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Runs the tower; some towers also return their tokens, which are left out."""
        output: Any = self.visual(pixels)
        first: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return first
