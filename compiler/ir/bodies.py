"""A graph and its bodies as runs of their own, so that what a branch computes shows even when it is not taken.

A body runs on what its node would give it: the values that it reads from outside and, for a Loop and a Scan, the
operands of the first iteration, all taken from a run of the graph around it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from compiler.errors import CheckFailed
from compiler.ir.execute import execute, random_inputs
from compiler.ir.graph import Graph, Node, Value, subgraphs

Path = tuple[tuple[str, str], ...]
"""Where a body is: the first result of each node around it, from the outermost inwards, and the attribute there."""


@dataclass(frozen=True)
class Run:
    """A graph, or one of its bodies, and the inputs to run it on by name.

    path: where the body is; empty for the graph itself.
    """

    path: Path
    inputs: Mapping[str, np.ndarray]

    def execute(self, graph: Graph, *, optimize: bool = True) -> dict[str, np.ndarray]:
        """The outputs that `graph`, or this body of it, gives, under the names of the graph of `runs`.

        Raises CheckFailed `E_BODY` where a body cannot be run.
        """
        body = self.body(graph)
        assert body is not None
        if body is graph:
            return execute(graph, self.inputs, optimize=optimize)
        part = _alone(body, self.inputs, graph.domains)
        return _execute(part, self.inputs, optimize) if part.outputs else {}

    def body(self, graph: Graph) -> Graph | None:
        """The graph or the body of it that is meant; None where a pass has removed that."""
        for name, key in self.path:
            node = next((n for n in graph.nodes if n.outputs[0].name == name), None)
            if node is None:
                return None
            graph = node.attributes[key]
        return graph


def runs(graph: Graph, inputs: Mapping[str, np.ndarray], constants: Collection[Value]) -> list[Run]:
    """The run of the whole graph, and one of each body, however deep, that uses one of `constants`.

    Raises CheckFailed `E_BODY` where the operands of a body cannot be computed.
    """
    moving = set(constants)
    found = [Run((), inputs)]
    waiting = [(found[0], graph, graph)]
    while waiting:
        run, outer, alone = waiting.pop()
        inner = [(n, k, b) for n in outer.nodes for k, b in _bodies(n) if not moving.isdisjoint(b.all_constants())]
        wanted = [v for n, _, b in inner for v in (*n.inputs, *b.outer_values()) if v is not None]
        read = _evaluate(alone, run.inputs, dict.fromkeys(wanted))
        for node, key, body in inner:
            made = _inputs(body, {**read, **_arguments(node, body, read)})
            found.append(Run((*run.path, (node.outputs[0].name, key)), made))
            waiting.append((found[-1], body, _alone(body, made, graph.domains)))
    return found


def _bodies(node: Node) -> list[tuple[str, Graph]]:
    return [(key, item) for key, item in node.attributes.items() if isinstance(item, Graph)]


def _execute(part: Graph, data: Mapping[str, np.ndarray], optimize: bool) -> dict[str, np.ndarray]:
    try:
        return execute(part, data, optimize=optimize)
    except Exception as error:  # the runtime's own exception types are not importable by a stable name
        raise CheckFailed(
            "E_BODY",
            f"{part.name!r} cannot be run alone on the data at hand, so nothing is proven of it",
            where=str(error).strip()[:300],
            hint="give inputs on which every body of the model can run",
        ) from None


def _evaluate(graph: Graph, data: Mapping[str, np.ndarray], values: Iterable[Value]) -> dict[Value, np.ndarray]:
    """What some values of a graph are; those that are no tensors, or that it does not compute, are left out."""
    inputs, made = set(graph.inputs), {v for node in graph.nodes for v in node.outputs}
    found, inner = {}, []
    for value in values:
        if value.is_constant:
            found[value] = value.numpy()
        elif value in inputs:
            found[value] = data[value.name]
        elif value in made and value.dtype is not None:
            inner.append(value)
    if inner:
        part = Graph(graph.name, graph.inputs, inner, graph.nodes, graph.opset, graph.domains)
        results = _execute(part, data, optimize=False)
        found |= {v: results[v.name] for v in inner}
    return found


def _arguments(node: Node, body: Graph, read: Mapping[Value, np.ndarray]) -> dict[Value, np.ndarray]:
    """The operands of a body in the first iteration, as far as they are known."""
    given = [None if v is None else read.get(v) for v in node.inputs]
    if node.op == "Loop" and not node.domain:
        given = [
            np.zeros(body.inputs[0].static_shape or (), np.int64),
            np.ones(body.inputs[1].static_shape or (), bool),
        ]
        given += [None if v is None else read.get(v) for v in node.inputs[2:]]
    elif node.op == "Scan" and not node.domain:
        count = int(node.attribute("num_scan_inputs"))
        states = len(given) - count
        axes = node.attribute("scan_input_axes", [0] * count)
        given[states:] = [
            a if a is None or not a.shape[axis] else a.take(0, axis)
            for a, axis in zip(given[states:], axes, strict=True)
        ]
    else:
        given = []
    return {v: a for v, a in zip(body.inputs, given, strict=False) if a is not None}


def _inputs(body: Graph, known: Mapping[Value, np.ndarray]) -> dict[str, np.ndarray]:
    """What to run a body on: what is known, and noise for other tensors whose type is."""
    typed = [v for part in body.nodes for v in part.outputs] + [*body.inputs, *body.outer_values()]
    usable = {v.name for v in typed if v in known or (v.dtype is not None and v.shape is not None)}
    part = _alone(body, usable, {})
    noise = random_inputs(Graph("noise", [v for v in part.inputs if v not in known], [], []))
    return {v.name: known[v] if v in known else noise[v.name] for v in part.inputs}


def _alone(body: Graph, available: Collection[str], domains: dict[str, int]) -> Graph:
    """What of a body can be computed from the values named, as a graph.

    A node that reads something else, a sequence, is left out: coupling fixes what it reads, which therefore becomes
    an output.
    """
    inputs = [v for v in (*body.inputs, *body.outer_values()) if v.name in available]
    known, nodes, shown = set(inputs), [], list(body.outputs)
    for node in body.nodes:
        operands = [v for v in node.inputs if v is not None and not v.is_constant]
        operands += [v for inner in subgraphs(node) for v in inner.outer_values()]
        if known.issuperset(operands):
            nodes.append(node)
            known.update(node.outputs)
        else:
            shown += operands
            inputs += [v for v in node.outputs if v.name in available]
            known.update(inputs)
    made = {v for node in nodes for v in node.outputs}
    outputs = [v for v in dict.fromkeys(shown) if v in made]
    return Graph(body.name, inputs, outputs, nodes, body.opset, domains)
