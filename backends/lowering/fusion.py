"""Fusion: fewer, larger kernels from the same graph, before lowering.

BatchNormalization folds into the convolution before it; bias, residual and activation join the kernel that makes
their operand; trees of element-wise operators become one. The result uses the internal domain and never leaves
the backend.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from backends.lowering.elementwise import instruction, scalar
from backends.lowering.expressions import EXPRESSIONS, Instruction, activation
from backends.lowering.gelu import recognise_gelu
from backends.lowering.half import to_half
from backends.lowering.pairs import pair_depthwise
from backends.lowering.rules import INTERNAL
from backends.schedules.epilogue import Epilogue
from compiler.ir.graph import Graph, Node, Value

_MACS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LONGEST = 64
"""Operators in one element-wise kernel at most: beyond that registers spill."""


def fuse(graph: Graph, half: bool = False) -> Graph:
    """The graph with what can be fused fused, as a new graph over the same values. half: in half precision."""
    graph = Graph(
        graph.name, list(graph.inputs), list(graph.outputs), list(graph.nodes), graph.opset, dict(graph.domains)
    )
    recognise_gelu(graph)
    _fold_batch_norm(graph)
    _normalize_batch_norm(graph)
    _absorb_bias(graph)
    if half:
        to_half(graph)
    _absorb_epilogues(graph, ("float32", "float16") if half else ("float32",))
    pair_depthwise(graph)
    return _group_elementwise(graph)


def origins(node: Node) -> list[str]:
    """Names of the graph's nodes that a node stands for."""
    return list(node.attribute("nodes", [node.name]))


def _sole_consumer(graph: Graph, consumers: dict[Value, list[tuple[Node, int]]], value: Value) -> Node | None:
    uses = consumers.get(value, [])
    return uses[0][0] if len(uses) == 1 and value not in graph.outputs else None


def _fold_batch_norm(graph: Graph) -> None:
    """Conv, BatchNormalization -> Conv with scaled weights."""
    consumers = graph.consumers()
    replaced: dict[Node, Node] = {}
    dropped: set[Node] = set()
    for conv in graph.nodes:
        if conv.op not in ("Conv", "ConvTranspose") or conv.domain or not _constant(conv.input(1)):
            continue
        norm = _sole_consumer(graph, consumers, conv.outputs[0])
        if norm is None or not _foldable(norm) or not (conv.input(2) is None or _constant(conv.input(2))):
            continue
        replaced[norm] = _scaled(conv, norm)
        dropped.add(conv)
    graph.nodes = [replaced.get(n, n) for n in graph.nodes if n not in dropped]


def _constant(value: Value | None) -> bool:
    return value is not None and value.is_constant


def _foldable(norm: Node) -> bool:
    return (
        norm.op == "BatchNormalization"
        and not norm.domain
        and not norm.attribute("training_mode", 0)
        and all(_constant(v) for v in norm.inputs[1:5])
    )


def _scale_shift(norm: Node) -> tuple[np.ndarray, np.ndarray]:
    """BatchNormalization as y = x * scale + shift, in double precision."""
    gamma, beta, mean, variance = (v.numpy().astype(np.float64) for v in norm.inputs[1:5] if v is not None)
    scale = gamma / np.sqrt(variance + norm.attribute("epsilon", 1e-5))
    return scale, beta - mean * scale


def _scaled(conv: Node, norm: Node) -> Node:
    scale, shift = _scale_shift(norm)
    weight, bias = conv.input(1), conv.input(2)
    assert weight is not None and weight.dtype is not None
    array = weight.numpy().astype(np.float64)
    if conv.op == "Conv":
        array = array * scale.reshape(-1, *[1] * (array.ndim - 1))
    else:
        groups = conv.attribute("group", 1)
        grouped = array.reshape(groups, -1, *array.shape[1:])
        factor = scale.reshape(groups, 1, -1, *[1] * (array.ndim - 2))
        array = (grouped * factor).reshape(array.shape)
    if bias is not None:
        shift = shift + bias.numpy().astype(np.float64) * scale
    inputs = [
        conv.inputs[0],
        Value(weight.name, data=array.astype(weight.dtype)),
        Value(f"{norm.outputs[0].name}.shift", data=shift.astype(weight.dtype)),
    ]
    return _fused(conv, inputs, norm, {})


def _fused(first: Node, inputs: list[Value | None], last: Node, extra: dict[str, Any]) -> Node:
    """`first` with other inputs, computing what `last` computed. The values keep their first producer."""
    names = [*origins(first), *(n for n in origins(last) if n not in origins(first))]
    node = Node.__new__(Node)
    node.op, node.domain, node.name, node.origin = first.op, first.domain, first.name, first.origin
    node.inputs, node.outputs = inputs, [last.outputs[0]]
    node.attributes = first.attributes | {"nodes": names} | extra
    return node


def _normalize_batch_norm(graph: Graph) -> None:
    """A BatchNormalization that stands alone becomes Mul and Add by constants, which fuse further."""
    nodes = []
    for norm in graph.nodes:
        source = norm.input(0)
        if not _foldable(norm) or source is None or source.dtype is None or source.rank is None:
            nodes.append(norm)
            continue
        scale, shift = _scale_shift(norm)
        shape = (-1,) + (1,) * (source.rank - 2)
        output = norm.outputs[0]
        middle = Value(f"{output.name}.scaled", source.dtype, output.shape)
        factor = Value(f"{output.name}.scale", data=scale.astype(source.dtype).reshape(shape))
        term = Value(f"{output.name}.shift", data=shift.astype(source.dtype).reshape(shape))
        nodes.append(Node("Mul", [source, factor], [middle], {"nodes": [norm.name]}, name=norm.name))
        nodes.append(Node("Add", [middle, term], [output], {"nodes": [norm.name]}, name=norm.name))
    graph.nodes = nodes


def _absorb_bias(graph: Graph) -> None:
    """Conv or MatMul, then Add of a constant per output channel -> the bias input."""
    consumers = graph.consumers()
    replaced: dict[Node, Node] = {}
    dropped: set[Node] = set()
    for node in graph.nodes:
        if node.op not in ("Conv", "ConvTranspose", "MatMul") or node.domain or node.input(2) is not None:
            continue
        add = _sole_consumer(graph, consumers, node.outputs[0])
        if add is None or add.op != "Add" or add.domain or add.outputs[0].shape != node.outputs[0].shape:
            continue
        other = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
        bias = _as_bias(node, other)
        if bias is None:
            continue
        extra = {"epilogue": Epilogue(bias=True)} if node.op == "MatMul" else {}
        replaced[add] = _fused(node, [*node.inputs[:2], bias], add, extra)
        dropped.add(node)
    graph.nodes = [replaced.get(n, n) for n in graph.nodes if n not in dropped]


def _as_bias(node: Node, value: Value | None) -> Value | None:
    """A constant operand as a vector over the node's output channels, if it is one."""
    rank = node.outputs[0].rank
    shape = node.outputs[0].static_shape
    if value is None or value.data is None or rank is None or shape is None or rank < 2:
        return None
    axis = rank - 1 if node.op == "MatMul" else 1
    padded = (1,) * (rank - len(value.data.shape)) + value.data.shape
    if any(d != 1 for a, d in enumerate(padded) if a != axis) or padded[axis] not in (1, shape[axis]):
        return None
    array = np.broadcast_to(value.numpy().reshape(-1), (shape[axis],))
    return Value(f"{value.name}.bias", data=np.ascontiguousarray(array))


def _absorb_epilogues(graph: Graph, dtypes: tuple[str, ...]) -> None:
    """What follows a convolution or matrix product of these types moves into it: a residual Add, then an activation."""
    position = {n: i for i, n in enumerate(graph.nodes)}
    consumers = graph.consumers()
    nodes = list(graph.nodes)
    producer = {v: n for n in nodes for v in n.outputs}
    gone: set[Node] = set()
    for node in graph.nodes:
        if node.op not in _MACS or node.domain or str(node.outputs[0].dtype) not in dtypes:
            continue
        current, place = node, position[node]
        epilogue = node.attribute("epilogue") or Epilogue(bias=node.input(2) is not None)
        residual = _residual(graph, consumers, current, position, producer, place)
        if residual is not None:
            add, other = residual
            epilogue = Epilogue(epilogue.bias, True)
            current = _fused(current, [*current.inputs, other], add, {"epilogue": epilogue})
            gone.add(add)
        found = _activation(graph, consumers, current.outputs[0])
        if found is not None:
            last, (name, alpha, beta) = found
            epilogue = Epilogue(epilogue.bias, epilogue.residual, name, alpha, beta)
            current = _fused(current, current.inputs, last[-1], {"epilogue": epilogue})
            current.attributes["nodes"] = [*origins(current), *(n.name for n in last[:-1])]
            gone.update(last)
        if current is not node:
            nodes[position[node]] = current
            for value in current.outputs:
                producer[value] = current
    graph.nodes = [n for n in nodes if n not in gone]
    graph.nodes = _ordered(graph)


def _residual(
    graph: Graph,
    consumers: dict[Value, list[tuple[Node, int]]],
    node: Node,
    position: dict[Node, int],
    producer: dict[Value, Node],
    place: int,
) -> tuple[Node, Value] | None:
    add = _sole_consumer(graph, consumers, node.outputs[0])
    if add is None or add.op != "Add" or add.domain or add.inputs[0] is add.inputs[1]:
        return None
    other = add.inputs[1] if add.inputs[0] is node.outputs[0] else add.inputs[0]
    if other is None or other.is_constant or other.shape != node.outputs[0].shape:
        return None
    # Of two convolutions that meet in an Add, the later one takes it: the earlier one's result is then ready.
    maker = producer.get(other)
    if maker is not None and maker in position and position[maker] > place:
        return None
    return add, other


def _activation(
    graph: Graph, consumers: dict[Value, list[tuple[Node, int]]], value: Value
) -> tuple[list[Node], tuple[str, float | None, float | None]] | None:
    """The nodes after `value` that are one activation, the last of which makes its result."""
    uses = consumers.get(value, [])
    if value in graph.outputs:
        return None
    if len(uses) == 2 and {n.op for n, _ in uses} == {"Sigmoid", "Mul"}:
        gate = next(n for n, _ in uses if n.op == "Sigmoid")
        product = next(n for n, _ in uses if n.op == "Mul")
        if gate.outputs[0] in product.inputs and _sole_consumer(graph, consumers, gate.outputs[0]) is product:
            return [gate, product], ("silu", None, None)
        return None
    follower = _sole_consumer(graph, consumers, value)
    if follower is None or follower.domain or follower.inputs[0] is not value:
        return None
    attributes = dict(follower.attributes)
    if follower.op == "Clip":
        for index, name in ((1, "min"), (2, "max")):
            bound = follower.input(index)
            if bound is not None and not bound.is_constant:
                return None
            if bound is not None and bound.data is not None and bound.data.size == 1:
                attributes[name] = float(bound.numpy().reshape(()))
    known = activation(follower.op, attributes)
    return None if known is None else ([follower], known)


def _ordered(graph: Graph) -> list[Node]:
    """The nodes, each after what it reads, otherwise in their present order."""
    ready = {*graph.inputs}
    ordered: list[Node] = []
    waiting = list(graph.nodes)
    made = {v for n in waiting for v in n.outputs}
    while waiting:
        later = []
        for node in waiting:
            if all(v is None or v.is_constant or v in ready or v not in made for v in node.inputs):
                ordered.append(node)
                ready.update(node.outputs)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise AssertionError("fusion made a cycle")
        waiting = later
    return ordered


def _group_elementwise(graph: Graph) -> Graph:
    """Trees and diamonds of element-wise operators over one shape become single `Elementwise` nodes."""
    consumers = graph.consumers()
    group_of: dict[Node, list[Node]] = {}
    for node in reversed(graph.nodes):
        if not _is_elementwise(node):
            continue
        uses = consumers.get(node.outputs[0], [])
        groups = {id(group_of.get(n, [])): group_of.get(n) for n, _ in uses}
        shared = next(iter(groups.values())) if len(groups) == 1 else None
        if (
            shared is not None
            and node.outputs[0] not in graph.outputs
            and node.outputs[0].shape == shared[0].outputs[0].shape
            and len(shared) < _LONGEST
        ):
            shared.append(node)
            group_of[node] = shared
        else:
            group_of[node] = [node]
    nodes = []
    for node in graph.nodes:
        group = group_of.get(node)
        if group is None:
            nodes.append(node)
        elif group[0] is node:
            nodes.append(_elementwise(group[::-1]) if len(group) > 1 else node)
    graph.nodes = nodes
    return graph


def _is_elementwise(node: Node) -> bool:
    return (
        not node.domain
        and node.op in EXPRESSIONS
        and node.op != "Identity"
        and len(node.outputs) == 1
        and math.prod(node.outputs[0].static_shape or ()) > 0
    )


def _elementwise(group: list[Node]) -> Node:
    """One node for a group, in order; its program's operands are the group's inputs and earlier results."""
    results: dict[Value, int] = {}
    inputs: list[Value] = []
    program: list[Instruction] = []
    for node in group:
        operands: list[tuple[Any, ...]] = []
        for value in node.inputs[: 1 if node.op == "CastLike" else None]:
            if value is None:
                continue
            if value in results:
                operands.append(("result", results[value]))
                continue
            known = scalar(value)
            if known is None:
                if value not in inputs:
                    inputs.append(value)
                known = ("input", inputs.index(value))
            operands.append(known)
        results[node.outputs[0]] = len(program)
        program.append(instruction(node, operands))
    names = list(dict.fromkeys(name for n in group for name in origins(n)))
    fused = Node.__new__(Node)
    last = group[-1]
    fused.op, fused.domain, fused.name, fused.origin = "Elementwise", INTERNAL, last.name, last.origin
    fused.inputs, fused.outputs = list(inputs), list(last.outputs)
    fused.attributes = {"program": tuple(program), "nodes": names}
    return fused
