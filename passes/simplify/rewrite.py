"""What the simplifying passes share: the in-place rewrite behind a pass, and one sweep that replaces values."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from compiler.ir import Graph, Node, Value, infer_shapes, subgraphs
from passes.pipeline import Context, Pass

Rule = Callable[[Node], dict[Value, Value] | None]
"""None: the rule does not apply. {}: it changed the node in place. Else every result that is still read,
with the value that takes its place; the node goes."""


@dataclass(frozen=True)
class RewritePass(Pass):
    """A pass that edits a copy of its graph in place and counts its changes."""

    @abstractmethod
    def rewrite(self, graph: Graph) -> int:
        """Edit `graph`; returns the number of changes, 0 when there is nothing left to do."""

    def run(self, graph: Graph, context: Context) -> Graph:
        changed = graph.copy()
        count = self.rewrite(changed)
        context.report(self.name, {"changes": count})
        if not count:
            return graph
        infer_shapes(changed)
        return changed


def read_values(graph: Graph) -> Iterator[Value]:
    """Every read of a value, once a read: operands, graph outputs, and the same inside bodies."""
    for node in graph.nodes:
        yield from (v for v in node.inputs if v is not None)
        for body in subgraphs(node):
            yield from read_values(body)
    yield from graph.outputs


class Names:
    """The names of a graph's values, bodies included, and fresh ones; cheaper than asking the graph each time."""

    def __init__(self, graph: Graph) -> None:
        self._taken = graph.names()

    def fresh(self, base: str) -> str:
        """`base`, or `base_1`, `base_2`, … whichever is free; taken from now on."""
        name, count = base, 0
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._taken.add(name)
        return name


def sweep(graph: Graph, rule: Rule, replaced: dict[Value, Value] | None = None) -> int:
    """Apply `rule` to every node in order, bodies first; returns the number of changes.

    Names at the graph's boundary stay: a value that takes an output's place takes its name too, and
    where that is impossible (it is an input, or an output already) an Identity remains.
    """
    replaced = {} if replaced is None else replaced
    own = {v for node in graph.nodes for v in node.outputs}
    nodes: list[Node] = []
    count = 0
    for node in graph.nodes:
        node.inputs = [None if v is None else replaced.get(v, v) for v in node.inputs]
        count += sum(sweep(body, rule, replaced) for body in subgraphs(node))
        result = rule(node)
        if result:
            blocked = [o for o in result if o in graph.outputs and not _take_output(graph, o, result[o], own)]
            if blocked and node.op == "Identity" and not node.domain:
                nodes.append(node)
                continue
            replaced.update({old: new for old, new in result.items() if old not in blocked})
            nodes += [_identity(node, result[o], o) for o in blocked]
        elif result is None or node.outputs:
            nodes.append(node)
        count += result is not None
    graph.nodes = nodes
    graph.outputs = [replaced.get(v, v) for v in graph.outputs]
    return count


def _take_output(graph: Graph, old: Value, new: Value, own: set[Value]) -> bool:
    """Put `new` in the place of the graph output `old`, under its name; False when it cannot be renamed."""
    if new.is_constant:
        return new.name == old.name
    if new not in own or new in graph.outputs:
        return False
    new.name = old.name
    new.shape = old.shape if old.shape is not None else new.shape
    graph.outputs = [new if v is old else v for v in graph.outputs]
    return True


def _identity(node: Node, source: Value, result: Value) -> Node:
    return Node("Identity", [source], [result], name=node.name, origin=node.origin)
