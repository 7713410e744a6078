"""Latent labels: soft labels as logits v [N, C] that the label step moves, in memory or in a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cdul_fast import ops

CLIP = 1e-4
"""Soft labels are clipped to [CLIP, 1 - CLIP] before the logit, as in the method."""


def start_values(soft: np.ndarray) -> np.ndarray:
    """logit of the clipped soft labels: [N, C] float32."""
    clipped = np.clip(np.asarray(soft, dtype=np.float64), CLIP, 1 - CLIP)
    return np.log(clipped / (1 - clipped)).astype(np.float32)


def label_step_device(network: torch.device) -> torch.device | None:
    """Where the label step runs for a network on a device: beside it on a GPU; None for the host."""
    return network if network.type == "cuda" else None


class LatentLabels:
    """v [N, C] float32 with versions: an update never touches the file that a checkpoint refers to.

    In a directory the values are ``latent-<version>.f32`` (raw little-endian rows), mapped into memory.
    ``begin_update`` copies the current version, ``finish_update`` makes the copy the current one,
    ``discard_old`` removes what no checkpoint needs any more. With several processes all of them map the
    same file and each moves only the rows of its own shard.

    Args:
        soft: [N, C] soft labels in [0, 1].
        directory: Where the mapped file lives; None keeps the values in memory.
        rank: This process.
        world: Number of processes.
        barrier: Waits for all processes.
        device: Where the label step runs: this process's rows are copied there for an update, and back at
            its end, so that the logits need not travel. None runs it where the values are.
    """

    def __init__(
        self,
        soft: np.ndarray,
        directory: Path | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        barrier: Callable[[], None] = lambda: None,
        device: torch.device | None = None,
    ) -> None:
        self._device = device
        self._moving: Tensor | None = None  # own rows on the device, during an update
        self.shape = (int(soft.shape[0]), int(soft.shape[1]))
        self.directory = directory
        self.version = 0
        self._barrier = barrier
        self._lead = rank == 0
        self.own = (self.shape[0] * rank // world, self.shape[0] * (rank + 1) // world)
        if directory is None:
            self.values = start_values(soft)
        else:
            if self._lead:
                directory.mkdir(parents=True, exist_ok=True)
                _write_atomically(self.path(0), start_values(soft))
            barrier()
            self.values = self._map(0)
        self._next: np.ndarray | None = None
        self._tensor = torch.from_numpy(self.values)

    def path(self, version: int) -> Path:
        """The file of a version."""
        if self.directory is None:
            raise ValueError("latent labels in memory have no file")
        return self.directory / f"latent-{version}.f32"

    def rows(self, rows: Tensor) -> Tensor:
        """[B, C] values of some rows, a copy."""
        return self._tensor[rows.cpu()].to(rows.device)

    def probabilities(self) -> Tensor:
        """[N, C] sigmoid of the values."""
        return self._tensor.sigmoid()

    def begin_update(self) -> None:
        """Open the next version, a copy of the current one."""
        if self.directory is None:
            self._next = self.values
        else:
            if self._lead:
                shutil.copyfile(self.path(self.version), self.path(self.version + 1))
            self._barrier()
            self._next = self._map(self.version + 1)
        if self._device is not None:
            self._moving = torch.tensor(self._next[self.own[0] : self.own[1]], device=self._device)

    def move(self, rows: Tensor, logits: Tensor, *, sigma: float, step: float) -> None:
        """Apply the label step to those of ``rows`` that are this process's own.

        Args:
            rows: [B] row numbers, each at most once.
            logits: [B, C] the network's logits.
            sigma: Width of the Gaussian weight.
            step: Step size.
        """
        if self._next is None:
            raise ValueError("begin_update must come before move")
        numbers = rows.cpu().numpy()
        mine = (numbers >= self.own[0]) & (numbers < self.own[1])
        if self._moving is not None:
            ours_there = logits.detach().to(self._moving.device, torch.float32)
            if not mine.all():
                ours_there = ours_there[torch.from_numpy(mine).to(self._moving.device)]
            places = numbers[mine] - self.own[0]
            ops.label_step(self._moving, ours_there, sigma=sigma, step=step, rows=places)
            return
        ours = np.ascontiguousarray(logits.float().cpu().numpy()[mine])
        ops.label_step(self._next, ours, sigma=sigma, step=step, rows=numbers[mine])

    def finish_update(self) -> None:
        """Make the next version the current one, once all processes have written their rows."""
        if self._next is None:
            raise ValueError("begin_update must come before finish_update")
        if self._moving is not None:
            self._next[self.own[0] : self.own[1]] = self._moving.cpu().numpy()
            self._moving = None
        if isinstance(self._next, np.memmap):
            self._next.flush()
        self._barrier()
        self.values, self._next = self._next, None
        self._tensor = torch.from_numpy(self.values)
        self.version += 1

    def restore(self, version: int) -> None:
        """Go back to the version a checkpoint names.

        Raises:
            ValueError: If its file is absent or has the wrong size.
        """
        path = self.path(version)
        wanted = self.shape[0] * self.shape[1] * 4
        if not path.is_file() or path.stat().st_size != wanted:
            raise ValueError(
                f"{path} is missing or is not {wanted} bytes long: the checkpoint cannot be resumed"
            )
        self.version = version
        self.values = self._map(version)
        self._tensor = torch.from_numpy(self.values)

    def discard_old(self) -> None:
        """Remove the files of all versions but the current one."""
        if self.directory is None or not self._lead:
            return
        for path in self.directory.glob("latent-*.f32"):
            if path != self.path(self.version):
                path.unlink(missing_ok=True)

    def _map(self, version: int) -> np.ndarray:
        return np.memmap(self.path(version), dtype="<f4", mode="r+", shape=self.shape)


def _write_atomically(path: Path, values: np.ndarray) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        stream.write(np.ascontiguousarray(values, dtype="<f4").tobytes())
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
