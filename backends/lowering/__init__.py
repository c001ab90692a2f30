"""From a graph to a program of kernels: prepare, fuse, then one rule per operator.

Rule families are modules here; importing this package registers them all.
"""

from __future__ import annotations

from backends.lowering import (
    convolution,  # noqa: F401
    elementwise,  # noqa: F401
    indexing,  # noqa: F401
    layout,  # noqa: F401
    matmul,  # noqa: F401
    normalization,  # noqa: F401
    pooling,  # noqa: F401
    reduction,  # noqa: F401
    resize,  # noqa: F401
)
from backends.lowering.context import Lowering
from backends.lowering.fusion import fuse
from backends.lowering.prepare import prepare
from backends.lowering.program import Program
from backends.lowering.rules import lowering, rule_for
from backends.selector import Selector
from backends.target import Target
from compiler.ir.graph import Graph

__all__ = ["Program", "lower", "lowering"]


def lower(graph: Graph, target: Target, *, parallel: bool = True, selector: Selector | None = None) -> Program:
    """The program that computes `graph` on `target`; `selector` chooses schedules, by cost if it is not given.

    Raises SecateurError: E_SYMBOLIC_DIM for shapes that are not numbers, E_NO_LOWERING for an operator, or a use
    of one, that has no rule.
    """
    prepared = prepare(graph)
    for node in prepared.nodes:
        rule_for(node)
    fused = fuse(prepared, half=target.dtype == "float16")
    context = Lowering(fused, selector or Selector(target), parallel=parallel)
    context.run()
    program = context.finish()
    program.graph = graph
    return program
