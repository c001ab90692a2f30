"""Before lowering: every shape must be a number, and what is known at compile time is computed at compile time.

Folding evaluates single nodes with onnx's reference implementation; shapes, ranges and casts of constants
vanish here, so that lowering rules may ask for constant axes, pads and indices.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from backends.lowering.rules import INTERNAL
from compiler.errors import SecateurError
from compiler.ir.graph import Dim, Graph, Node, Value, subgraphs
from compiler.ir.proto import node_proto, tensor_proto, value_info
from compiler.ir.shapes import infer_shapes

_RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
_FOLD_LIMIT = 1 << 26
"""Elements beyond which a folded constant would cost more memory than the node costs time."""


def prepare(graph: Graph) -> Graph:
    """A copy of `graph` with static shapes, constants folded and dead nodes removed.

    Raises SecateurError E_SYMBOLIC_DIM for an input whose shape is not all numbers.
    """
    graph = graph.copy()
    for value in graph.inputs:
        _require_static(value)
    _eliminate_dead(graph)
    for _ in range(len(graph.nodes) + 1):
        if any(v.static_shape is None or v.dtype is None for n in graph.nodes for v in n.outputs if v.name):
            infer_shapes(graph)
        if not _fold(graph):
            break
    _eliminate_dead(graph)
    for node in graph.nodes:
        for value in node.outputs:
            if value.name and (value.static_shape is None or value.dtype is None):
                raise SecateurError(
                    "E_SHAPE",
                    f"the shape of {value.name!r} is not known at compile time: {value.shape}",
                    where=node.describe(),
                    hint="shapes that depend on the data cannot be compiled; make them constant before export",
                )
    return graph


def _require_static(value: Value) -> None:
    if value.shape is None:
        raise SecateurError(
            "E_SYMBOLIC_DIM",
            f"the rank of input {value.name!r} is unknown",
            where=value.name,
            hint=f"bind it: --shape {value.name}=1x3x224x224",
        )
    for axis, dim in enumerate(value.shape):
        if not isinstance(dim, int):
            shape = "x".join(_example(a, d) for a, d in enumerate(value.shape))
            raise SecateurError(
                "E_SYMBOLIC_DIM",
                f"dimension {axis} of input {value.name!r} is not a number: {dim or 'unknown'!r}",
                where=value.name,
                hint=f"bind it: --shape {value.name}={shape}",
            )


def _example(axis: int, dim: Dim) -> str:
    return str(dim) if isinstance(dim, int) else "1" if axis == 0 else "224"


def _eliminate_dead(graph: Graph) -> None:
    live = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if any(v in live for v in node.outputs):
            kept.append(node)
            live.update(v for v in node.inputs if v is not None)
            for body in subgraphs(node):
                live.update(body.outer_values())
    graph.nodes = kept[::-1]


def _fold(graph: Graph) -> bool:
    """Replace nodes whose results are known by constants; True when something changed."""
    changed = False
    for node in list(graph.nodes):
        results = _known_results(graph, node)
        if results is None:
            continue
        changed = True
        graph.nodes.remove(node)
        for value, array in zip(node.outputs, results, strict=False):
            if value.name:
                graph.replace_value(value, Value(value.name, data=np.asarray(array)))
    return changed


def _known_results(graph: Graph, node: Node) -> list[np.ndarray] | None:
    if node.domain == INTERNAL or node.op in _RANDOM or subgraphs(node):
        return None
    source = node.input(0)
    if node.op in ("Shape", "Size") and source is not None and source.static_shape is not None:
        shape = np.array(source.static_shape, np.int64)
        if node.op == "Size":
            return [np.array(shape.prod(), np.int64)]
        return [shape[node.attribute("start", 0) : node.attribute("end", None)]]
    if node.op == "Constant" and "value" in node.attributes:
        return [np.asarray(node.attributes["value"])]
    if not all(v is None or v.is_constant for v in node.inputs):
        return None
    if any(v.static_shape is not None and np.prod(v.static_shape, dtype=np.int64) > _FOLD_LIMIT for v in node.outputs):
        return None
    return _evaluate(graph, node)


def _evaluate(graph: Graph, node: Node) -> list[np.ndarray] | None:
    constants = list(dict.fromkeys(v for v in node.inputs if v is not None))
    proto = helper.make_graph(
        [node_proto(node)],
        "fold",
        [],
        [value_info(v) if v.shape is not None else onnx.ValueInfoProto(name=v.name) for v in node.outputs if v.name],
        [tensor_proto(v) for v in constants],
    )
    opsets = [helper.make_opsetid("", graph.opset)]
    if node.domain:
        opsets.append(helper.make_opsetid(node.domain, graph.domains.get(node.domain, 1)))
    model = helper.make_model(proto, opset_imports=opsets, ir_version=10)
    try:
        results = iter(ReferenceEvaluator(model).run(None, {}))
    except Exception:  # the reference lacks this case; a lowering rule may not
        return None
    found = [next(results) if v.name else None for v in node.outputs]
    if not all(r is None or isinstance(r, np.ndarray | np.generic) for r in found):
        return None
    return [_as(v, r) for v, r in zip(node.outputs, found, strict=True)]


def _as(value: Value, result: np.ndarray | np.generic | None) -> np.ndarray:
    array = np.zeros(0) if result is None else np.asarray(result)
    return array if value.dtype is None or result is None else array.astype(value.dtype)
