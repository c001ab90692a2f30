"""What a unit carries is what the graph loses when one step of its group goes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.ir import Cost, Graph, graph_cost
from passes import Carried, Group, Groups, carried, dependency_groups
from passes.coupling.transform import restrict
from passes.importance import criterion, unit_scores
from passes.structured.scopes import select_groups
from tests.networks import network
from tests.strategies import networks

# name -> (text, what a unit of each group carries: parameters, MACs)
EXAMPLES: dict[str, tuple[str, list[tuple[float, float]]]] = {
    "convolution": (
        """(float[1,3,4,4] x, float[8,3,1,1] w1, float[8] b1, float[5,8] h) => (float[1,5] y) { z = Conv(x, w1, b1)
        p = GlobalAveragePool(z) f = Flatten(p) y = Gemm<transB=1>(f, h) }""",
        [(3 + 1 + 5, 16 * 3 + 5)],
    ),
    # The square weight loses a row and a column of 8, which meet once; 64 - 49 = 15.
    "two axes of one tensor": (
        """(float[2,6] x, float[6,8] w1, float[8,8] w2, float[8,5] h) => (float[2,5] y) {
        a = MatMul(x, w1) b = MatMul(a, w2) c = Add(a, b) y = MatMul(c, h) }""",
        [(6 + 15 + 5, 2 * (6 + 15 + 5))],
    ),
    "a weight stored as integers, and laid out anew": (
        """(float[2,6] x, int8[8,6] w1, float[8] s, float[8,5] h) => (float[2,5] y) {
        d = DequantizeLinear<axis=0>(w1, s) t = Transpose<perm=[1,0]>(d) a = MatMul(x, t) y = MatMul(a, h) }""",
        [(6 + 1 + 5, 2 * (6 + 5))],
    ),
    # 12 query dims, of which one step takes one in each of 2 heads, from the keys too; scores are 2 x 4 x 4.
    "activations that meet": (
        """(float[1,4,6] x, float[6,12] q, float[6,12] k, float[6,5] v, float[10,3] h) => (float[1,4,3] y) {
        s = Constant<value_ints=[1,4,2,6]>() a = MatMul(x, q) b = MatMul(x, k) c = Reshape(a, s) d = Reshape(b, s)
        e = Transpose<perm=[0,2,1,3]>(c) f = Transpose<perm=[0,2,3,1]>(d) g = MatMul(e, f) i = MatMul(x, v)
        j = MatMul(g, i) l = Transpose<perm=[0,2,1,3]>(j) r = Constant<value_ints=[1,4,10]>() m = Reshape(l, r)
        y = MatMul(m, h) }""",
        [(2 * 6, 2 * 4 * 6 + 4 * 4), (6 + 6, 4 * 6 + 2 * 4 * 4 + 4 * 6)],
    ),
}


def lost(groups: Groups, group: Group, rng: np.random.Generator) -> Cost:
    """The cost that goes with a random step of a group."""
    keep = np.ones(groups.unit_count, bool)
    for block, count in zip(group.blocks, group.step, strict=True):
        keep[rng.permutation(block)[:count]] = False
    before, after = graph_cost(groups.graph), graph_cost(restrict(groups, keep))
    return Cost(before.macs - after.macs, before.params - after.params)


def check(groups: Groups, index: int, unit: Carried, rng: np.random.Generator) -> None:
    """Exact, since the first step is what a unit's cost is defined by."""
    group = groups[index]
    gone = lost(groups, group, rng)
    assert (gone.params, gone.macs) == pytest.approx((unit.params * sum(group.step), unit.macs * sum(group.step)))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_unit_carries(name: str) -> None:
    text, expected = EXAMPLES[name]
    groups = dependency_groups(network(text))
    found = carried(groups)
    assert [(unit.params, unit.macs) for unit in found] == expected
    for index, unit in enumerate(found):
        check(groups, index, unit, np.random.default_rng(0))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(), st.integers(0, 2**16))
def test_on_random_networks(graph: Graph, seed: int) -> None:
    groups = dependency_groups(graph)
    for index, unit in enumerate(carried(groups)):
        check(groups, index, unit, np.random.default_rng(seed))


def test_members_name_the_operators_that_a_view_reaches() -> None:
    groups = dependency_groups(network(EXAMPLES["a weight stored as integers, and laid out anew"][0]))
    nodes = {str(m): [n.op for n in m.nodes] for m in groups[0].members}
    assert nodes == {
        "w1[0]": ["DequantizeLinear", "Transpose", "MatMul"],
        "s[0]": ["DequantizeLinear"],
        "h[0]": ["MatMul"],
    }
    assert select_groups(groups, ("a",), ()) == []


def test_scores_reach_a_weight_through_a_view() -> None:
    text, _ = EXAMPLES["a weight stored as integers, and laid out anew"]
    groups = dependency_groups(network(text))
    values = {v.name: v.numpy() for v in groups.graph.constants()}
    expected = np.abs(values["w1"] * values["s"][:, None]).sum(1) + np.abs(values["h"]).sum(1)
    np.testing.assert_allclose(unit_scores(groups, criterion("l1")), expected, rtol=1e-5)
