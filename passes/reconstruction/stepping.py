"""Running a network piece by piece over all samples, so that weights may change between the pieces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.ir import Graph, Node, Value, subgraphs
from compiler.ir.execute import session
from passes.calibration.samples import Samples


class Stepper:
    """The state of a network between two of its nodes: for each batch, the arrays that later nodes read."""

    def __init__(self, graph: Graph, samples: Samples) -> None:
        self._graph = graph
        self._done = 0
        self._position = {node: i for i, node in enumerate(graph.nodes)}
        self._last_use: dict[Value, int] = {v: len(graph.nodes) for v in graph.outputs}
        for index, node in enumerate(graph.nodes):
            for value in node_reads(node):
                self._last_use[value] = max(index, self._last_use.get(value, 0))
        self._live: list[dict[Value, np.ndarray]] = [
            {v: feeds[v.name] for v in graph.inputs if v in self._last_use} for feeds in samples
        ]

    def before(self, node: Node, value: Value) -> list[np.ndarray]:
        """An operand of a node, batch by batch; everything before the node has then run."""
        self._run(self._position[node], value)
        return [batch[value] for batch in self._live]

    def after(self, node: Node) -> list[np.ndarray]:
        """The first result of a node, batch by batch."""
        self._run(self._position[node] + 1, node.outputs[0])
        return [batch[node.outputs[0]] for batch in self._live]

    def replace(self, value: Value, arrays: Sequence[np.ndarray]) -> None:
        """Go on with other arrays in the place of a value, batch by batch: those that changed weights would give."""
        for batch, array in zip(self._live, arrays, strict=True):
            batch[value] = array

    def _run(self, end: int, wanted: Value) -> None:
        """Run the nodes up to `end`, and forget what no later node reads."""
        nodes = self._graph.nodes[self._done : end]
        if nodes:
            made = [v for n in nodes for v in n.outputs if self._last_use.get(v, -1) >= end or v is wanted]
            self._step(nodes, made)
        self._done = max(self._done, end)
        for batch in self._live:
            for value in [v for v in batch if self._last_use.get(v, -1) < end and v is not wanted]:
                del batch[value]

    def _step(self, nodes: Sequence[Node], made: Sequence[Value]) -> None:
        own = {v for n in nodes for v in n.outputs}
        read = list(dict.fromkeys(v for n in nodes for v in node_reads(n) if v not in own and not v.is_constant))
        piece = Graph(self._graph.name, read, list(made), list(nodes), self._graph.opset, dict(self._graph.domains))
        runner = session(piece)
        for batch in self._live:
            arrays = runner.run([v.name for v in made], {v.name: batch[v] for v in read})
            batch.update(zip(made, arrays, strict=True))


def node_reads(node: Node) -> list[Value]:
    """The values of its graph that a node and its bodies read."""
    return [v for v in node.inputs if v is not None] + [v for b in subgraphs(node) for v in b.outer_values()]
