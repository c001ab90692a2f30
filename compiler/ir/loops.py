"""The shapes that a Loop's states have in every iteration.

onnx infers none, since an iteration may change them. Here the shape of the first value is assumed, the body is
inferred with it, and what comes out different is given up, until what goes in comes out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from compiler.ir.graph import Dim, Graph, Node, Value

Shape = tuple[Dim, ...] | None

_BEFORE_STATES = 2
"""A Loop takes the number of iterations and a condition before its states, and so does its body."""


@dataclass
class LoopState:
    """One state: its first value, the body's operand and result, and the Loop's result. declared: what the model says.

    shape: what is assumed of the Loop's result; assumed: whether anything has been yet.
    """

    first: Value
    operand: Value
    next: Value
    result: Value
    declared: Shape
    shape: Shape = None
    assumed: bool = False

    def widen(self) -> bool:
        """Assume no more than what the last inference bears out; True when that changed the assumption."""
        if self.assumed:
            shape = refine(_join(_join(self.shape, self.first.shape), self.next.shape), self.declared)
        else:
            shape = self.first.shape
        if shape == self.shape:
            return False
        self.shape = self.operand.shape = shape
        self.assumed = True
        return True


def loop_states(nodes: Iterable[Node]) -> list[LoopState]:
    """The states of all Loops among some nodes."""
    found = []
    for node in (n for n in nodes if n.op == "Loop" and not n.domain):
        body = node.attribute("body")
        assert isinstance(body, Graph)
        firsts = node.inputs[_BEFORE_STATES:]
        for first, operand, after, result in zip(
            firsts, body.inputs[_BEFORE_STATES:], body.outputs[1:], node.outputs, strict=False
        ):
            if first is not None:
                found.append(LoopState(first, operand, after, result, operand.shape))
    return found


def refine(inferred: Shape, declared: Shape, symbols: Collection[str] = ()) -> Shape:
    """The inferred shape; extents that are neither numbers nor known symbols are as declared."""
    if inferred is None or declared is None or len(inferred) != len(declared):
        return declared if inferred is None else inferred
    return tuple(
        i if isinstance(i, int) or i in symbols or d is None else d for i, d in zip(inferred, declared, strict=True)
    )


def _join(a: Shape, b: Shape) -> Shape:
    """What holds of both shapes."""
    if a is None or b is None or len(a) != len(b):
        return None
    return tuple(d if d == e else None for d, e in zip(a, b, strict=True))
