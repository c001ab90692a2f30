"""Properties of coupling and pruning on random small networks."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.ir import Graph, SecateurError, graph_cost, verify
from compiler.ir.execute import execute, random_inputs, relative_difference
from passes import Context, Prune, dependency_groups
from passes.coupling.transform import permute, random_permutation, restrict
from passes.structured.check import pruning_error
from tests.strategies import networks

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@SLOW
@given(networks(), st.integers(0, 2**16))
def test_permuting_groups_keeps_the_function(graph: Graph, seed: int) -> None:
    groups = dependency_groups(graph)
    permuted = permute(groups, random_permutation(groups, np.random.default_rng(seed)))
    verify(permuted)
    data = random_inputs(graph, seed)
    assert relative_difference(execute(permuted, data), execute(graph, data)) <= 1e-4


@SLOW
@given(networks(), st.data())
def test_any_allowed_choice_of_units_is_exact(graph: Graph, data: st.DataObject) -> None:
    groups = dependency_groups(graph)
    keep = np.ones(groups.unit_count, bool)
    for group in groups:
        steps = data.draw(st.integers(0, group.size - 1))
        for block, step in zip(group.blocks, group.step, strict=True):
            gone = data.draw(st.permutations(range(len(block))))[: min(steps * step, len(block) - 1)]
            if len(gone) == steps * step:
                keep[block[gone]] = False
            else:
                keep[np.concatenate(group.blocks)] = True
                break
    result = restrict(groups, keep)
    verify(result)
    error = pruning_error(groups, keep, result)
    if error is None:
        execute(result, random_inputs(result))
    else:
        assert error <= 1e-4


@SLOW
@given(networks(), st.sampled_from(["global", "local"]), st.sampled_from(["macs", "params"]))
def test_pruning_keeps_the_interface_and_reports_what_it_reached(graph: Graph, scope: str, metric: str) -> None:
    context = Context()
    try:
        result = Prune(ratio=0.3, scope=scope, metric=metric, criterion="random")(graph, context)
    except SecateurError as error:
        if error.code not in ("E_RATIO_UNREACHABLE", "E_NOTHING_TO_PRUNE"):
            raise
        return
    report = context.reports["prune"][0]
    assert 1 - getattr(graph_cost(result), metric) / getattr(graph_cost(graph), metric) == report.reached
    for side, cost in enumerate((graph_cost(graph), graph_cost(result))):
        assert sum(layer.params[side] for layer in report.layers) == cost.params
        assert sum(layer.macs[side] for layer in report.layers) == cost.macs
    data = random_inputs(graph)
    before, after = execute(graph, data), execute(result, data)
    assert {n: (v.shape, v.dtype) for n, v in after.items()} == {n: (v.shape, v.dtype) for n, v in before.items()}
