"""Remove the nodes that provably give back their input, and merge chains of transposes and reshapes.

One rule an operator, in `RULES`; what a rule cannot prove it leaves alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import helper

from compiler.ir import Graph, Node, Value
from passes.pipeline import register_pass
from passes.simplify.rewrite import RewritePass, read_values, sweep

IdentityRule = Callable[[Node], Value | None]
"""The value that the node's first result equals, or None when that is not certain."""

RULES: dict[str, IdentityRule] = {}

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that keep the elements and their order."""

_MOST = 2**31 - 1
"""An `end` this large means "to the end" in every exporter."""


@register_pass("eliminate_identities")
@dataclass(frozen=True)
class EliminateIdentities(RewritePass):
    """Drop nodes that do nothing in inference."""

    def rewrite(self, graph: Graph) -> int:
        return eliminate_identities(graph)


def eliminate_identities(graph: Graph) -> int:
    """Edit in place; returns the number of nodes removed or merged."""
    used = set(read_values(graph))

    def rule(node: Node) -> dict[Value, Value] | None:
        if node.domain or not node.outputs or any(v in used for v in node.outputs[1:]):
            return None
        if (same := unchanged(node)) is not None:
            return {node.outputs[0]: same}
        return {} if _merge(node) else None

    return sweep(graph, rule)


def unchanged(node: Node) -> Value | None:
    """The value that the node's first result certainly equals, if there is one."""
    return RULES[node.op](node) if node.op in RULES and not node.domain else None


def identity_rule(*ops: str) -> Callable[[IdentityRule], IdentityRule]:
    """Register when operators give back their input."""

    def register(rule: IdentityRule) -> IdentityRule:
        RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


def same_shape(a: Value, b: Value) -> bool:
    """True when both shapes are known, by number or by symbol, and equal."""
    return a.shape is not None and a.shape == b.shape and None not in a.shape


def small_constant(value: Value | None) -> np.ndarray | None:
    """The data of a constant of few elements, else None."""
    return value.numpy() if value is not None and value.data is not None and value.data.size <= 64 else None


@identity_rule("Identity")
def _identity(node: Node) -> Value | None:
    return node.inputs[0]


@identity_rule("Dropout")
def _dropout(node: Node) -> Value | None:
    training = node.input(2)
    flag = small_constant(training)
    return node.inputs[0] if training is None or (flag is not None and not flag.any()) else None


@identity_rule("Cast")
def _cast(node: Node) -> Value | None:
    x = node.inputs[0]
    if x is None or x.dtype is None or x.dtype.kind == "O":
        return None
    return x if helper.np_dtype_to_tensor_dtype(x.dtype) == node.attribute("to") else None


@identity_rule("CastLike")
def _cast_like(node: Node) -> Value | None:
    x, like = node.inputs[0], node.inputs[1]
    return x if x is not None and like is not None and x.dtype is not None and x.dtype == like.dtype else None


@identity_rule("Sum", "Max", "Min", "Mean", "Concat")
def _single_operand(node: Node) -> Value | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


@identity_rule(*_RESHAPES)
def _reshape(node: Node) -> Value | None:
    """The same shape in the end means the same tensor, through any chain of reshapes."""
    value = node.inputs[0]
    while value is not None:
        if same_shape(value, node.outputs[0]):
            return value
        producer = value.producer
        value = producer.inputs[0] if producer is not None and _is_reshape(producer) else None
    return None


@identity_rule("Expand")
def _expand(node: Node) -> Value | None:
    x = node.inputs[0]
    return x if x is not None and same_shape(x, node.outputs[0]) else None


@identity_rule("Tile")
def _tile(node: Node) -> Value | None:
    repeats = small_constant(node.inputs[1])
    return node.inputs[0] if repeats is not None and (repeats == 1).all() else None


@identity_rule("Transpose")
def _transpose(node: Node) -> Value | None:
    perm = _permutation(node)
    return node.inputs[0] if perm is not None and perm == sorted(perm) else None


@identity_rule("Pad")
def _pad(node: Node) -> Value | None:
    pads = small_constant(node.inputs[1])
    return node.inputs[0] if pads is not None and not pads.any() else None


@identity_rule("Slice")
def _slice(node: Node) -> Value | None:
    x, starts, ends = node.inputs[0], small_constant(node.inputs[1]), small_constant(node.inputs[2])
    steps = small_constant(node.input(4))
    if x is None or (node.input(4) is not None and (steps is None or not (steps == 1).all())):
        return None
    if x.static_shape is not None and x.static_shape == node.outputs[0].static_shape:
        return x
    if starts is None or ends is None or starts.any():
        return None
    return x if (ends >= _MOST).all() else None


@identity_rule("Where")
def _where(node: Node) -> Value | None:
    """A condition that is the same everywhere chooses one operand, unless that one has to be broadcast."""
    condition = small_constant(node.inputs[0])
    if condition is None or condition.size == 0 or condition.min() != condition.max():
        return None
    chosen = node.inputs[1] if condition.flat[0] else node.inputs[2]
    return chosen if chosen is not None and same_shape(chosen, node.outputs[0]) else None


@identity_rule("Add", "Sub")
def _add_zero(node: Node) -> Value | None:
    return _neutral(node, 0, commutes=node.op == "Add")


@identity_rule("Mul", "Div")
def _mul_one(node: Node) -> Value | None:
    return _neutral(node, 1, commutes=node.op == "Mul")


def _neutral(node: Node, element: int, commutes: bool) -> Value | None:
    """The operand that is left when the other one is a single neutral element."""
    left, right = node.inputs[0], node.inputs[1]
    for x, other in ((left, right), (right, left)) if commutes else ((left, right),):
        if x is None or other is None or other.data is None or other.data.size != 1:
            continue
        if same_shape(x, node.outputs[0]) and other.numpy().reshape(-1)[0] == element:
            return x
    return None


def _permutation(node: Node) -> list[int] | None:
    perm = node.attribute("perm")
    if perm is not None:
        return [int(p) for p in perm]
    rank = node.inputs[0].rank if node.inputs[0] is not None else None
    return None if rank is None else list(range(rank))[::-1]


def _merge(node: Node) -> bool:
    """Make the node read what a node before it reads, when one of the two can do the work of both."""
    if node.op == "Gemm" and _transposed_weight(node):
        return True
    source = node.inputs[0].producer if node.inputs and node.inputs[0] is not None else None
    if source is None or source.domain:
        return False
    if node.op == source.op == "Transpose":
        first, second = _permutation(source), _permutation(node)
        if first is None or second is None:
            return False
        node.inputs[0] = source.inputs[0]
        node.attributes["perm"] = [first[p] for p in second]
        return True
    if node.op == "Reshape" and _is_reshape(source):
        target = small_constant(node.inputs[1])
        # 0 copies an extent of the shape in between, so such a target is only good as it stands.
        if target is None or ((target == 0).any() and not node.attribute("allowzero", 0)):
            return False
        node.inputs[0] = source.inputs[0]
        return True
    return False


def _transposed_weight(node: Node) -> bool:
    """Let a Gemm read its weight as it is stored and transpose it itself."""
    weight = node.inputs[1]
    source = weight.producer if weight is not None else None
    if source is None or source.domain or source.op != "Transpose" or _permutation(source) != [1, 0]:
        return False
    node.inputs[1] = source.inputs[0]
    node.attributes["transB"] = 1 - node.attribute("transB", 0)
    return True


def _is_reshape(node: Node) -> bool:
    return node.op in _RESHAPES and not node.domain
