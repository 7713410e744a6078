"""The ONNX models of image towers: equal to torch, and of the precision that was asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clip_models import views

from cdul_fast.encoders import onnx_export, onnx_precision
from cdul_fast.encoders.onnx_export import OnnxTower, export_tower
from cdul_fast.errors import CdulError, ConfigError

ir = pytest.importorskip("onnx_ir")

KINDS = ("resnet", "vit", "tiny")
NARROW = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16"}
# Least cosine with float32 torch. fp32: the same sums in another order. fp16 and bf16: 11 and 8 bits; the
# random ResNet, whose embeddings are small differences of large numbers, is the worst by far.
LEAST = {"fp32": 0.999999, "fp16": 0.9999, "bf16": 0.996}

needs_modelopt = pytest.mark.skipif(
    importlib.util.find_spec("modelopt") is None, reason="needs NVIDIA ModelOpt (cdul_fast[fp8])"
)


def least_cosine(rows: np.ndarray, expected: np.ndarray) -> float:
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    return float((rows * expected).sum(axis=1).min())


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_torch_for_any_batch(tower, exported, kind, precision):
    one = tower(kind)
    path, notes = exported(kind, precision)
    assert notes["batches"] == [1, 2, 3] and notes["least_cosine"] >= LEAST[precision]
    runner = OnnxTower(path, threads=1)
    got = runner.embed(one.pixels.numpy())
    assert got.dtype == np.float32
    assert least_cosine(got, one.embeddings) >= LEAST[precision]
    alone = np.concatenate([runner.embed(view[None]) for view in one.pixels.numpy()])
    assert least_cosine(alone, got) >= LEAST[precision]
    if precision != "fp32":
        # Really computed in fewer bits: float32 comes within 1e-6.
        assert np.abs(got - one.embeddings).max() > 1e-5


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_types_in_the_graph(exported, kind, precision):
    graph = ir.load(exported(kind, precision)[0]).graph
    wide = ir.DataType.FLOAT
    narrow = ir.DataType[NARROW[precision]]
    assert [value.dtype for value in graph.inputs] == [narrow]
    assert [value.dtype for value in graph.outputs] == [wide]
    assert not isinstance(graph.inputs[0].shape[0], int) and not isinstance(graph.outputs[0].shape[0], int)

    def types(node: Any) -> set[Any]:
        floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        return {v.dtype for v in (*node.inputs, *node.outputs) if v is not None and v.dtype in floats}

    seen = set()
    for node in graph:
        if node.op_type in ("Softmax", "LayerNormalization", "ReduceMean", "ReduceL2", "Div"):
            assert types(node) == {wide}, node
        elif node.op_type in ("MatMul", "Gemm", "Conv", "Gelu", "Relu", "Add"):
            assert types(node) == {narrow}, node
        seen.add(node.op_type)
    assert {"Softmax", "ReduceL2", "MatMul", "Conv"} <= seen
    assert ("LayerNormalization" if kind == "vit" else "ReduceMean") in seen
    weights = sum(value.const_value.nbytes for value in graph.initializers.values())
    if precision != "fp32":
        whole = ir.load(exported(kind, "fp32")[0]).graph
        # Half of the weights, but for the norms'.
        assert weights < 0.56 * sum(value.const_value.nbytes for value in whole.initializers.values())


def test_a_wrong_graph_is_refused(tower, tmp_path, monkeypatch):
    one = tower("vit")
    narrow = onnx_precision.narrow_graph

    def damage(graph: Any, precision: str) -> None:
        narrow(graph, precision)
        name, value = next((n, v) for n, v in graph.graph.initializers.items() if "positional" in n)
        value.const_value = ir.tensor(-value.const_value.numpy(), dtype=value.dtype, name=name)

    monkeypatch.setattr(onnx_precision, "narrow_graph", damage)
    with pytest.raises(CdulError, match="does not agree with torch: least cosine"):
        export_tower(one.source, one.model, "fp16", (1, 2, 2), tmp_path / "model.onnx")


def test_a_fixed_batch_is_refused(exported, tmp_path, monkeypatch, tower):
    one = tower("tiny")

    def fixed(*_: Any) -> Any:
        graph = ir.load(exported("tiny", "fp32")[0])
        graph.graph.inputs[0].shape = ir.Shape([2, 3, 64, 64])
        return graph

    monkeypatch.setattr(onnx_export, "_export", fixed)
    with pytest.raises(CdulError, match="the export fixed the batch: pixels"):
        export_tower(one.source, one.model, "fp32", (1, 2, 2), tmp_path / "model.onnx")


def test_weights_beyond_float16_are_refused(exported, tmp_path):
    graph = ir.load(exported("vit", "fp32")[0])
    name, value = next((n, v) for n, v in graph.graph.initializers.items() if "in_proj_bias" in n)
    value.const_value = ir.tensor(np.full(value.shape.numpy(), 1e6, np.float32), name=name)
    with pytest.raises(CdulError, match=r"in_proj_bias are too large for float16: use --precision bf16"):
        onnx_precision.narrow_graph(graph, "fp16")


def test_one_cast_a_value(exported):
    graph = ir.load(exported("vit", "fp16")[0]).graph
    casts = [node.inputs[0] for node in graph if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))
    assert not any(value.is_initializer() for value in casts)


@pytest.mark.skipif(importlib.util.find_spec("modelopt") is not None, reason="ModelOpt is installed")
def test_fp8_without_modelopt_names_the_extra(tower, tmp_path):
    one = tower("tiny")
    with pytest.raises(ConfigError, match=r"pip install 'cdul_fast\[fp8\]'"):
        export_tower(one.source, one.model, "fp8", (1, 2, 2), tmp_path / "m.onnx", views(8).numpy())


@needs_modelopt
@pytest.mark.parametrize("kind", ["vit", "tiny"])
def test_fp8_quantizes_the_products(tower, tmp_path, kind):
    one = tower(kind)
    path = tmp_path / "model.onnx"
    notes = export_tower(one.source, one.model, "fp8", (1, 2, 2), path, views(24, seed=5).numpy())
    # Four bits a factor, 6 to 12 % a step; the trained model gives 0.999, the random ViT 0.98.
    assert notes["least_cosine"] > 0.95
    graph = ir.load(path).graph
    products = [node for node in graph if node.op_type in ("MatMul", "Conv")]
    producers = [[value.producer() for value in node.inputs[:2]] for node in products]
    both = [
        all(node is not None and node.op_type == "DequantizeLinear" for node in pair) for pair in producers
    ]
    assert sum(both) >= len(products) / 2
    assert all(
        node.outputs[0].dtype == ir.DataType.FLOAT8E4M3FN
        for node in graph
        if node.op_type == "QuantizeLinear"
    )
    assert all(node.inputs[0].dtype == ir.DataType.FLOAT for node in graph if node.op_type == "Softmax")


@needs_modelopt
def test_fp8_wants_enough_views(tower, tmp_path):
    one = tower("tiny")
    with pytest.raises(ConfigError, match="at least 8 views of them; got 7"):
        export_tower(one.source, one.model, "fp8", (1, 2, 2), tmp_path / "m.onnx", views(7).numpy())


def test_a_missing_package_is_named(tower, tmp_path, monkeypatch):
    one, find = tower("tiny"), importlib.util.find_spec

    def hidden(name: str) -> Any:
        return None if name == "onnxscript" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    with pytest.raises(ConfigError, match=r"package onnxscript: pip install 'cdul_fast\[tensorrt\]'"):
        export_tower(one.source, one.model, "fp32", (1, 2, 2), tmp_path / "m.onnx")


def test_large_weights_go_beside(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_LARGEST_MODEL", 1000)
    path = tmp_path / "large.onnx"
    assert onnx_export._save(ir.load(exported("tiny", "fp16")[0]), path)
    assert path.stat().st_size < Path(f"{path}.data").stat().st_size
    pixels = views(2).numpy()
    same = OnnxTower(exported("tiny", "fp16")[0]).embed(pixels)
    np.testing.assert_array_equal(OnnxTower(path).embed(pixels), same)
