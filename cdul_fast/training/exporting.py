"""`export_model`: a trained classifier as ONNX or OpenVINO, checked against the original."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cdul_fast.cli import option
from cdul_fast.data.paths import show_path
from cdul_fast.data.sinks import replacing
from cdul_fast.errors import CdulError, ConfigError
from cdul_fast.training.features import converted_for_cpu
from cdul_fast.training.model_dir import Classifier, load_classifier

TOLERANCE = 1e-4
"""Largest difference of a probability from the original's: float32 sums in another order differ by 1e-6."""

_BATCHES = (1, 2, 5)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a trained classifier, and check that the exported model gives the same probabilities."""

    model: str | None = option(None, "model directory that train wrote", group="Input", example="model/")
    which: Literal["best", "last"] = option(
        "best", "which weights of the model", group="Input", example="--which last"
    )
    format: Literal["onnx", "openvino"] = option(
        "onnx", "what to export to", group="Output", example="--format openvino"
    )
    out: str | None = option(
        None, "file to write (.onnx, or .xml for openvino); without it model.onnx or model.xml in the model "
        "directory", group="Output", example="--out model.onnx")  # fmt: skip

    def __post_init__(self) -> None:
        """Refuse what cannot be exported, naming the flag."""
        if self.model is None:
            raise ConfigError("the model directory is missing: python -m cdul_fast.export model/")
        suffix = ".onnx" if self.format == "onnx" else ".xml"
        if self.out is not None and Path(self.out).suffix != suffix:
            raise ConfigError(
                f"--out for --format {self.format} wants a name ending in {suffix}, got {self.out!r}"
            )


@dataclass(frozen=True)
class ExportResult:
    """An exported and checked model.

    Attributes:
        path: The file.
        largest_difference: Of a probability from the original's, on random photos.
    """

    path: Path
    largest_difference: float


def export_model(config: ExportConfig) -> ExportResult:
    """Export a classifier; the file appears only once it has been checked.

    Input ``images`` float32 [B, 3, S, S], normalised as ``model.json`` and the backbone say; output
    ``probabilities`` float32 [B, C]. A ``.json`` beside the file names classes, size, mean and std.

    Raises:
        CdulError: The exported model differs from the original.
    """
    assert config.model is not None
    folder = Path(config.model)
    classifier, info = load_classifier(folder, config.which)
    suffix = "onnx" if config.format == "onnx" else "xml"
    path = Path(config.out) if config.out is not None else folder / f"model.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.stem}.{suffix}")
    try:
        if config.format == "onnx":
            _write_onnx(classifier, info.image_size, temporary)
            run = _onnx_runner(temporary)
        else:
            _write_openvino(classifier, info.image_size, temporary)
            run = _openvino_runner(temporary)
        difference = _difference(classifier, run, info.image_size)
        if not difference <= TOLERANCE:
            raise CdulError(
                f"the exported model differs from the original by {difference:.2g} (allowed {TOLERANCE:g}); "
                "nothing was written"
            )
        if config.format == "openvino":
            temporary.with_suffix(".bin").replace(path.with_suffix(".bin"))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_suffix(".bin").unlink(missing_ok=True)
    backbone: Any = classifier.network.backbone
    about = {
        "classes": list(info.classes),
        "image_size": info.image_size,
        "fit": info.fit,
        "mean": list(backbone.info.mean),
        "std": list(backbone.info.std),
        "largest_difference": difference,
    }
    with replacing(path.with_suffix(".json")) as beside:
        beside.write_text(json.dumps(about, indent=1), encoding="utf-8")
    return ExportResult(path, difference)


def _write_onnx(classifier: Classifier, size: int, path: Path) -> None:
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise CdulError(f"--format onnx needs the package {error.name}: pip install {error.name}") from None
    del onnx, onnxscript
    torch.backends.mha.set_fastpath_enabled(False)
    program = torch.onnx.export(
        classifier,
        (torch.zeros(2, 3, size, size),),
        input_names=["images"],
        output_names=["probabilities"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise CdulError("torch.onnx.export gave no program")
    program.save(str(path), external_data=False)


def _onnx_runner(path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise CdulError("the check of --format onnx needs the package onnxruntime") from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})[0]


def _write_openvino(classifier: Classifier, size: int, path: Path) -> None:
    import openvino as ov

    converted = converted_for_cpu(classifier, size)
    converted.reshape({converted.inputs[0]: ov.PartialShape([-1, 3, size, size])})
    converted.inputs[0].get_tensor().set_names({"images"})
    converted.outputs[0].get_tensor().set_names({"probabilities"})
    ov.save_model(converted, path, compress_to_fp16=False)


def _openvino_runner(path: Path) -> Any:
    import openvino as ov

    from cdul_fast.encoders.openvino_passes import UNBOUND

    compiled = ov.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32", **UNBOUND})
    return lambda images: next(iter(compiled(images).values()))


def _difference(classifier: Classifier, run: Any, size: int) -> float:
    """Largest difference over batches of several sizes: a batch dimension that became fixed fails here."""
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for count in _BATCHES:
        images = torch.randn(count, 3, size, size, generator=generator)
        with torch.no_grad():
            wanted = classifier(images).numpy()
        try:
            given = np.asarray(run(images.numpy()))
        except Exception as error:
            first = " ".join(str(error).split())[:200]
            raise CdulError(f"the exported model fails on a batch of {count}: {first}") from None
        if given.shape != wanted.shape:
            raise CdulError(f"the exported model gives {given.shape} for a batch of {count}")
        largest = max(largest, float(np.abs(given - wanted).max()))
    return largest


def describe(result: ExportResult) -> str:
    """The result in one line."""
    difference = f"largest difference {result.largest_difference:.1e}"
    return f"checked against the original, {difference}: {show_path(result.path)}"
