"""Compute at compile time what does not depend on the graph's inputs.

Nodes whose operands are all constant run through onnx's reference implementation. Shapes count as
constants as far as they are known, which turns Shape-Gather-Concat-Reshape chains into a Reshape
with a constant target. A weight that is read in several forms stays one weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx.reference import ReferenceEvaluator

from compiler.ir import Graph, Node, Value, subgraphs
from compiler.ir.cost import is_parameter
from compiler.ir.proto import node_proto
from compiler.ir.shape_values import ShapeValues
from compiler.ir.shapes import INVENTED
from passes.pipeline import register_pass
from passes.simplify.eliminate_identities import unchanged
from passes.simplify.rewrite import Names, RewritePass, sweep
from passes.simplify.ties import Ties

_RANDOM = frozenset(
    ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli")
)

_KEPT = frozenset(("DequantizeLinear",))
"""Folding these would undo what the model's author chose: weights stored as integers."""

_MOVING = frozenset(
    (
        *("Cast", "CastLike", "Concat", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze"),
        *("Transpose", "Unsqueeze"),
    )
)
"""Operators that only move elements, so that operands can be told from the result."""


@register_pass("fold_constants")
@dataclass(frozen=True)
class FoldConstants(RewritePass):
    """Replace nodes by the constants that they compute.

    max_bytes: results larger than this are left to the runtime, and constants larger than this are not read.
    weights: fold what is computed from weights too. Without it weights are only laid out anew, so that each of them
    can be told in the result, as the write-back into a module must.
    """

    max_bytes: int = 2**30
    weights: bool = True

    def rewrite(self, graph: Graph) -> int:
        return fold_constants(graph, self.max_bytes, self.weights)


def fold_constants(graph: Graph, max_bytes: int = 2**30, weights: bool = True) -> int:
    """Edit in place; returns the number of nodes folded or given a constant target."""
    shapes, names, ties = ShapeValues(), Names(graph), Ties(graph)
    cuts = _Cuts(graph)

    def rule(node: Node) -> dict[Value, Value] | None:
        same = unchanged(node) if len(node.outputs) == 1 else None
        if same is not None and same.is_constant:
            return {node.outputs[0]: same}
        if (known := ties.same(node)) is not None:
            return {node.outputs[0]: known}
        arrays = _known_result(node, shapes)
        if arrays is None and not ties.keep(node) and (weights or not _uses_up(node, cuts)):
            arrays = _evaluate(node, graph.opset, max_bytes)
        if arrays is not None:
            found = {v: Value(v.name, data=a) for v, a in zip(node.outputs, arrays, strict=True)}
            ties.made(node, found)
            return found
        return {} if _make_target_constant(node, shapes, names) else None

    return sweep(graph, rule)


class _Cuts:
    """Which constants are cut by Slice nodes into parts that have every element once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._slices: dict[Value, list[Node]] | None = None
        self._known: dict[Value, bool] = {}

    def whole(self, constant: Value) -> bool:
        """True where the parts together give the constant back."""
        if self._slices is None:
            self._slices = {}
            for node in self._graph.nodes:
                if node.op == "Slice" and node.inputs[0] is not None and node.inputs[0].is_constant:
                    self._slices.setdefault(node.inputs[0], []).append(node)
        if constant not in self._known:
            self._known[constant] = self._covered(constant, self._slices.get(constant, []))
        return self._known[constant]

    def _covered(self, constant: Value, slices: list[Node]) -> bool:
        shape = constant.static_shape or ()
        places = np.arange(math.prod(shape), dtype=np.int64).reshape(shape)
        taken = np.zeros(places.size, np.int64)
        for node in slices:
            copy = Node(node.op, [Value("places", data=places), *node.inputs[1:]], [Value("part")], node.attributes)
            constant_bounds = all(v is None or v.is_constant for v in node.inputs[1:])
            part = _run_reference(copy, self._graph.opset) if constant_bounds else None
            if part is None:
                return False
            taken[part[0].ravel()] += 1
        return bool((taken == 1).all())


def _uses_up(node: Node, cuts: _Cuts) -> bool:
    """True for a node whose operands are weights that its result does not give back."""
    if not any(v is not None and is_parameter(v) and v.data is not None and v.data.size > 1 for v in node.inputs):
        return False
    table, places = node.inputs[0], node.input(1)
    if node.op == "Gather" and table is not None and places is not None and places.is_constant and table.shape:
        axis = node.attribute("axis", 0) % len(table.shape)
        return len(np.unique(places.numpy() % table.shape[axis])) < table.shape[axis]
    if node.op == "Slice" and table is not None:
        return not cuts.whole(table)
    return node.op not in _MOVING


def _known_result(node: Node, shapes: ShapeValues) -> list[np.ndarray] | None:
    """The result of shape arithmetic whose every element is known."""
    value = shapes.evaluate(node)
    if value is None or value.static is None:
        return None
    return [value.static.astype(node.outputs[0].dtype or np.int64)]


def _evaluate(node: Node, opset: int, max_bytes: int) -> list[np.ndarray] | None:
    if node.domain or node.op in _RANDOM or node.op in _KEPT or subgraphs(node) or not node.outputs:
        return None
    if any(v is not None and not v.is_constant for v in node.inputs) or not any(v is not None for v in node.inputs):
        return None
    if node.op == "Dropout" and len(node.inputs) == 3:
        return None
    read = sum(v.data.nbytes for v in node.inputs if v is not None and v.data is not None)
    if read > max_bytes or any(_nbytes(v) > max_bytes for v in node.outputs):
        return None
    if node.op == "ConstantOfShape":
        return _constant_of_shape(node)
    return _run_reference(node, opset)


def _constant_of_shape(node: Node) -> list[np.ndarray] | None:
    shape = node.inputs[0].numpy() if node.inputs[0] is not None else None
    fill = node.attribute("value")
    fill = np.zeros(1, np.float32) if fill is None else fill
    # A view of one element: filling gigabytes waits until somebody reads them.
    return None if shape is None else [np.broadcast_to(fill.reshape(()), tuple(int(d) for d in shape))]


def _run_reference(node: Node, opset: int) -> list[np.ndarray] | None:
    names = [v.name for v in node.inputs if v is not None]
    feeds = {v.name: v.numpy() for v in node.inputs if v is not None}
    try:
        evaluator = ReferenceEvaluator(node_proto(node), opsets={"": opset})
        evaluator.input_names_ = names
        results = evaluator.run(None, feeds)
    except Exception:  # operators that the reference lacks, or refuses to run, stay for the runtime
        return None
    arrays = [np.asarray(r) for r in results]
    agree = all(_agrees(v, a) for v, a in zip(node.outputs, arrays, strict=True))
    return arrays if agree else None


def _agrees(value: Value, array: np.ndarray) -> bool:
    if value.dtype is not None and value.dtype != array.dtype:
        return False
    return value.static_shape is None or value.static_shape == array.shape


def _nbytes(value: Value) -> int:
    if value.static_shape is None or value.dtype is None:
        return 0
    return math.prod(value.static_shape) * value.dtype.itemsize


def _make_target_constant(node: Node, shapes: ShapeValues, names: Names) -> bool:
    """Give a Reshape a constant target when one extent at most must be left open."""
    if node.op != "Reshape" or node.domain or node.attribute("allowzero", 0):
        return False
    x, target = node.inputs[0], node.inputs[1]
    value = shapes.of(target)
    if x is None or target is None or target.is_constant or value is None:
        return False
    items = [
        0 if isinstance(item, str) and x.shape is not None and i < len(x.shape) and x.shape[i] == item else item
        for i, item in enumerate(value.items)
    ]
    # -1 is what is left over, which is right for any one unknown extent as long as the others are not 0, as what the
    # data decide may be.
    symbolic = [i for i, item in enumerate(items) if not isinstance(item, int)]
    numbers = [item for item in value.items if isinstance(item, int)]
    copied = [item for i, item in enumerate(value.items) if isinstance(item, str) and i not in symbolic]
    if len(symbolic) > 1 or 0 in numbers or (symbolic and (-1 in numbers or any(INVENTED in c for c in copied))):
        return False
    constant = np.array([-1 if i in symbolic else item for i, item in enumerate(items)], np.int64)
    node.inputs[1] = Value(names.fresh(f"{node.name}_target"), data=constant)
    return True
