"""The label step of the alternating training over 100,000 x 80 latent labels, against eager torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from benchmarks.timing import Race, library_threads
from cdul_fast import ops

SIGMA, STEP = 0.5, 0.5


def _eager(latent: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    labels = torch.sigmoid(latent)
    psi = torch.exp(-0.5 * ((labels - 0.5) / SIGMA) ** 2) / (SIGMA * math.sqrt(2 * math.pi))
    latent -= STEP * psi * (latent - logits)
    return latent


@pytest.mark.parametrize("threads", [1, 2])
def test_label_step(race: Race, rounds: Any, threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(100_000, 80, generator=generator) * 3
    logits = torch.randn(100_000, 80, generator=generator) * 3
    ours, theirs = start.clone(), start.clone()
    ops.label_step(ours, logits, sigma=SIGMA, step=STEP, threads=threads)
    torch.testing.assert_close(ours, _eager(theirs, logits), rtol=1e-5, atol=1e-5)
    with library_threads(threads):
        race.run(
            lambda: ops.label_step(ours, logits, sigma=SIGMA, step=STEP, threads=threads),
            {"eager torch": lambda: _eager(theirs, logits)},
            rounds=rounds(30),
            target={"eager torch": 6.0},
            warmup=2,
        )
