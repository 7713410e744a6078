"""An image tower as an ONNX model whose graph says its own precision, checked against torch."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cdul_fast.encoders.base import Floats, unit_rows
from cdul_fast.encoders.source import ModelSource
from cdul_fast.encoders.tracing import traceable
from cdul_fast.errors import CdulError, ConfigError

log = logging.getLogger(__name__)

PRECISIONS = ("fp32", "fp16", "bf16", "fp8")
EXPORT_PACKAGES = ("onnx", "onnx_ir", "onnxscript", "onnxruntime")
INPUT_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float16"}

# Raise when an export of the same weights would give other numbers than before.
REVISION = 1

# The first opset with Gelu as one node; TensorRT and onnxruntime read it.
_OPSET = 20

# Least cosine of a view with float32 torch, on noise. A sound float32 export gives 0.999999 and more; float16
# keeps 11 bits and bfloat16 8, which cost 1e-5 and 1e-3 in small random towers; fp8 keeps 4. Below these, a
# part of the graph is wrong.
LEAST_COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99, "fp8": 0.9}

# Protobuf ends at 2 GiB; larger weights go into a file of their own.
_LARGEST_MODEL = 1_800_000_000

# fp8's ranges come from so many views at least.
LEAST_CALIBRATION_VIEWS = 8

# Every fourth of them is kept out of the calibration, for the check.
_HELD_OUT = 4


def require_packages() -> None:
    """Raises ConfigError where a package that the export needs is missing."""
    for name in EXPORT_PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"an engine needs the package {name}: pip install 'cdul_fast[tensorrt]'")


def require_fp8() -> None:
    """Raises ConfigError where NVIDIA ModelOpt is missing."""
    if importlib.util.find_spec("modelopt") is None:
        raise ConfigError("--precision fp8 needs NVIDIA ModelOpt: pip install 'cdul_fast[fp8]'")


def export_tower(
    source: ModelSource,
    model: Any,
    precision: str,
    batches: tuple[int, int, int],
    path: Path,
    calibration: Floats | None = None,
) -> dict[str, Any]:
    """Writes the tower as ONNX and runs it in onnxruntime at 1, 2 and the largest batch.

    Input ``pixels`` [n, 3, S, S], normalised, of the type that :data:`INPUT_DTYPES` says; output
    ``embeddings`` float32 [n, D], each row of length one.

    Args:
        source: where the model comes from.
        model: open_clip's, in float32 on the CPU.
        precision: one of :data:`PRECISIONS`.
        batches: smallest, usual and largest batch.
        path: file to write; weights beyond protobuf's limit go to a second one, named ``<path>.data``.
        calibration: for fp8, float32 [n, 3, S, S] normalised views of one's own photos, n at least 8.

    Returns:
        What was checked: ``batches``, ``least_cosine`` with torch, and ``runtime``.

    Raises:
        ConfigError: a package is missing, or there are too few views for fp8.
        CdulError: the exported model does not do what the original does.
    """
    import torch

    require_packages()
    size = source.image_size
    tower = _unit_tower(model)
    views = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    graph = _export(tower, views, batches[2])
    if precision == "fp8":
        known = _checked_calibration(calibration)
        held = np.arange(len(known)) % _HELD_OUT == 0
        graph = _quantized(graph, known[~held])
        # The ranges fit photos, not noise.
        views = torch.from_numpy(known[held])
    if precision != "fp32":
        from cdul_fast.encoders.onnx_precision import narrow_graph

        narrow_graph(graph, "bf16" if precision == "bf16" else "fp16")
    _assert_symbolic(graph)
    _save(graph, path)
    with _traced():
        expected = unit_rows(tower(views).numpy())
    return _check(path, precision, views.numpy(), expected, sorted({1, 2, *batches}), source.name)


class OnnxTower:
    """An exported tower in onnxruntime on the CPU."""

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnx_ir as ir
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        graph = ir.load(path)
        if any(node.op_type == "DequantizeLinear" for node in graph.graph):
            # onnxruntime 1.24, which ModelOpt asks for, moves layers in between the two halves of a
            # quantisation and then refuses to run them in fp8.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        narrow: Any = graph.graph.inputs[0].dtype
        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        with tempfile.TemporaryDirectory() as folder:
            model, kind = path, narrow
            if narrow == ir.DataType.BFLOAT16:
                from cdul_fast.encoders.onnx_precision import emulated

                model, kind = Path(folder, "emulated.onnx"), ir.DataType.FLOAT
                _save(emulated(graph), model)
                self.runtime += ", bfloat16 by rounding"
            self._dtype = kind.numpy()
            providers = ["CPUExecutionProvider"]
            self._session = onnxruntime.InferenceSession(str(model), options, providers=providers)

    def embed(self, pixels: Floats) -> Floats:
        """float32 [n, D] of float32 pixels [n, 3, S, S], in one pass."""
        (rows,) = self._session.run(None, {"pixels": pixels.astype(self._dtype)})
        return np.asarray(rows, np.float32)


def _unit_tower(model: Any) -> Any:
    import torch

    from cdul_fast.encoders.image_tower import ImageTower

    class UnitTower(torch.nn.Module):
        """Pixels to embeddings of length one."""

        def __init__(self) -> None:
            super().__init__()
            self.tower = ImageTower(model)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(self.tower(pixels), dim=-1)

    return UnitTower().eval()


@contextlib.contextmanager
def _traced() -> Iterator[None]:
    import torch

    with traceable(), torch.inference_mode(False), torch.no_grad():
        yield


def _export(tower: Any, example: Any, largest: int) -> Any:
    import torch

    batch = torch.export.Dim("batch", min=1, max=max(2, largest))
    with _traced(), _silent():
        program = torch.onnx.export(
            tower,
            (example,),
            input_names=["pixels"],
            output_names=["embeddings"],
            dynamic_shapes=({0: batch},),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise CdulError("torch.onnx.export gave no program")
    return program.model


def _assert_symbolic(graph: Any) -> None:
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        if value.shape is None or isinstance(value.shape[0], int):
            raise CdulError(
                f"the export fixed the batch: {value.name} has the shape {value.shape}; this model's graph "
                "does not work for any number of views"
            )


def _save(graph: Any, path: Path) -> bool:
    """Writes a model; weights too large for one file go into ``<path>.data``, which is what True says."""
    import onnx_ir as ir

    weights = [value.const_value for value in graph.graph.initializers.values()]
    large: bool = sum(tensor.nbytes for tensor in weights if tensor is not None) > _LARGEST_MODEL
    ir.save(graph, path, external_data=f"{path.name}.data" if large else None)
    return large


def _check(
    path: Path, precision: str, views: Floats, expected: Floats, batches: list[int], name: str
) -> dict[str, Any]:
    """Runs every batch, filled with the views in turn, against their embeddings by torch."""
    runner = OnnxTower(path)
    least = 1.0
    for count in batches:
        rows = np.resize(np.arange(len(views)), count)
        try:
            got = runner.embed(views[rows])
        except Exception as error:
            raise CdulError(f"the exported {name} fails on {count} views: {_first_line(error)}") from None
        if got.shape != (count, expected.shape[1]):
            raise CdulError(f"the exported {name} gives {got.shape} for {count} views")
        # Written so that NaN counts as the worst.
        cosines = np.nan_to_num((got * expected[rows]).sum(axis=1), nan=-1.0)
        least = min(least, float(cosines.min()))
    if not least >= LEAST_COSINE[precision]:
        raise CdulError(
            f"the exported {name} in {precision} does not agree with torch: least cosine {least:.5f}, at "
            f"least {LEAST_COSINE[precision]} wanted"
        )
    return {"batches": batches, "least_cosine": round(least, 7), "runtime": runner.runtime}


def _checked_calibration(views: Floats | None) -> Floats:
    require_fp8()
    if views is None or len(views) < LEAST_CALIBRATION_VIEWS:
        raise ConfigError(
            f"fp8 is calibrated on your own photos, at least {LEAST_CALIBRATION_VIEWS} views of them; got "
            f"{0 if views is None else len(views)}"
        )
    return views


def _quantized(graph: Any, views: Floats) -> Any:
    """The float32 graph with fp8 Q/DQ pairs around its products, scales from ``views``."""
    import onnx_ir as ir

    with tempfile.TemporaryDirectory() as folder, _silent():
        from modelopt.onnx.quantization import quantize

        plain, made = Path(folder, "plain.onnx"), Path(folder, "fp8.onnx")
        large = _save(graph, plain)
        try:
            quantize(
                str(plain),
                quantize_mode="fp8",
                calibration_data={"pixels": views},
                calibration_eps=["cpu"],
                high_precision_dtype="fp32",
                use_external_data_format=large,
                output_path=str(made),
                log_level="ERROR",
            )
        except Exception as error:
            raise CdulError(f"ModelOpt cannot quantize this model: {_first_line(error)}") from error
        quantized = ir.load(made)
        ir.external_data.load_to_model(quantized)
    _infer_types(quantized)
    return quantized


def _infer_types(graph: Any) -> None:
    from onnx_ir.passes.common import ShapeInferencePass

    # The nodes that ModelOpt puts in come without types.

    ShapeInferencePass()(graph)
    missing = [v.name for node in graph.graph for v in node.outputs if v.dtype is None]
    if missing:
        raise CdulError(f"the quantized graph leaves the type of {missing[0]} open")


def _first_line(error: BaseException) -> str:
    lines = " ".join(str(error).split())
    return lines[:300] or type(error).__name__


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keeps the exporters' progress off the terminal."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
