"""Remove the nodes whose results nobody reads, and unused optional results at a node's end."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from compiler.ir import Graph, Node, Value, subgraphs
from passes.pipeline import register_pass
from passes.simplify.rewrite import RewritePass, read_values


@register_pass("eliminate_dead")
@dataclass(frozen=True)
class EliminateDead(RewritePass):
    """Drop what no graph output depends on; graph inputs stay."""

    def rewrite(self, graph: Graph) -> int:
        return eliminate_dead(graph)


def eliminate_dead(graph: Graph) -> int:
    """Edit in place; returns the number of nodes and results removed, bodies included."""
    live = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if not live.isdisjoint(node.outputs):
            kept.append(node)
            live.update(v for v in node.inputs if v is not None)
            for body in subgraphs(node):
                live.update(read_values(body))
    count = len(graph.nodes) - len(kept)
    graph.nodes = kept[::-1]
    for node in graph.nodes:
        count += _drop_results(node, live, graph.opset)
        count += sum(eliminate_dead(body) for body in subgraphs(node))
    return count


def _drop_results(node: Node, live: set[Value], opset: int) -> int:
    before = len(node.outputs)
    while len(node.outputs) > 1 and node.outputs[-1] not in live and _is_optional(node, opset):
        node.outputs.pop()
    return before - len(node.outputs)


def _is_optional(node: Node, opset: int) -> bool:
    """True when the last result may be left out without changing the others."""
    if node.domain or (node.op == "Attention" and node.input(4) is not None):
        return False  # ONNX Runtime wants the cache back that attention was given
    results = onnx.defs.get_schema(node.op, opset).outputs
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    return len(node.outputs) <= len(results) and results[len(node.outputs) - 1].option == optional
