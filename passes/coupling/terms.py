"""Gated terms: sums whose terms are each multiplied by one position of an axis (experts as separate modules).

Where every position of an axis is picked out only to weigh its own term of one sum, the positions are
interchangeable: a position that moves is picked at its new place, and one that goes takes its term along.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from compiler.ir import Graph, Node, Value, subgraphs

_VIEWS = {"Cast", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_SUMS = {"Add", "Sum"}

Use = tuple[Node, int]
"""A node and which of its operands is meant; -1 for what its bodies read."""


@dataclass(frozen=True)
class Term:
    """A term of a sum: `operand` of `node`, weighed by `picked`.

    picked: what the node `pick` takes from `position` of `axis` of `value`.
    nodes, constants: what only this term needs.
    """

    value: Value
    axis: int
    position: int
    pick: Node
    picked: Value
    node: Node
    operand: int
    nodes: frozenset[Node] = frozenset()
    constants: frozenset[Value] = frozenset()


def gated_terms(graph: Graph) -> list[Term]:
    """The gated terms of every axis all of whose positions weigh one term of the same sum."""
    uses = _uses(graph)
    found: dict[tuple[Value, int], list[tuple[Term, Node]]] = {}
    for node in graph.nodes:
        for value, axis, position, picked in _picks(node):
            use = _weighed(picked, graph, uses)
            if use is not None:
                term = Term(value, axis, position, node, picked, *use)
                found.setdefault((value, axis), []).append((term, _root(use[0], graph, uses)))
    terms = []
    for (value, axis), weighed in found.items():
        extent = (value.shape or ())[axis]
        whole = (
            sorted(term.position for term, _ in weighed) == list(range(extent)) if isinstance(extent, int) else False
        )
        apart = len({(term.node, term.operand) for term, _ in weighed}) == len(weighed)
        if whole and apart and len({root for _, root in weighed}) == 1:
            terms += [term for term, _ in weighed]
    return list(_with_needs(graph, terms, uses))


def _uses(graph: Graph) -> dict[Value, list[Use]]:
    """For each value, the nodes of this graph that read it, whether themselves or in their bodies."""
    uses: dict[Value, list[Use]] = {}
    for node in graph.nodes:
        read = [(v, i) for i, v in enumerate(node.inputs) if v is not None]
        read += [(v, -1) for body in subgraphs(node) for v in (*body.outer_values(), *body.all_constants())]
        for value, operand in read:
            uses.setdefault(value, []).append((node, operand))
    return uses


def _picks(node: Node) -> Iterator[tuple[Value, int, int, Value]]:
    """(value, axis, position, result) for each single position that a node picks."""
    x = node.inputs[0] if node.inputs else None
    if node.domain or x is None or x.is_constant or x.shape is None or node.op not in ("Gather", "Slice", "Split"):
        return
    if node.op == "Slice":
        yield from _sliced(node, x)
        return
    axis = int(node.attribute("axis", 0)) % len(x.shape)
    extent = x.shape[axis]
    if node.op == "Gather":
        index = node.inputs[1]
        single = index is not None and index.is_constant and index.numpy().size == 1
        if index is not None and single and isinstance(extent, int):
            yield x, axis, int(index.numpy().ravel()[0]) % extent, node.outputs[0]
    elif all(v.shape is not None and v.shape[axis] == 1 for v in node.outputs):
        for position, value in enumerate(node.outputs):
            yield x, axis, position, value


def _sliced(node: Node, x: Value) -> Iterator[tuple[Value, int, int, Value]]:
    """A Slice of one axis by constant bounds that leaves one position."""
    starts, axes, y = node.input(1), node.input(3), node.outputs[0]
    if starts is None or axes is None or not (starts.is_constant and axes.is_constant) or axes.numpy().size != 1:
        return
    axis = int(axes.numpy().ravel()[0])
    extent = x.shape[axis] if x.shape is not None else None
    if isinstance(extent, int) and y.shape is not None and y.shape[axis] == 1:
        yield x, axis % len(y.shape), int(starts.numpy().ravel()[0]) % extent, y


def _weighed(value: Value, graph: Graph, uses: Mapping[Value, list[Use]]) -> Use | None:
    """The sum, and its operand, of the one term that a value is a factor of."""
    factor = False
    while value not in graph.outputs and len(uses.get(value, ())) == 1:
        node, operand = uses[value][0]
        if node.domain:
            return None
        if node.op in _SUMS:
            y = node.outputs[0]
            return (node, operand) if factor and value.shape is not None and value.shape == y.shape else None
        if node.op == "Mul":
            factor = True
        elif node.op not in _VIEWS or operand != 0:
            return None
        value = node.outputs[0]
    return None


def _root(node: Node, graph: Graph, uses: Mapping[Value, list[Use]]) -> Node:
    """The last of a chain of sums."""
    while True:
        readers = [reader for reader, _ in uses.get(node.outputs[0], ())]
        if len(readers) != 1 or node.outputs[0] in graph.outputs or readers[0].op not in _SUMS:
            return node
        node = readers[0]


def _with_needs(graph: Graph, terms: list[Term], uses: Mapping[Value, list[Use]]) -> Iterator[Term]:
    """The terms together with the nodes and constants that nothing else reads."""
    ends = {(term.node, term.operand): index for index, term in enumerate(terms)}
    owner: dict[Node, int] = {}
    nodes: list[list[Node]] = [[] for _ in terms]
    constants: list[list[Value]] = [[] for _ in terms]

    def owner_of(value: Value) -> int | None:
        owners = {ends.get(use, owner.get(use[0])) for use in uses.get(value, ())}
        return owners.pop() if len(owners) == 1 and value not in graph.outputs else None

    if terms:
        for node in reversed(graph.nodes):
            owners = {owner_of(value) for value in node.outputs if uses.get(value) or value in graph.outputs}
            only = owners.pop() if len(owners) == 1 else None
            if only is not None:
                owner[node] = only
                nodes[only] += [node, *(inner for body in subgraphs(node) for inner in body.all_nodes())]
        for value in graph.all_constants():
            only = owner_of(value)
            if only is not None:
                constants[only].append(value)
    for term, own, held in zip(terms, nodes, constants, strict=True):
        yield replace(term, nodes=frozenset(own), constants=frozenset(held))


def repick(places: Mapping[Term, int], twin: Mapping[Node, Node]) -> None:
    """Pick each term's weight from its new place. twin: the nodes of the graph to change, by those of the terms."""
    outputs: dict[Node, dict[int, Value]] = {}
    for term, place in places.items():
        node = twin[term.pick]
        if node.op == "Split":
            outputs.setdefault(node, {})[place] = node.outputs[term.position]
        elif node.op == "Gather":
            index = term.pick.inputs[1]
            assert index is not None
            node.inputs[1] = Value(index.name, data=np.full(index.static_shape or (), place, index.dtype))
        else:
            bounds = [place], [place + 1], [term.axis], [1]
            names = [f"{node.outputs[0].name}.{part}" for part in ("starts", "ends", "axes", "steps")]
            operands = [Value(n, data=np.array(b, np.int64)) for n, b in zip(names, bounds, strict=True)]
            node.inputs = [node.inputs[0], *operands]
    for node, by_place in outputs.items():
        node.outputs = [by_place[place] for place in sorted(by_place)]
        sizes = Value(f"{node.outputs[0].name}.sizes", data=np.ones(len(by_place), np.int64))
        node.attributes.pop("num_outputs", None)
        node.inputs = [node.inputs[0], sizes]


def detach(graph: Graph, gone: Collection[Term], twin: Mapping[Node, Node]) -> set[Value]:
    """Take terms out of their sums, in place; one term of a sum must stay. Returns what is no longer read."""
    missing = {v for term in gone if (v := twin[term.node].inputs[term.operand]) is not None}
    for node in graph.nodes:
        if node.op not in _SUMS or missing.isdisjoint(node.inputs):
            continue
        left = [v for v in node.inputs if v not in missing]
        if not left:
            missing.update(node.outputs)
        node.op, node.inputs = ("Identity" if len(left) == 1 else node.op), left or node.inputs
    return missing


def drop(graph: Graph, gone: Collection[Term], twin: Mapping[Node, Node]) -> None:
    """Take terms out of their sums, and what only they need out of the graph, in place."""
    missing = detach(graph, gone, twin)
    needed = {twin[node] for term in gone for node in term.nodes}
    graph.nodes = [node for node in graph.nodes if node not in needed and missing.isdisjoint(node.outputs)]
