"""What every network must pass once its groups are known: it prunes to the ratio asked for, and the result runs."""

from __future__ import annotations

from collections.abc import Callable

from compiler.ir import Graph, verify
from compiler.ir.execute import execute, random_inputs, relative_difference
from passes import Context, Prune, Sparsify
from passes.sparsity.check import sparsity_error
from passes.sparsity.weights import weights
from passes.structured.check import silence

TOLERANCE = 1e-4
"""Largest relative difference that rounding may cause."""
NEAR = 0.03
"""How far the ratio reached may be from the one asked for."""


def check_pruning(
    graph: Graph,
    ratio: float,
    scope: str,
    *,
    open_outputs: bool = False,
    watch: Callable[[Graph], Graph] | None = None,
    lap: Callable[[str], None] = lambda step: None,
) -> float:
    """Prune this share of the parameters and run both networks; returns the share reached.

    AssertionError says what does not hold: the ratio, the shapes of inputs and outputs, or equality with the
    silenced original. open_outputs: the data choose the first extents of outputs (how many boxes) and those that are
    symbolic; they may change. watch: makes of a graph one whose outputs are to equal instead of its own. lap: told
    when a step is done.
    """
    context = Context()
    pruned = Prune(ratio=ratio, scope=scope, metric="params")(graph, context)
    lap("prune")
    verify(pruned)
    report = context.reports["prune"][0]
    assert abs(report.reached - ratio) <= NEAR, f"{report.reached:.3f} of the parameters went, not {ratio:g}"
    assert {v.name: v.shape for v in pruned.inputs} == {v.name: v.shape for v in graph.inputs}
    data = random_inputs(graph)
    before, after = execute(graph, data), execute(pruned, data)
    assert list(after) == list(before)
    for value in graph.outputs:
        was, now = before[value.name].shape, after[value.name].shape
        stated = (None, *(value.shape or (None,) * len(was))[1:]) if open_outputs else was
        same = len(was) == len(now) == len(stated) and all(
            a == b or not isinstance(d, int) for a, b, d in zip(was, now, stated, strict=True)
        )
        assert same, f"the shape of output {value.name!r} was {was} and is {now}"
    groups, keep = report.selection
    silenced = silence(groups, keep)
    if silenced is not None:
        see = watch or (lambda graph: graph)
        error = relative_difference(execute(see(pruned), data), execute(see(silenced), data))
        assert error <= TOLERANCE, f"it differs from the silenced original by {error:.1e}"
    return float(report.reached)


def check_sparsity(graph: Graph) -> None:
    """Every layer takes blocks and N:M: the share asked for is reached, and nothing but zeros is new.

    Weights that layers share both ways round take neither.
    """
    turned = any(len(w.layouts) > 1 for w in weights(graph))
    for pattern, sparsity in (("unstructured", 0.8),) if turned else (("4x1", 0.8), ("2:4@out", None)):
        context = Context()
        distribution = "global" if sparsity else "uniform"
        options = {"keep_first": False, "depthwise": True, "min_size": 16}
        verify(Sparsify(sparsity, pattern, distribution, **options)(graph, context))
        (report,) = context.reports["sparsify"]
        assert sparsity_error(report) == 0
        assert all(w.weights < 64 or ":" in w.spared for w in report.weights if w.spared), report.weights
        assert sparsity is None or abs(report.reached - sparsity) <= NEAR
