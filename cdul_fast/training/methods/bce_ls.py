"""Binary cross entropy with label smoothing."""

from __future__ import annotations

from dataclasses import dataclass

from cdul_fast.training.methods.base import Problem
from cdul_fast.training.methods.bce import Bce


@dataclass(frozen=True)
class BceLsSettings:
    """Settings of BCE-LS.

    Attributes:
        smoothing: e; targets are 1 - e and e.
    """

    smoothing: float = 0.1


class BceLs(Bce):
    """BCE with targets 1 - e and e."""

    name = "bce_ls"
    Settings = BceLsSettings

    def __init__(self, problem: Problem, settings: BceLsSettings) -> None:
        super().__init__(problem, settings)
        self.smoothing = settings.smoothing
