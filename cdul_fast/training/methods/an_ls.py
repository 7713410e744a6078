"""Assume negative with label smoothing (Szegedy et al.)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from cdul_fast.training.methods.an import An
from cdul_fast.training.methods.base import Batch


@dataclass(frozen=True)
class AnLsSettings:
    """Settings of AN-LS.

    Attributes:
        smoothing: e; targets are 1 - e and e.
    """

    smoothing: float = 0.1


class AnLs(An):
    """AN with targets 1 - e and e."""

    name = "an_ls"
    Settings = AnLsSettings
    settings: AnLsSettings

    def targets(self, batch: Batch) -> Tensor:
        """1 - e for observed positives, e for everything else."""
        smoothing = self.settings.smoothing
        return super().targets(batch) * (1 - 2 * smoothing) + smoothing
