"""The simplification that every road starts with."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.ir import Graph, infer_shapes
from passes.pipeline import Context, Pass, register_pass
from passes.simplify.canonicalize import canonicalize
from passes.simplify.eliminate_dead import eliminate_dead
from passes.simplify.eliminate_identities import eliminate_identities
from passes.simplify.fill_constants import fill_constants
from passes.simplify.fold_batchnorm import fold_batchnorm
from passes.simplify.fold_constants import fold_constants

_MAX_ROUNDS = 20
"""Each round only ever removes nodes or open shapes; real models need two or three."""


@register_pass("simplify")
@dataclass(frozen=True)
class Simplify(Pass):
    """Fold constants, drop identities and dead nodes, until nothing changes.

    batchnorm: fold BatchNormalization into the layer before it as well; leave it off when pruning follows, for some
    criteria read its scale. max_bytes, weights: see fold_constants; a graph that goes back into a torch module wants
    weights=false where the network computes with weights alone.
    """

    batchnorm: bool = False
    max_bytes: int = 2**30
    weights: bool = True

    def run(self, graph: Graph, context: Context) -> Graph:
        changed = graph.copy()
        total = 0
        for _ in range(_MAX_ROUNDS):
            counts = [
                fold_constants(changed, self.max_bytes, self.weights),
                fill_constants(changed),
                canonicalize(changed),
                eliminate_identities(changed),
                fold_batchnorm(changed) if self.batchnorm else 0,
                eliminate_dead(changed),
            ]
            if not any(counts):
                break
            total += sum(counts)
            infer_shapes(changed)
        context.report(self.name, {"changes": total, "nodes_before": len(graph.nodes), "nodes": len(changed.nodes)})
        return changed if total else graph
