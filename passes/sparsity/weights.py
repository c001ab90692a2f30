"""The weights of a network as [groups, outputs, inputs, taps], and those that no pattern can be laid on, with reasons.

Which axis of an operand is summed over is what `passes.coupling.contractions` says; the rest follows per operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from compiler.ir import Graph, Node, Value, subgraphs
from compiler.ir.contrib.fused import matrix_orders
from passes.coupling.contractions import contractions
from passes.coupling.readers import Use
from passes.coupling.rules.linear import einsum_terms
from passes.coupling.rules.recurrent import GATES


@dataclass(frozen=True)
class Layout:
    """How a weight is seen as [groups, outputs, inputs, taps].

    A convolution's groups are rows of their own, which patterns do not cross, and so are the matrices of a batch; a
    depthwise convolution is one group of outputs with one input each. split: the shape that its axes are split into;
    order: of those axes; shape: what they are joined to then.
    """

    split: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, int, int, int]

    def view(self, array: np.ndarray) -> np.ndarray:
        """A weight, or scores of it, as [groups, outputs, inputs, taps]."""
        return array.reshape(self.split).transpose(self.order).reshape(self.shape)

    def stored(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """What is [groups, outputs, inputs, taps] in the shape of the weight."""
        parts = array.reshape([self.split[axis] for axis in self.order])
        return parts.transpose(np.argsort(self.order)).reshape(shape)


@dataclass(frozen=True)
class Weight:
    """A constant that data are multiplied with.

    nodes: those that read it, in bodies too. layouts: the ways in which they see it, each once. reason: why no pattern
    can be laid on it, "" where one can.
    """

    value: Value
    nodes: tuple[Node, ...]
    layouts: tuple[Layout, ...]
    depthwise: bool
    reason: str = ""

    @property
    def name(self) -> str:
        """The constant's name."""
        return self.value.name

    @property
    def op(self) -> str:
        """The operator of its first layer."""
        return next((n.qualified_op for n in self.nodes if is_layer(n)), self.nodes[0].qualified_op)

    @property
    def floating(self) -> bool:
        """True for plain floating-point numbers; those of 8 bits and fewer are quantised."""
        return _floating(self.value)

    @property
    def shape(self) -> tuple[int, ...]:
        """As it is stored."""
        assert self.value.data is not None
        return self.value.data.shape

    def zeros(self) -> int | None:
        """How many of them are zero; None where they are quantised, and 0 may stand for another number."""
        return self.size - int(np.count_nonzero(self.value.numpy())) if self.floating else None

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def weights(graph: Graph) -> tuple[Weight, ...]:
    """The weights of all convolutions and products of a graph and its bodies, in the order of their first use."""
    found: dict[Value, list[tuple[Node, int, Layout | None]]] = {}
    for node in graph.all_nodes():
        for constant, index, layout in _sites(node):
            found.setdefault(constant, []).append((node, index, layout))
    uses = graph.consumers()
    outputs = {v for part in (graph, *graph.all_bodies()) for v in part.outputs}
    order = {constant: place for place, constant in enumerate(graph.all_constants())}
    return tuple(
        _weight(constant, found[constant], uses[constant], constant in outputs)
        for constant in sorted(found, key=order.__getitem__)
        if math.prod(constant.static_shape or (0,))
    )


def is_layer(node: Node) -> bool:
    """True for convolutions, depthwise too, and products with weights, quantised ones among them."""
    return _is_depthwise(node) or next(contractions(node), None) is not None


def first_layers(graph: Graph) -> set[Node]:
    """The layers that no other layer comes before; tables of rows (embeddings) are layers here."""
    return _outermost(graph.nodes, lambda node: [*_reads(node)], lambda node: node.outputs)


def last_layers(graph: Graph) -> set[Node]:
    """The layers that no other layer comes after."""
    return _outermost(graph.nodes[::-1], lambda node: node.outputs, lambda node: [*_reads(node)])


def _outermost(nodes: list[Node], near: Callable[[Node], list[Value]], far: Callable[[Node], list[Value]]) -> set[Node]:
    """The layers that are met first when nodes are walked from one end."""
    beyond: set[Value] = set()
    found = set()
    for node in nodes:
        layer = _holds_layer(node)
        inside = not beyond.isdisjoint(near(node))
        if layer and not inside:
            found.add(node)
        if layer or inside:
            beyond.update(v for v in far(node) if not v.is_constant)
    return found


def _reads(node: Node) -> Iterator[Value]:
    yield from (v for v in node.inputs if v is not None)
    for body in subgraphs(node):
        yield from body.outer_values()


def _holds_layer(node: Node) -> bool:
    table = node.input(0) if node.op == "Gather" else None
    embedding = table is not None and table.is_constant and table.rank == 2 and _floating(table)
    return embedding or is_layer(node) or any(is_layer(n) for body in subgraphs(node) for n in body.all_nodes())


def _weight(constant: Value, sites: list[tuple[Node, int, Layout | None]], uses: list[Use], output: bool) -> Weight:
    layouts = tuple(dict.fromkeys(layout for _, _, layout in sites if layout is not None))
    nodes = tuple(dict.fromkeys(node for node, _ in uses))
    depthwise = any(_is_depthwise(node) for node, _, _ in sites)
    seen = {(node, index) for node, index, layout in sites if layout is not None}
    others = [node for node, index in uses if (node, index) not in seen]
    reason = ""
    if not _floating(constant):
        reason = f"stored as {constant.dtype}"
    elif output:
        reason = "an output of the graph too"
    elif others and seen:
        reason = f"read by {others[0].describe()} too, in another way"
    elif others:
        reason = f"which axes {others[0].describe()} gives to outputs is not known"
    return Weight(constant, nodes, layouts, depthwise, reason)


def _floating(constant: Value) -> bool:
    return constant.dtype is not None and (constant.dtype.kind == "f" or constant.dtype.name == "bfloat16")


def _sites(node: Node) -> Iterator[tuple[Value, int, Layout | None]]:
    """(constant, operand, layout; None where it is not known) for each weight of a node."""
    if _is_depthwise(node):
        weight = node.inputs[1]
        assert weight is not None
        yield weight, 1, _convolution(node, weight)
        return
    if node.op == "MatMulNBits":  # what it sums over is known of its scales, which are no weights
        return
    for constant in dict.fromkeys(weight for _, _, weight, _ in contractions(node)):
        index = next((i for i, v in enumerate(node.inputs) if v is constant), None)
        # Where it is none, the constant is stored in another way than the node reads it.
        yield constant, -1 if index is None else index, None if index is None else _layout(node, index, constant)


_CONVOLUTIONS = ("Conv", "FusedConv", "DeformConv", "ConvTranspose")
_PRODUCTS = ("MatMul", "FusedMatMul", "TransposeMatMul")
_GEMMS = ("Gemm", "FusedGemm")


def _is_depthwise(node: Node) -> bool:
    """True for a convolution of which each output reads one of several inputs."""
    weight = node.input(1)
    if node.op not in _CONVOLUTIONS or weight is None or not weight.is_constant or not weight.static_shape:
        return False
    groups = int(node.attribute("group", 1))
    return groups > 1 and weight.static_shape[1 if node.op != "ConvTranspose" else 0] == (
        groups if node.op == "ConvTranspose" else 1
    )


def _layout(node: Node, index: int, constant: Value) -> Layout | None:
    rank = constant.rank or 0
    if node.op in _CONVOLUTIONS:
        return _convolution(node, constant)
    if node.op in _PRODUCTS or node.op in _GEMMS:
        if node.op in _GEMMS:
            order = [1, 0] if node.attribute("transB" if index else "transA", 0) else [0, 1]
        else:
            order = matrix_orders(node)[index]
        outputs, inputs = (order[-1:], order[-2:-1]) if index else (order[-2:-1], order[-1:])
        return _matrix(constant, [], [], order) if rank == 1 else _matrix(constant, order[:-2], outputs, inputs)
    if node.op in GATES or (node.op == "MoE" and rank == 3):
        return _matrix(constant, [0], [1], [2])
    if node.op == "Einsum":
        return _einsum(node, index, constant)
    if node.op == "Attention" and node.domain:
        return _matrix(constant, [], [1], [0])
    return None


def _convolution(node: Node, constant: Value) -> Layout:
    first, second, *kernel = constant.static_shape or ()
    groups, taps = int(node.attribute("group", 1)), math.prod(kernel)
    rows = first // groups
    if node.op == "ConvTranspose":
        if _is_depthwise(node):
            return Layout((first, second, taps), (0, 1, 2), (1, first * second, 1, taps))
        return Layout((groups, rows, second, taps), (0, 2, 1, 3), (groups, second, rows, taps))
    if _is_depthwise(node):
        return Layout((first, 1, taps), (0, 1, 2), (1, first, 1, taps))
    return Layout((groups, rows, second, taps), (0, 1, 2, 3), (groups, rows, second, taps))


def _matrix(constant: Value, batch: list[int], outputs: list[int], inputs: list[int]) -> Layout:
    shape = constant.static_shape or ()
    joined = (math.prod(shape[a] for a in axes) for axes in (batch, outputs, inputs))
    return Layout(shape, (*batch, *outputs, *inputs), (*joined, 1))  # type: ignore[arg-type]


def _einsum(node: Node, index: int, constant: Value) -> Layout | None:
    """Letters of the result alone are outputs, those of the data alone inputs, those of both tell matrices apart."""
    terms = einsum_terms(node)
    if terms is None or len(terms) != 3:
        return None
    own, data, result = terms[index], terms[1 - index], terms[2]
    if any(letter not in data and letter not in result for letter in own):
        return None
    return _matrix(
        constant,
        [a for a, letter in enumerate(own) if letter in data and letter in result],
        [a for a, letter in enumerate(own) if letter not in data],
        [a for a, letter in enumerate(own) if letter not in result],
    )
