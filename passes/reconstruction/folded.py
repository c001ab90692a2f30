"""Which layers may have had a BatchNormalization that was folded into them, so that they are corrected in its place."""

from __future__ import annotations

from compiler.ir import Graph, Node, Value
from passes.coupling.contractions import contractions
from passes.reconstruction.layers import layer_of

_ACTIVATIONS = frozenset(
    {
        *("Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Clip", "Elu", "Selu", "Celu", "Gelu", "Mish", "Softplus"),
        *("Softsign", "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Tanh"),
    }
)


def maybe_folded(graph: Graph) -> list[Node]:
    """The layers with a bias that no BatchNormalization reads, in order: what folding one leaves behind.

    The file does not tell whether there was one; only a BatchNormalization that still follows a layer of its own, where
    folding would have taken it, tells that none was folded. Convolutions count whatever reads them (a sum of residual
    branches, or the next layer of a linear bottleneck), Gemm where an activation does. Those that reach an output of
    the network through no other layer do not: what they compute is an answer, whose scale is not to be touched.
    """
    uses, last = graph.consumers(), _last_layers(graph)
    if any(_foldable(node, uses) for node in graph.nodes):
        return []
    found = []
    for node in graph.nodes:
        layer = layer_of(node)
        readers = {reader.op for reader, _ in uses.get(node.outputs[0], [])}
        if layer is None or layer.bias is None or node in last or "BatchNormalization" in readers:
            continue
        if node.op in ("Conv", "ConvTranspose") or (node.op == "Gemm" and readers & _ACTIVATIONS):
            found.append(node)
    return found


def _foldable(node: Node, uses: dict[Value, list[tuple[Node, int]]]) -> bool:
    """Whether a node is a BatchNormalization that its producer could take in."""
    x = node.input(0)
    if node.op != "BatchNormalization" or x is None or x.producer is None:
        return False
    return len(uses[x]) == 1 and layer_of(x.producer) is not None and x.producer.op != "MatMul"


def _last_layers(graph: Graph) -> set[Node]:
    """The layers that an output is reached from without another in between."""
    last: set[Node] = set()
    seen: set[Node] = set()
    open_values = list(graph.outputs)
    while open_values:
        node = open_values.pop().producer
        if node is None or node in seen:
            continue
        seen.add(node)
        if layer_of(node) is not None or next(contractions(node), None) is not None:
            last.add(node)
        else:
            open_values += [v for v in node.inputs if v is not None]
    return last
