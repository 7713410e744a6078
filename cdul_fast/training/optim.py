"""Optimisers, learning-rate schedules and the moving average of weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn


def make_optimizer(
    name: str,
    head: list[nn.Parameter],
    body: list[nn.Parameter],
    *,
    lr: float,
    head_factor: float,
    decay: float,
) -> torch.optim.Optimizer:
    """An optimiser with one group for the head (and a method's own modules) and one for the backbone.

    Args:
        name: ``adam``, ``adamw`` or ``sgd`` (momentum 0.9).
        head: Parameters that learn at ``lr * head_factor``.
        body: Parameters that learn at ``lr``.
        lr: Base learning rate.
        head_factor: See ``head``.
        decay: Weight decay; decoupled with ``adamw``, a gradient term otherwise.
    """
    groups: list[dict[str, Any]] = [{"params": head, "lr": lr * head_factor, "base_lr": lr * head_factor}]
    if body:
        groups.append({"params": body, "lr": lr, "base_lr": lr})
    # One fused pass per step is what makes a linear head cheap to train on the CPU.
    if name == "adam":
        return torch.optim.Adam(groups, weight_decay=decay, fused=True)
    if name == "adamw":
        return torch.optim.AdamW(groups, weight_decay=decay, fused=True)
    return torch.optim.SGD(groups, momentum=0.9, weight_decay=decay, fused=True)


def learning_rate_factor(
    schedule: str, progress: float, *, warmup: float = 0.0, step_at: float = 2 / 3, step_factor: float = 0.1
) -> float:
    """Factor of the base learning rate at a point of training.

    Args:
        schedule: ``constant``, ``cosine`` (to zero) or ``step``.
        progress: Share of all steps that is done, in [0, 1).
        warmup: Share of all steps over which the rate rises linearly from zero.
        step_at: Where ``step`` falls, as a share of all steps.
        step_factor: What ``step`` falls to.
    """
    if progress < warmup:
        return progress / warmup
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
    if schedule == "step" and progress >= step_at:
        return step_factor
    return 1.0


class MovingAverage:
    """Exponential moving average of a network's weights and running statistics; counters are copied.

    Args:
        network: The network to follow.
        decay: Share of the average that a step keeps; early steps keep less, (1 + n) / (10 + n).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Follow the network by one step."""
        self.steps += 1
        share = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for own, new in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if own.is_floating_point():
                own.lerp_(new, 1 - share)
            else:
                own.copy_(new)
