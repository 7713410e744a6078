"""The model directory: ``model.json`` says what the weights belong to, so that a model needs no run."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdul_fast import __version__
from cdul_fast.data.paths import show_path
from cdul_fast.data.sinks import replacing
from cdul_fast.errors import CdulError
from cdul_fast.training.backbones import create_backbone
from cdul_fast.training.checkpoint import BEST, LAST, load_tensors, save_network, shown
from cdul_fast.training.loop import Network
from cdul_fast.training.methods import Output, Problem, create_method

FORMAT = 1
BACKBONE = "backbone.safetensors"


@dataclass(frozen=True)
class ModelInfo:
    """What a classifier is made of.

    Attributes:
        classes: [C] names, in the order of its outputs.
        backbone: As ``create_backbone`` takes it.
        method: Decides the kind of head.
        options: The method's settings, which decide the head's sizes.
        image_size: Side of the input in pixels.
        fit: How a photo becomes a square.
        frozen: Whether the backbone's weights are in ``backbone.safetensors`` instead of the checkpoint.
        map_grid: Side that feature maps are averaged to before the head; 0 leaves them.
        class_vector_size: E of the class vectors in a semantic head; 0 for learned ones.
    """

    classes: tuple[str, ...]
    backbone: str
    method: str
    options: dict[str, Any]
    image_size: int
    fit: str = "squash"
    frozen: bool = False
    map_grid: int = 0
    class_vector_size: int = 0


class Classifier(nn.Module):
    """Photos to probabilities: what predictions and exports run.

    Args:
        network: Backbone and head.
        map_grid: See ``ModelInfo``.
    """

    def __init__(self, network: Network, map_grid: int = 0) -> None:
        super().__init__()
        self.network = network
        self.map_grid = map_grid

    def logits(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] normalised photos to [B, C] logits."""
        network = self.network
        backbone: Any = network.backbone
        if getattr(network.head, "wants_maps", False):
            features = backbone.maps(images)
            if self.map_grid:
                features = nn.functional.adaptive_avg_pool2d(features, self.map_grid)
        else:
            features = backbone(images)
        output: Output = network.head(network.scaling(features))
        return output.logits

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, S, S] normalised photos to [B, C] probabilities."""
        return self.logits(images).sigmoid()


def write_info(folder: Path, info: ModelInfo, more: dict[str, Any] | None = None) -> None:
    """Write ``model.json``."""
    content = {"format": FORMAT, "version": __version__, **dataclasses.asdict(info), **(more or {})}
    with replacing(folder / "model.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")


def write_model(folder: Path, info: ModelInfo, network: Network) -> None:
    """Write a finished model: weights as ``best``, then ``model.json``."""
    save_network(folder / BEST, network, with_backbone=not info.frozen)
    write_info(folder, info)


def read_info(folder: Path) -> ModelInfo:
    """Read ``model.json``.

    Raises:
        CdulError: The folder holds no model, or one of another format.
    """
    path = folder / "model.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.get("format") != FORMAT:
            raise CdulError(f"{show_path(path)} has format {shown(content.get('format'))}, wanted {FORMAT}")
        names = {field.name for field in dataclasses.fields(ModelInfo)}
        values = {key: value for key, value in content.items() if key in names}
        return ModelInfo(**{**values, "classes": tuple(values["classes"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CdulError(f"{show_path(folder)} holds no trained model ({shown(error)})") from None


def load_classifier(folder: Path, which: str = "best") -> tuple[Classifier, ModelInfo]:
    """Build the classifier of a model directory, in evaluation mode on the CPU.

    Args:
        folder: The model directory.
        which: ``best`` or ``last``; ``best`` falls back to ``last`` where training has not got so far.

    Raises:
        CdulError: The folder holds no model, or its files do not fit.
    """
    info = read_info(folder)
    network = build_network(info)
    path = folder / (BEST if which == "best" else LAST)
    if which == "best" and not path.is_file():
        path = folder / LAST
    tensors = load_tensors(path)
    for prefix in ("average.", "network."):
        if any(key.startswith(prefix) for key in tensors):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            break
    if info.frozen:
        from safetensors.torch import load_file

        stored = load_file(folder / BACKBONE)
        tensors |= {f"backbone.{key}": value for key, value in stored.items()}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise CdulError(f"{show_path(path)} does not fit: {shown(error)}") from None
    return Classifier(network, info.map_grid).eval(), info


def build_network(info: ModelInfo) -> Network:
    """The network of a model with random weights."""
    backbone = create_backbone(info.backbone, "none")
    count = len(info.classes)
    vectors = torch.zeros(count, info.class_vector_size) if info.class_vector_size else None
    # The head's shape depends on the method alone; the labels of this problem are never looked at.
    observed = torch.ones(1, count, dtype=torch.int8)
    observed[:, count // 2 :] = -1
    problem = Problem(torch.full((1, count), 0.5), observed, class_vectors=vectors)
    head = create_method(info.method, problem, info.options).build_head(backbone.info.channels)
    return Network(backbone, head, backbone.info.channels)
