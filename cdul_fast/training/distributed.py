"""Data parallel training with exact batch losses: every process sees the outputs of the whole batch.

Losses such as EPR's count penalty or LL-R's ranking do not split into per-process means. So the outputs of a
batch are gathered, each process computes the loss of the whole batch divided by the number of processes, and
gradients are summed: the same gradient as one process would have, whatever the loss.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from cdul_fast.training.methods.base import Output


class World:
    """The processes that train together; one process without torchrun."""

    def __init__(self, rank: int = 0, size: int = 1, device: torch.device | None = None) -> None:
        self.rank = rank
        self.size = size
        self.device = device or torch.device("cpu")

    @property
    def leads(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.size > 1:
            torch.distributed.barrier()

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of a batch's rows; parts differ by one row at most, in the order of ranks."""
        return rows.tensor_split(self.size)[self.rank]

    def gather(self, output: Output, count: int) -> Output:
        """The outputs of the whole batch; this process's part keeps its gradient, times the world size.

        Args:
            output: Of this process's part.
            count: Rows of the whole batch.
        """
        if self.size == 1:
            return output
        features = output.class_features
        return Output(
            self._gather_rows(output.logits, count),
            None if features is None else self._gather_rows(features, count),
        )

    def _gather_rows(self, own: Tensor, count: int) -> Tensor:
        sizes = [len(part) for part in torch.arange(count).tensor_split(self.size)]
        padded = own.new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own.detach()
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded)
        rows = [part[:size] for part, size in zip(parts, sizes, strict=True)]
        # The gradient of the mean over processes is undone here, so that sums over processes are exact.
        rows[self.rank] = _scale_gradient(own, float(self.size)) if own.requires_grad else own
        return torch.cat(rows)

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Sum the gradients of all processes, in one flat buffer per type."""
        if self.size == 1:
            return
        groups: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                groups.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in groups.values():
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            torch.distributed.all_reduce(flat)
            start = 0
            for gradient in gradients:
                gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
                start += gradient.numel()

    def same_start(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the tensors of the first."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, 0)


def _scale_gradient(values: Tensor, factor: float) -> Tensor:
    view: Any = values.view_as(values)
    view.register_hook(lambda gradient: gradient * factor)
    scaled: Tensor = view
    return scaled


def join_world(device: str = "auto") -> World:
    """Join the processes that torchrun started, or be alone.

    Args:
        device: ``auto`` takes CUDA where there is any, else the CPU; ``cpu`` or ``cuda`` decide.
    """
    # torchrun tells its processes who they are through the environment; it is no setting of ours.
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    where = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if cuda else "cpu")
    if size > 1:
        torch.distributed.init_process_group("nccl" if cuda else "gloo")
        if cuda:
            torch.cuda.set_device(where)
    return World(rank, size, where)


def leave_world(world: World) -> None:
    """Leave what ``join_world`` joined."""
    if world.size > 1:
        torch.distributed.destroy_process_group()
