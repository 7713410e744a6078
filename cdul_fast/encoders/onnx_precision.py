"""Writes the precision of an image tower into its ONNX graph: which values are narrow, which stay float32.

TensorRT builds strongly typed networks: every layer computes in the type that the graph gives it. The graph
of a tower comes in float32; here everything becomes float16 or bfloat16, with explicit casts, but for

- LayerNormalization and the other norms, Softmax, and every mean or sum over an axis (the pooling of the
  attention pool among them), whose sums lose too much in 8 or 11 bits;
- what follows the last matrix product: the length of the embedding and the division by it.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from cdul_fast.errors import CdulError

NARROW = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

WIDE_OPS = frozenset(
    {
        "LayerNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization",
        "RMSNormalization", "LpNormalization", "Softmax", "LogSoftmax", "ReduceMean", "ReduceSum", "ReduceL1",
        "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp", "GlobalAveragePool", "CumSum", "Exp", "Log", "Pow",
        "Sqrt", "Reciprocal", "Resize",
    }
)  # fmt: skip

# Where the tail ends, seen from the output.
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv"})
# They say themselves what type they give, or look at no value.
_UNTOUCHED = frozenset({"Cast", "CastLike", "Shape", "Size"})
_FLOATS = frozenset({ir.DataType.FLOAT, *NARROW.values()})
_NUMPY: dict[ir.DataType, Any] = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.BFLOAT16: ml_dtypes.bfloat16,
}


def narrow_graph(model: ir.Model, precision: str) -> None:
    """Makes a float32 graph mixed, in place; its inputs become narrow, its outputs stay float32.

    Args:
        model: one flat graph in float32, of which every value has its type.
        precision: ``fp16`` or ``bf16``.

    Raises:
        CdulError: the graph has control flow, or a weight is too large for float16.
    """
    graph, narrow = model.graph, NARROW[precision]
    tail = _tail(graph)
    caster = _Caster(graph)
    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = narrow
    for node in list(graph):
        if any(True for _ in _subgraphs(node)):
            raise CdulError(f"the exported graph has control flow ({node.op_type}): use --precision fp32")
        if node.op_type in _UNTOUCHED:
            continue
        inputs = [(i, v) for i, v in enumerate(node.inputs) if v is not None and v.dtype in _FLOATS]
        # What makes floats of no floats, such as a range, keeps the type it was exported with.
        wide = node in tail or node.op_type in WIDE_OPS or not inputs
        wanted = ir.DataType.FLOAT if wide else narrow
        for index, value in inputs:
            node.replace_input_with(index, caster.cast(value, wanted, node))
        for output in node.outputs:
            if output.dtype in _FLOATS:
                output.dtype = wanted
    for index, output in enumerate(graph.outputs):
        if output.dtype != ir.DataType.FLOAT and output.dtype in _FLOATS:
            graph.outputs[index] = caster.cast(output, ir.DataType.FLOAT, None)
    _drop_unused(graph)


def emulated(model: ir.Model) -> ir.Model:
    """A float32 copy that rounds to the narrow type wherever the original holds it.

    onnxruntime has no bfloat16 arithmetic on the CPU; products in float32 of rounded numbers, rounded again,
    are what a GPU gives up to the order of its sums.
    """
    copy = model.clone(deep_copy=True)
    graph = copy.graph
    caster = _Caster(graph)
    rounded = {value.name: value.dtype for value in graph.inputs if value.dtype in NARROW.values()}
    for value in graph.inputs:
        if value.name in rounded:
            value.dtype = ir.DataType.FLOAT
    for value in list(graph.initializers.values()):
        if value.dtype in NARROW.values():
            value.replace_all_uses_with(caster.cast(value, ir.DataType.FLOAT, None))
    for node in list(graph):
        for output in node.outputs:
            narrow = output.dtype
            if narrow is None or narrow not in NARROW.values():
                continue
            if node.op_type == "Cast":
                node.attributes["to"] = ir.AttrInt64("to", int(ir.DataType.FLOAT))
            output.dtype = ir.DataType.FLOAT
            down = ir.node("Cast", [output], attributes={"to": int(narrow)}, num_outputs=1)
            up = ir.node("Cast", down.outputs, attributes={"to": int(ir.DataType.FLOAT)}, num_outputs=1)
            output.replace_all_uses_with(up.outputs[0], replace_graph_outputs=True)
            down.replace_input_with(0, output)
            graph.insert_after(node, [down, up])
    _drop_unused(graph)
    return copy


class _Caster:
    """Gives values in another type: weights converted, everything else through one Cast node a value."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def cast(self, value: ir.Value, wanted: ir.DataType, before: ir.Node | None) -> ir.Value:
        """``value`` itself where it has the type; a new node goes before ``before``, or to the end."""
        if value.dtype == wanted:
            return value
        key = (value, wanted)
        if key not in self._made:
            if value.const_value is not None and value.is_initializer():
                self._made[key] = self._weights(value, wanted)
            else:
                self._made[key] = self._node(value, wanted, before)
        return self._made[key]

    def _weights(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        assert value.const_value is not None
        numbers = value.const_value.numpy()
        with np.errstate(over="ignore"):
            changed = numbers.astype(_NUMPY[wanted])
        if not np.isfinite(changed.astype(np.float32)).all() and np.isfinite(numbers).all():
            raise CdulError(f"the weights {value.name} are too large for float16: use --precision bf16")
        name = f"{value.name}_{wanted.name.lower()}"
        made = ir.Value(
            name=name,
            shape=value.shape,
            type=ir.TensorType(wanted),
            const_value=ir.tensor(changed, dtype=wanted, name=name),
        )
        self._graph.register_initializer(made)
        return made

    def _node(self, value: ir.Value, wanted: ir.DataType, before: ir.Node | None) -> ir.Value:
        node = ir.node("Cast", [value], attributes={"to": int(wanted)}, num_outputs=1)
        made = node.outputs[0]
        made.name = f"{value.name}_{wanted.name.lower()}"
        made.shape, made.dtype = value.shape, wanted
        if before is None:
            self._graph.append(node)
        else:
            self._graph.insert_before(before, node)
        return made


def _tail(graph: ir.Graph) -> set[ir.Node]:
    """The nodes between the last matrix products and the outputs."""
    found: set[ir.Node] = set()
    todo = [output.producer() for output in graph.outputs]
    while todo:
        node = todo.pop()
        if node is None or node in found or node.op_type in _PRODUCTS:
            continue
        found.add(node)
        todo += [value.producer() for value in node.inputs if value is not None]
    return found


def _subgraphs(node: ir.Node) -> list[ir.Attr]:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return [attribute for attribute in node.attributes.values() if attribute.type in kinds]


def _drop_unused(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
