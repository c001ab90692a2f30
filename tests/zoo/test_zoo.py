"""Every architecture of the zoo: its groups are those derived by hand, certified, and it prunes to half its size."""

from __future__ import annotations

from functools import cache

import pytest

from compiler.frontends import load
from compiler.ir import Graph, verify
from compiler.ir.execute import execute, random_inputs
from passes import Context, Groups, Pipeline, Prune, certify, dependency_groups
from passes.structured.check import pruning_error
from tests.zoo.coverage import prunable_share
from tests.zoo.entry import Entry, zoo

TOLERANCE = 1e-4


@cache
def grouped(name: str) -> tuple[Graph, Groups]:
    graph = Pipeline("simplify")(load(zoo()[name].build()))
    return graph, dependency_groups(graph)


def described(groups: Groups) -> list[str]:
    return sorted(f"{g.units}" + (f" in {g.balanced} blocks" if g.balanced > 1 else "") for g in groups)


def entries() -> list:
    marks = {n: [pytest.mark.xfail(strict=True, reason=e.fault)] if e.fault else [] for n, e in zoo().items()}
    return [pytest.param(name, entry, id=name, marks=marks[name]) for name, entry in zoo().items()]


@pytest.mark.parametrize(("name", "entry"), entries())
def test_network(name: str, entry: Entry) -> None:
    graph, groups = grouped(name)
    assert certify(graph, groups) <= TOLERANCE
    if entry.expected is not None:
        assert described(groups) == sorted(entry.expected)
    for scope in ("local", "global"):
        check_pruning(graph, entry.ratio, scope)


def check_pruning(graph: Graph, ratio: float, scope: str) -> None:
    context = Context()
    pruned = Prune(ratio=ratio, scope=scope, metric="params")(graph, context)
    verify(pruned)
    report = context.reports["prune"][0]
    assert report.reached == pytest.approx(ratio, abs=0.03)
    data = random_inputs(graph)
    before, after = execute(graph, data), execute(pruned, data)
    assert {v.name: v.shape for v in pruned.inputs} == {v.name: v.shape for v in graph.inputs}
    assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in before.items()}
    groups, keep = report.selection
    error = pruning_error(groups, keep, pruned)
    assert error is None or error <= TOLERANCE


@pytest.mark.parametrize(("name", "entry"), [pytest.param(n, e, id=n) for n, e in zoo().items() if not e.fault])
def test_what_cannot_be_pruned_is_explained(name: str, entry: Entry) -> None:
    share = prunable_share(grouped(name)[1])
    assert share >= 0.8 or entry.explain
    assert share < 0.8 or not entry.explain


def test_the_zoo_is_large_and_mostly_derived_by_hand() -> None:
    derived = [e for e in zoo().values() if e.expected is not None]
    assert len(zoo()) >= 45
    assert len(derived) >= 0.75 * len(zoo())
