"""Weights that a network reads in several forms: folding every form into a constant of its own would lose the tie.

An embedding that is the output projection too is read as it is and transposed. As two constants the table takes
twice the memory, a training step moves them apart, and pruning no longer knows that they are one.
"""

from __future__ import annotations

from collections.abc import Iterator

from compiler.ir import Graph, Node, Value, subgraphs
from compiler.ir.cost import is_parameter

_FORMS = frozenset(("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
"""Operators that give their first operand another form."""

_LASTING = frozenset(("DequantizeLinear",))
"""Operators that stay even where their operands are constant."""

Form = tuple[object, ...]
"""How the elements of a constant were laid out anew, step by step."""


class Ties:
    """The forms in which the nodes that stay read each constant. Sees the graph as it was when this was made."""

    def __init__(self, graph: Graph) -> None:
        self._readers: dict[Value, list[tuple[Node, Form | None]]] = {}
        self._lasting = set(graph.outputs)
        self._folded: set[Node] = set()
        self._folds: dict[tuple[Value, Form], Value] = {}
        self._was: dict[Value, Value] = {}
        computed: set[Value] = set()
        for node in graph.all_nodes():
            operands = [v for v in node.inputs if v is not None]
            for value in dict.fromkeys(operands):
                form = _form(node) if value is node.inputs[0] else None
                self._readers.setdefault(value, []).append((node, form))
            if operands and node.op not in _LASTING and all(v.is_constant or v in computed for v in operands):
                computed.update(node.outputs)
                self._folded.add(node)
            self._lasting.update(v for body in subgraphs(node) for v in body.outputs)

    def keep(self, node: Node) -> bool:
        """True for a node that gives a weight a form, when others read the weight in another form."""
        weight = node.inputs[0] if _form(node) is not None else None
        if weight is None or not is_parameter(weight) or sum(d > 1 for d in weight.static_shape or ()) < 2:
            return False
        forms = set(self._forms(self._was.get(weight, weight)))
        return len(forms) > 1 and any(True for _ in self._forms(node.outputs[0]))

    def same(self, node: Node) -> Value | None:
        """The constant that an equal node was folded into."""
        form = _form(node)
        weight = node.inputs[0] if form is not None else None
        return None if weight is None or form is None else self._folds.get((weight, form))

    def made(self, node: Node, constants: dict[Value, Value]) -> None:
        """Remember which constants took the place of a node's results."""
        self._was.update({new: old for old, new in constants.items()})
        form = _form(node)
        if form is not None and node.inputs[0] is not None:
            self._folds[node.inputs[0], form] = constants[node.outputs[0]]

    def _forms(self, value: Value, so_far: Form = ()) -> Iterator[Form]:
        """The forms in which nodes that stay read a value, some more than once."""
        if value in self._lasting:
            yield so_far
        for node, form in self._readers.get(value, ()):
            if node not in self._folded:
                yield so_far
            elif form is not None:
                yield from self._forms(node.outputs[0], (*so_far, *form))


def _form(node: Node) -> Form | None:
    """What a node does to its first operand's layout, () for nothing at all; None where it does more."""
    if node.domain or node.op not in _FORMS or node.inputs[0] is None:
        return None
    if node.op == "Identity":
        return ()
    if node.op == "Cast":
        return (("Cast", node.attribute("to")),)
    if node.op == "Transpose":
        return (("Transpose", tuple(node.attribute("perm", range(node.inputs[0].rank or 0)[::-1]))),)
    return (("Reshape", node.outputs[0].static_shape or node),)
