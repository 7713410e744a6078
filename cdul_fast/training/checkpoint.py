"""Checkpoints: one safetensors file each, written whole or not at all, its header holding the small state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdul_fast.data.paths import one_line
from cdul_fast.data.sinks import replacing
from cdul_fast.errors import CdulError
from cdul_fast.training.loop import Loop, Network, Position

FORMAT = 1
LAST, BEST = "last.safetensors", "best.safetensors"


def save_checkpoint(path: Path, loop: Loop) -> None:
    """Write everything that training needs to go on: network, average, optimiser, method, position."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in loop.network.state_dict().items():
        tensors[f"network.{key}"] = tensor
    if loop.average is not None:
        for key, tensor in loop.average.network.state_dict().items():
            tensors[f"average.{key}"] = tensor
    own = loop.method.modules()
    for key, tensor in ({} if own is None else own.state_dict()).items():
        tensors[f"module.{key}"] = tensor
    for key, tensor in loop.method.state().items():
        tensors[f"method.{key}"] = tensor
    optimizer = loop.optimizer.state_dict()
    for index, values in optimizer["state"].items():
        for key, value in values.items():
            if value is not None:
                tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
    position = loop.position
    small = {
        "format": FORMAT,
        "epoch": position.epoch,
        "step": position.step,
        "loss_sum": position.loss_sum,
        "history": position.history,
        "average_steps": 0 if loop.average is None else loop.average.steps,
        "scaler": loop.scaler.state_dict(),
    }
    _write(path, tensors, small)


def load_checkpoint(path: Path, loop: Loop) -> None:
    """Put a loop where a checkpoint left it.

    Raises:
        CdulError: The file is damaged, or belongs to other settings.
    """
    tensors, small = _read(path)
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, key = name.partition(".")
        groups.setdefault(kind, {})[key] = tensor
    try:
        loop.network.load_state_dict(groups["network"])
        if loop.average is not None:
            loop.average.network.load_state_dict(groups["average"])
            loop.average.steps = int(small["average_steps"])
        own = loop.method.modules()
        if own is not None:
            own.load_state_dict(groups["module"])
        loop.method.load_state(groups.get("method", {}))
        state: dict[int, dict[str, Tensor]] = {}
        parameters = [one for group in loop.optimizer.param_groups for one in group["params"]]
        for name, tensor in groups.get("optimizer", {}).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = _laid_out_as(parameters[int(index)], tensor)
        loop.optimizer.load_state_dict({**loop.optimizer.state_dict(), "state": state})
        loop.scaler.load_state_dict(small["scaler"])
        loop.position = Position(
            int(small["epoch"]), int(small["step"]), float(small["loss_sum"]), list(small["history"])
        )
    except (KeyError, IndexError, RuntimeError, ValueError, TypeError) as error:
        raise CdulError(f"{path} does not fit these settings: {shown(error)}") from None


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A value of the optimiser in the memory layout of its parameter.

    Fused optimisers walk through both side by side as they lie in memory, and a file keeps no layout.
    """
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def save_network(path: Path, network: Network, *, with_backbone: bool) -> None:
    """Write the weights that predictions need.

    Args:
        path: Target file.
        network: What to keep.
        with_backbone: False leaves a frozen backbone's weights out; they are stored once elsewhere.
    """
    tensors = {
        key: tensor
        for key, tensor in network.state_dict().items()
        if with_backbone or not key.startswith("backbone.")
    }
    _write(path, tensors, {"format": FORMAT})


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that ``save_network`` or ``save_checkpoint`` wrote.

    Raises:
        CdulError: The file is absent or damaged.
    """
    return _read(path)[0]


def _write(path: Path, tensors: dict[str, Tensor], small: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    # Copies, because tensors that share memory (or lie on a map of a file) cannot be stored as they are.
    whole = {key: tensor.detach().cpu().clone().contiguous() for key, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(whole, temporary, {"state": json.dumps(small)})


def shown(value: object) -> str:
    """Something that came from a file, as one short line for a message."""
    return one_line(" ".join(str(value).split()), 200)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            small = json.loads(file.metadata()["state"])
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CdulError(f"{path} is missing or damaged: {shown(error)}") from None
    if not isinstance(small, dict):
        raise CdulError(f"{path} is damaged: its state is no mapping")
    if small.get("format") != FORMAT:
        raise CdulError(f"{path} has format {shown(small.get('format'))}; this version reads format {FORMAT}")
    return tensors, small
