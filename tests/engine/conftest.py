"""Small towers that the tests of the engine share: a ResNet, a ViT, and the embedded model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from clip_models import make_folder, views

from cdul_fast.encoders.source import ModelSource, find_model, load_model

for package in ("onnx", "onnx_ir", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason="needs the packages of cdul_fast[tensorrt]")

KINDS = ("resnet", "vit", "tiny")


class Tower(NamedTuple):
    name: str  # as --model takes it
    source: ModelSource
    model: Any
    pixels: torch.Tensor  # [5, 3, 64, 64]
    embeddings: np.ndarray  # [5, D] in float32, of length one


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """torch on one thread: on a busy machine its threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tower]:
    """The tower of a kind, each made once."""
    folder, made = tmp_path_factory.mktemp("towers"), {}

    def find(kind: str) -> Tower:
        if kind not in made:
            name = "tiny" if kind == "tiny" else str(make_folder(folder / kind, kind))
            source = find_model(name, "none")
            model, pixels = load_model(source), views(5)
            with torch.inference_mode():
                embeddings = model.encode_image(pixels, normalize=True).numpy()
            made[kind] = Tower(name, source, model, pixels, embeddings)
        return made[kind]

    return find


@pytest.fixture(scope="session")
def exported(
    tower: Callable[[str], Tower], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], tuple[Path, dict[str, Any]]]:
    """The ONNX file of a kind in a precision and what its check said, each made once."""
    from cdul_fast.encoders.onnx_export import export_tower

    folder, made = tmp_path_factory.mktemp("onnx"), {}

    def find(kind: str, precision: str) -> tuple[Path, dict[str, Any]]:
        key = (kind, precision)
        if key not in made:
            path, one = folder / f"{kind}-{precision}.onnx", tower(kind)
            made[key] = path, export_tower(one.source, one.model, precision, (1, 3, 3), path)
        return made[key]

    return find
