"""Every architecture of the zoo: its groups are those derived by hand, certified, and it prunes to half its size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache

import numpy as np
import pytest

from backends.lowering.prepare import prepare
from compiler.frontends import load
from compiler.ir import Graph, graph_cost
from compiler.ir.execute import execute, random_inputs
from passes import Context, Group, Groups, Pipeline, Prune, carried, certify, dependency_groups
from passes.coupling.transform import restrict
from tests.ir.test_symbolic_shapes import bound_inputs, check_shapes
from tests.zoo.checks import TOLERANCE, check_pruning, check_sparsity
from tests.zoo.coverage import prunable_share
from tests.zoo.entry import Entry, zoo


@cache
def grouped(name: str) -> tuple[Graph, Groups]:
    graph = Pipeline("simplify")(load(zoo()[name].build()))
    return graph, dependency_groups(graph)


def described(groups: Iterable[Group]) -> list[str]:
    return sorted(f"{g.units}" + (f" in {g.balanced} blocks" if g.balanced > 1 else "") for g in groups)


def entries(fault: str = "fault", among: Callable[[Entry], bool] = lambda entry: True) -> list:
    """Parameters for a test; those whose field `fault` names a fault of ours are expected to fail."""
    found = []
    for name, entry in zoo().items():
        reason = getattr(entry, fault)
        marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
        if among(entry):
            found.append(pytest.param(name, entry, id=name, marks=marks))
    return found


@pytest.mark.parametrize(("name", "entry"), entries())
def test_network(name: str, entry: Entry) -> None:
    graph, groups = grouped(name)
    assert certify(graph, groups) <= TOLERANCE
    if entry.expected is not None:
        assert described(groups) == sorted(entry.expected)
    for scope in ("local", "global"):
        check_pruning(graph, entry.ratio, scope)
    check_sparsity(graph)


@pytest.mark.parametrize(("name", "entry"), entries("batch_fault", lambda e: not e.one_batch))
def test_with_a_symbolic_batch(name: str, entry: Entry) -> None:
    graph = Pipeline("simplify")(load(entry.build.symbolic()))
    groups = dependency_groups(graph)
    assert certify(graph, groups) <= TOLERANCE
    assert described(groups) == described(grouped(name)[1])
    check_pruning(graph, entry.ratio, "local")


@pytest.mark.parametrize(("name", "entry"), entries("space_fault", lambda e: e.has_space))
def test_with_symbolic_space_and_sequence(name: str, entry: Entry) -> None:
    model, sizes = entry.build.symbolic_space(entry.axes, entry.one_batch)
    graph = Pipeline("simplify")(load(model))
    check_shapes(graph, sizes)
    groups = dependency_groups(graph)
    assert described(groups) == described(grouped(name)[1])
    pruned = Prune(ratio=entry.ratio, metric="params")(graph, Context())
    larger = {n: 3 if n == "batch" else 2 * size for n, size in sizes.items()}
    for numbers in (sizes, larger):
        data = bound_inputs(graph, numbers)
        try:
            before = execute(graph, data)
        except Exception:  # positions are learnt, or the classifier is made, for the one size
            assert numbers is larger
            continue
        assert {n: v.shape for n, v in execute(pruned, data).items()} == {n: v.shape for n, v in before.items()}


@pytest.mark.parametrize(("name", "entry"), entries("heads_fault", lambda e: bool(e.heads)))
def test_with_whole_heads(name: str, entry: Entry) -> None:
    graph, channels = grouped(name)
    groups = dependency_groups(graph, heads=True)
    assert certify(graph, groups) <= TOLERANCE
    heads = [g for g in groups if g.kind in ("head", "kv-group")]
    assert sorted(described(heads)) == sorted(entry.heads)
    others = Counter(described([g for g in groups if g not in heads]))
    assert not others - Counter(described(channels))  # what is not attention stays as it is
    pruned = Prune(ratio=0.3, metric="params", heads=True)(graph, Context())
    data = random_inputs(graph)
    shapes = {n: v.shape for n, v in execute(graph, data).items()}
    assert {n: v.shape for n, v in execute(pruned, data).items()} == shapes


@pytest.mark.parametrize("name", ["gpt.gpt2", "t5.t5"])
@pytest.mark.parametrize("frontend", ["onnx", "torch"])
def test_a_tied_embedding_stays_one_tensor(name: str, frontend: str) -> None:
    build = zoo()[name].build
    net, arguments = build.made()
    graph = Pipeline("simplify")(load(build()) if frontend == "onnx" else load(net, args=arguments))
    pruned = Prune(ratio=0.5, metric="params")(graph, Context())
    for stage in (graph, pruned):
        tables = [v for v in stage.constants() if 32 in (v.shape or ())]  # 32 words
        assert [v.name for v in tables] == ["words.weight"]
        assert {n.op for n in stage.nodes if tables[0] in n.inputs} == {"Gather", "Transpose"}
    assert not any(v.is_constant for n in prepare(pruned).nodes if n.op == "Transpose" for v in n.inputs if v)


@pytest.mark.parametrize(("name", "entry"), [pytest.param(n, e, id=n) for n, e in zoo().items() if not e.fault])
def test_what_a_unit_carries(name: str, entry: Entry) -> None:
    graph, groups = grouped(name)
    full = graph_cost(graph)
    for group, unit in list(zip(groups, carried(groups), strict=True))[::4]:
        keep = np.ones(groups.unit_count, bool)
        for block, count in zip(group.blocks, group.step, strict=True):
            keep[block[:count]] = False
        cost, units = graph_cost(restrict(groups, keep)), sum(group.step)
        lost = full.params - cost.params, full.macs - cost.macs
        assert (unit.params * units, unit.macs * units) == pytest.approx(lost)


@pytest.mark.parametrize(("name", "entry"), [pytest.param(n, e, id=n) for n, e in zoo().items() if not e.fault])
def test_what_cannot_be_pruned_is_explained(name: str, entry: Entry) -> None:
    share = prunable_share(grouped(name)[1])
    assert share >= 0.8 or entry.explain
    assert share < 0.8 or not entry.explain


def test_the_zoo_is_large_and_mostly_derived_by_hand() -> None:
    derived = [e for e in zoo().values() if e.expected is not None]
    assert len(zoo()) >= 45
    assert len(derived) >= 0.75 * len(zoo())
