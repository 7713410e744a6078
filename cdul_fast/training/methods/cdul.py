"""CDUL: the network learns the labels, the labels learn from the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cdul_fast.ops import check_label_step
from cdul_fast.training.latent import LatentLabels
from cdul_fast.training.methods.base import Batch, Method, Output, Problem, Sweep, entropy_terms


@dataclass(frozen=True)
class CdulSettings:
    """Settings of CDUL.

    Attributes:
        sigma: Width of the Gaussian psi that lets uncertain labels move fastest.
        step: Step size of the label step.
        warmup: Epochs before the first label step.
        interval: Epochs between label steps.
        source: Where the logits of a label step come from: ``sweep`` runs the network over the training set
            in evaluation mode, ``seen`` takes the logits of the epoch's own training steps for free.
    """

    sigma: float = 0.95
    step: float = 0.2
    warmup: int = 10
    interval: int = 1
    source: str = "sweep"


class Cdul(Method):
    """Per-class Bernoulli KL between labels and predictions, minimised over network and labels in turn.

    The network step is BCE with soft targets, which is the KL divergence up to a constant; the label step is
    the closed form v <- v - step * psi(sigmoid(v)) * (v - z) on the latent labels.
    """

    name = "cdul"
    supervision = "none"
    Settings = CdulSettings
    settings: CdulSettings

    def __init__(self, problem: Problem, settings: CdulSettings, latent: LatentLabels | None = None) -> None:
        super().__init__(problem, settings)
        check_settings(settings)
        self.latent = latent or LatentLabels(problem.soft.cpu().numpy())
        self._seen: Tensor | None = None
        if settings.source == "seen":
            self._seen = torch.full(problem.soft.shape, float("nan"))

    def targets(self, batch: Batch) -> Tensor:
        """sigmoid of the latent labels."""
        return self.latent.rows(batch.rows).sigmoid()

    def loss(self, output: Output, targets: Tensor, batch: Batch) -> Tensor:
        """Mean BCE over B x C with the labels fixed."""
        return entropy_terms(output.logits, targets).mean()

    def after_step(self, output: Output, batch: Batch) -> None:
        """Remember the logits where the label step takes them from training."""
        if self._seen is not None:
            self._seen[batch.rows.cpu()] = output.logits.detach().float().cpu()

    def after_epoch(self, epoch: int, sweep: Sweep) -> None:
        """The label step, where this epoch has one."""
        settings = self.settings
        since = epoch - settings.warmup
        if since < 0 or since % settings.interval:
            return
        self.latent.begin_update()
        if self._seen is None:
            for rows, output in sweep():
                self.latent.move(rows, output.logits, sigma=settings.sigma, step=settings.step)
        else:
            # A label whose image no step has looked at yet stays where it is.
            rows = (~self._seen.isnan().any(dim=1)).nonzero().flatten()
            self.latent.move(rows, self._seen[rows], sigma=settings.sigma, step=settings.step)
        self.latent.finish_update()

    def labels(self) -> Tensor:
        """sigmoid of the latent labels."""
        return self.latent.probabilities()

    def state(self) -> dict[str, Tensor]:
        """The version of the mapped file (or the values kept in memory), and logits seen so far."""
        state = {"version": torch.tensor(self.latent.version)}
        if self.latent.directory is None:
            state["latent"] = torch.from_numpy(self.latent.values)
        if self._seen is not None:
            state["seen"] = self._seen
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore what ``state`` gave."""
        version = int(state["version"])
        if self.latent.directory is None:
            self.latent.values[:] = state["latent"].numpy()
            self.latent.version = version
        else:
            self.latent.restore(version)
        if self._seen is not None:
            self._seen = state["seen"].clone()


def check_settings(settings: CdulSettings) -> None:
    """Refuse settings with which the labels cannot settle.

    Raises:
        ValueError: Naming the setting, what it is and what it may be.
    """
    check_label_step(settings.sigma, settings.step)
    if settings.warmup < 0 or settings.interval < 1:
        raise ValueError(
            f"cdul needs warmup >= 0 and interval >= 1, got {settings.warmup} and {settings.interval}"
        )
    if settings.source not in ("sweep", "seen"):
        raise ValueError(f"source of cdul must be sweep or seen, got {settings.source!r}")
