"""Running a network piece by piece over all samples, so that weights may change between the pieces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compiler.ir import Graph, Node, Value, subgraphs
from compiler.ir.execute import session
from passes.calibration.samples import Samples


class Stepper:
    """The state of a network between two of its nodes: for each batch, the arrays that later nodes read.

    On noise each BatchNormalization normalises by the statistics of what reaches it, as it does in training: those that
    it stores are of other inputs, and would leave every layer behind it with inputs unlike those it was trained on.
    """

    def __init__(self, graph: Graph, samples: Samples) -> None:
        self._graph = graph
        self._noise = samples.noise
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
        while self._done < end:
            stop = self._next_stop(end)
            nodes = self._graph.nodes[self._done : stop]
            made = [v for n in nodes for v in n.outputs if self._last_use.get(v, -1) >= stop or v is wanted]
            if len(nodes) == 1 and self.normalizes(nodes[0]):
                self._normalize(nodes[0])
            else:
                self._step(nodes, made)
            self._done = stop
        for batch in self._live:
            for value in [v for v in batch if self._last_use.get(v, -1) < end and v is not wanted]:
                del batch[value]

    def _next_stop(self, end: int) -> int:
        """Where the nodes end that can be run at once: a normalization by statistics of its own runs alone."""
        if not self._noise:
            return end
        own = [i for i in range(self._done, end) if self.normalizes(self._graph.nodes[i])]
        first = own[0] if own else end
        return first + 1 if first == self._done else first

    def normalizes(self, node: Node) -> bool:
        """True for a BatchNormalization of constants."""
        constant = all(v is not None and v.is_constant for v in node.inputs[1:])
        return node.op == "BatchNormalization" and not node.domain and len(node.outputs) == 1 and constant

    def _normalize(self, node: Node) -> None:
        x, scale, bias = node.inputs[:3]
        assert x is not None and scale is not None and bias is not None
        batches = [batch[x] for batch in self._live]
        mean, variance = moments(batches)
        by = scale.numpy() / np.sqrt(variance + float(node.attribute("epsilon", 1e-5)))
        offset = (bias.numpy() - mean * by).astype(batches[0].dtype)
        by = by.astype(batches[0].dtype)
        for batch, array in zip(self._live, batches, strict=True):
            shape = (-1,) + (1,) * (array.ndim - 2)
            batch[node.outputs[0]] = array * by.reshape(shape) + offset.reshape(shape)

    def _step(self, nodes: Sequence[Node], made: Sequence[Value]) -> None:
        own = {v for n in nodes for v in n.outputs}
        read = list(dict.fromkeys(v for n in nodes for v in node_reads(n) if v not in own and not v.is_constant))
        piece = Graph(self._graph.name, read, list(made), list(nodes), self._graph.opset, dict(self._graph.domains))
        runner = session(piece)
        for batch in self._live:
            arrays = runner.run([v.name for v in made], {v.name: batch[v] for v in read})
            batch.update(zip(made, arrays, strict=True))


def own_statistics(graph: Graph, samples: Samples) -> dict[Node, tuple[np.ndarray, np.ndarray]]:
    """Mean and variance of what reaches each BatchNormalization, where each normalises by its own."""
    stepper = Stepper(graph, samples)
    found = {}
    for node in graph.nodes:
        x = node.input(0)
        if x is not None and stepper.normalizes(node):
            found[node] = moments(stepper.before(node, x))
    return found


def moments(batches: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each channel (axis 1), float64."""
    count = sum(b.size // b.shape[1] for b in batches)
    axes = tuple(a for a in range(batches[0].ndim) if a != 1)
    mean = np.asarray(sum(b.sum(axes, dtype=np.float64) for b in batches)) / count
    shape = [-1 if a == 1 else 1 for a in range(batches[0].ndim)]
    spread = sum(np.square(b - mean.reshape(shape)).sum(axes, dtype=np.float64) for b in batches) / count
    return mean, np.asarray(spread)


def node_reads(node: Node) -> list[Value]:
    """The values of its graph that a node and its bodies read."""
    return [v for v in node.inputs if v is not None] + [v for b in subgraphs(node) for v in b.outer_values()]
