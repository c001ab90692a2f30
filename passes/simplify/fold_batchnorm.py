"""Fold per-channel scaling and shifting into the operator before it.

BatchNormalization in inference, and Mul, Add, Sub or Div by a constant per channel, are y = a*x + b on
channel axis 1; Conv, ConvTranspose, Gemm and BatchNormalization absorb that into their parameters when
nobody else reads their result. The numbers change by rounding only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from compiler.ir import ArrayConstant, Graph, Node, Value, subgraphs
from passes.pipeline import register_pass
from passes.simplify.rewrite import Names, RewritePass, read_values


class Parameters:
    """Gives nodes constants of their own; the ones they had may have other readers."""

    def __init__(self, graph: Graph) -> None:
        self._names = Names(graph)
        self._made: set[Value] = set()

    def set(self, node: Node, index: int, array: np.ndarray, suffix: str) -> None:
        """Make `array` the operand at `index`, in the type of the one that was there (or of the weight)."""
        old = node.input(index)
        like = old if old is not None else node.inputs[1]
        assert like is not None and like.dtype is not None
        data = ArrayConstant(array.astype(like.dtype))
        if old in self._made:
            old.data = data
            return
        base = f"{node.name}_{suffix}" if old is None else old.name
        while len(node.inputs) <= index:
            node.inputs.append(None)
        value = Value(self._names.fresh(f"{base}_folded"), data=data)
        self._made.add(value)
        node.inputs[index] = value


Affine = tuple[int, np.ndarray, np.ndarray]
"""(operand index of x, scale, shift) in float64; scale and shift have one element a channel, or one."""

Absorber = Callable[[Parameters, Node, np.ndarray, np.ndarray], bool]
"""Change the node so that its result becomes scale*y + shift; False, and nothing changed, when it cannot."""

ABSORBERS: dict[str, Absorber] = {}


@register_pass("fold_batchnorm")
@dataclass(frozen=True)
class FoldBatchNorm(RewritePass):
    """Fold BatchNormalization and per-channel constants into the layer before."""

    def rewrite(self, graph: Graph) -> int:
        return fold_batchnorm(graph)


def fold_batchnorm(graph: Graph) -> int:
    """Edit in place; returns the number of nodes folded away."""
    reads = Counter(read_values(graph))
    return _fold(graph, reads, Parameters(graph))


def absorber(op: str) -> Callable[[Absorber], Absorber]:
    """Register how an operator absorbs an affine map of its result."""

    def register(rule: Absorber) -> Absorber:
        ABSORBERS[op] = rule
        return rule

    return register


def _fold(graph: Graph, reads: Counter[Value], own: Parameters) -> int:
    local = set(graph.nodes)
    gone: set[Node] = set()
    for node in graph.nodes:
        affine = _affine(node)
        if affine is None:
            continue
        index, scale, shift = affine
        x = node.inputs[index]
        producer = x.producer if x is not None else None
        if x is None or producer not in local or producer.domain or reads[x] != 1 or x is not producer.outputs[0]:
            continue
        if producer.op in ABSORBERS and ABSORBERS[producer.op](own, producer, scale, shift):
            producer.outputs[0] = node.outputs[0]
            producer.outputs[0].producer = producer
            gone.add(node)
    graph.nodes = [n for n in graph.nodes if n not in gone]
    return len(gone) + sum(_fold(body, reads, own) for n in graph.nodes for body in subgraphs(n))


def _affine(node: Node) -> Affine | None:
    """The node as scale*x + shift, or None when it is not that."""
    if node.domain or any(v.dtype is None or v.dtype.kind not in "fV" for v in node.outputs):
        return None
    if node.op == "BatchNormalization":
        return _batchnorm_affine(node)
    if node.op not in ("Mul", "Add", "Sub", "Div"):
        return None
    for index, other in ((0, 1), (1, 0)):
        constant = _per_channel(node.inputs[other], node.inputs[index], node.outputs[0])
        if constant is None:
            continue
        one, zero = np.ones(1), np.zeros(1)
        if node.op == "Mul":
            return index, constant, zero
        if node.op == "Add":
            return index, one, constant
        if node.op == "Sub":
            return (index, one, -constant) if index == 0 else (index, -one, constant)
        if index == 0 and constant.all():
            return index, 1 / constant, zero
    return None


def _batchnorm_affine(node: Node) -> Affine | None:
    arrays = _parameters(node, (1, 2, 3, 4))
    if arrays is None or node.attribute("training_mode", 0) or len(node.outputs) != 1:
        return None
    scale, shift, mean, variance = arrays
    factor = scale / np.sqrt(variance + node.attribute("epsilon", 1e-5))
    return 0, factor, shift - mean * factor


def _per_channel(constant: Value | None, x: Value | None, result: Value) -> np.ndarray | None:
    """The constant as one number a channel of x, when broadcasting gives it no other meaning."""
    if constant is None or constant.data is None or x is None or x.is_constant or x.rank is None or x.rank < 2:
        return None
    if result.rank != x.rank or len(constant.data.shape) > x.rank:
        return None
    aligned = (1,) * (x.rank - len(constant.data.shape)) + constant.data.shape
    channels = x.shape[1] if x.shape is not None else None
    if any(d != 1 for a, d in enumerate(aligned) if a != 1) or aligned[1] not in (1, channels):
        return None
    return constant.numpy().astype(np.float64).reshape(-1)


def _parameters(node: Node, indices: tuple[int, ...]) -> list[np.ndarray] | None:
    values = [node.input(i) for i in indices]
    if any(v is None or not v.is_constant for v in values):
        return None
    return [v.numpy().astype(np.float64) for v in values if v is not None]


@absorber("Conv")
def _conv(own: Parameters, node: Node, scale: np.ndarray, shift: np.ndarray) -> bool:
    return _convolution(own, node, scale, shift, lambda w, s: w * s.reshape(-1, *(1,) * (w.ndim - 1)), 0)


@absorber("ConvTranspose")
def _conv_transpose(own: Parameters, node: Node, scale: np.ndarray, shift: np.ndarray) -> bool:
    groups = node.attribute("group", 1)

    def scaled(weight: np.ndarray, s: np.ndarray) -> np.ndarray:
        # Weight is [Cin, Cout/g, ...]; group i's input channels make its own output channels.
        split = weight.reshape(groups, -1, *weight.shape[1:])
        factors = s.reshape(groups, 1, weight.shape[1], *(1,) * (weight.ndim - 2))
        return (split * factors).reshape(weight.shape)

    return _convolution(own, node, scale, shift, scaled, 1)


def _convolution(
    own: Parameters,
    node: Node,
    scale: np.ndarray,
    shift: np.ndarray,
    scaled: Callable[[np.ndarray, np.ndarray], np.ndarray],
    channel_axis: int,
) -> bool:
    arrays = _parameters(node, (1,) if node.input(2) is None else (1, 2))
    if arrays is None:
        return False
    weight = arrays[0]
    channels = weight.shape[channel_axis] * (node.attribute("group", 1) if channel_axis else 1)
    scale, shift = np.broadcast_to(scale, channels), np.broadcast_to(shift, channels)
    bias = arrays[1] if len(arrays) > 1 else np.zeros(channels)
    own.set(node, 1, scaled(weight, scale), "weight")
    if len(arrays) > 1 or shift.any():
        own.set(node, 2, bias * scale + shift, "bias")
    return True


@absorber("Gemm")
def _gemm(own: Parameters, node: Node, scale: np.ndarray, shift: np.ndarray) -> bool:
    arrays = _parameters(node, (1,) if node.input(2) is None else (1, 2))
    if arrays is None:
        return False
    weight = arrays[0]
    transposed = bool(node.attribute("transB", 0))
    features = weight.shape[0 if transposed else 1]
    beta = node.attribute("beta", 1.0) if len(arrays) > 1 else 1.0
    bias = beta * (arrays[1] if len(arrays) > 1 else np.zeros(features))
    if bias.ndim == 2 and bias.shape[0] != 1:
        return False  # a row of its own for each sample
    scale, shift = np.broadcast_to(scale, features), np.broadcast_to(shift, features)
    own.set(node, 1, weight * (scale[:, None] if transposed else scale), "weight")
    own.set(node, 2, bias.reshape(-1) * scale + shift, "bias")
    node.attributes.pop("beta", None)
    return True


@absorber("BatchNormalization")
def _batchnorm(own: Parameters, node: Node, scale: np.ndarray, shift: np.ndarray) -> bool:
    arrays = _parameters(node, (1, 2))
    if arrays is None or node.attribute("training_mode", 0) or len(node.outputs) != 1:
        return False
    own.set(node, 1, arrays[0] * scale, "scale")
    own.set(node, 2, arrays[1] * scale + shift, "shift")
    return True
