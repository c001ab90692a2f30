"""Mixtures of experts: whole experts go together with their router columns, and hidden units inside experts."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.ir import Graph, verify
from compiler.ir.execute import execute, random_inputs
from passes import Context, Groups, Prune, certify, dependency_groups
from passes.coupling.carried import carried
from passes.coupling.transform import restrict
from passes.structured.check import pruning_error
from tests.networks import network

EXPERTS, BEST, HIDDEN = 6, 2, 5
HIDDEN_UNITS = "hidden unit", EXPERTS

_ROUTER = f"""(float[7,4] x, float[4,{EXPERTS}] r, float[{EXPERTS},4,{HIDDEN}] u, float[{EXPERTS},{HIDDEN},4] d,
    float[4,3] h) => (float[7,3] y) {{
    k = Constant<value_ints=[{BEST}]>() one = Constant<value_ints=[1]>() zero = Constant<value_ints=[0]>()
    logits = MatMul(x, r) best, place = TopK(logits, k) share = Softmax(best)
"""
_EXPERTS = """ a = Unsqueeze(x, zero) b = MatMul(a, u) c = Relu(b) e = MatMul(c, d) t = Transpose<perm=[1,0]>(gate)
    g = Unsqueeze(t, two) m = Mul(e, g) s = ReduceSum<keepdims=0>(m, zero) y = MatMul(s, h) }"""

GATES = {
    "scattered": """ shape = Constant<value_ints=[7,6]>() z = ConstantOfShape(shape)
        gate = ScatterElements<axis=1>(z, place, share) two = Constant<value_ints=[2]>()""",
    "one-hot": """ two = Constant<value_ints=[2]>() n = Constant<value_int=6>() f = Constant<value_floats=[0.0,1.0]>()
        q = OneHot(place, n, f) v = Unsqueeze(share, two) w = Mul(q, v) gate = ReduceSum<keepdims=0>(w, one)""",
    "compared": """ two = Constant<value_ints=[2]>() p = Unsqueeze(place, two) n = Constant<value_ints=[0,1,2,3,4,5]>()
        q = Equal(p, n) f = Cast<to=1>(q) v = Unsqueeze(share, two) w = Mul(f, v)
        gate = ReduceSum<keepdims=0>(w, one)""",
    "threshold": """ two = Constant<value_ints=[2]>() last = Slice(best, one, two, one) q = GreaterOrEqual(logits, last)
        p = Softmax(logits) f = Cast<to=1>(q) gate = Mul(p, f)""",
    "read back": """ two = Constant<value_ints=[2]>() p = Sigmoid(logits) v = GatherElements<axis=1>(p, place)
        shape = Constant<value_ints=[7,6]>() z = ConstantOfShape(shape)
        gate = ScatterElements<axis=1>(z, place, v)""",
}


def mixture(name: str) -> Graph:
    return network(_ROUTER + GATES[name] + _EXPERTS)


def reference(graph: Graph, name: str, hidden: dict[int, list[int]], x: np.ndarray) -> np.ndarray:
    """The mixture of some experts with some of their hidden units, in plain numpy."""
    r, u, d, h = (graph.value(n).numpy() for n in "rudh")
    experts = list(hidden)
    y = np.zeros((len(x), h.shape[1]))
    for row, scores in enumerate(x @ r[:, experts]):
        best = np.argsort(-scores)[:BEST]
        among = range(len(experts)) if name == "threshold" else best
        weights = np.exp(scores) / np.exp(scores[among]).sum()
        if name == "read back":
            weights = 1 / (1 + np.exp(-scores))
        for i in best:
            e, units = experts[i], hidden[experts[i]]
            y[row] += weights[i] * (np.maximum(x[row] @ u[e][:, units], 0) @ d[e][units]) @ h
    return y


def described(groups: Groups) -> set[tuple[str, int, int, int]]:
    return {(g.kind, g.units, g.balanced, g.minimum) for g in groups}


@pytest.mark.parametrize("name", GATES)
def test_experts_go_with_their_router_columns(name: str) -> None:
    graph = mixture(name)
    groups = dependency_groups(graph)
    assert described(groups) == {
        ("expert", EXPERTS, 1, BEST),
        ("hidden unit", EXPERTS * HIDDEN, EXPERTS, 0),
        ("hidden unit", 4, 1, 0),
    }
    assert certify(graph, groups) <= 1e-5
    experts, inside = (next(g for g in groups if (g.kind, g.balanced) == k) for k in (("expert", 1), HIDDEN_UNITS))
    for of_experts, of_hidden in ((2, 0), (0, 2), (3, 1)):
        check_removal(
            name, graph, groups, experts.blocks[0][1 : 1 + of_experts], [b[:of_hidden] for b in inside.blocks]
        )


def check_removal(name: str, graph: Graph, groups: Groups, *gone: np.ndarray | list[np.ndarray]) -> None:
    keep = np.ones(groups.unit_count, bool)
    keep[np.concatenate([np.ravel(g) for g in gone]).astype(int)] = False
    pruned = restrict(groups, keep)
    verify(pruned)
    rows, _, columns = groups.layouts[graph.value("u")]
    assert rows is not None and columns is not None
    hidden = {e: np.flatnonzero(keep[columns[e, 0]]).tolist() for e in np.flatnonzero(keep[rows.ravel()]).tolist()}
    data = random_inputs(graph)
    expected = reference(graph, name, hidden, data["x"])
    np.testing.assert_allclose(execute(pruned, data)["y"], expected, rtol=1e-4, atol=1e-5)


def test_as_many_experts_stay_as_the_router_picks() -> None:
    graph = mixture("scattered")
    context = Context()
    Prune(ratio=0.6, metric="params", only=("r",))(graph, context)
    with pytest.raises(Exception, match="E_RATIO_UNREACHABLE"):
        Prune(ratio=0.8, metric="params", only=("r",))(graph, context)


_TAIL = " y = MatMul(s, h) }"
_HEAD = """(float[7,4] x, float[4,6] r, float[6,4,5] u, float[6,5] b, float[5,3] h) => (float[7,3] y) {
    zero = Constant<value_ints=[0]>() logits = MatMul(x, r) """


def test_the_chosen_weights_are_gathered() -> None:
    """A switch (the best expert alone): its weights are read from the stack at the place that ArgMax found."""
    body = """place = ArgMax<axis=1, keepdims=0>(logits) w = Gather(u, place) one = Constant<value_ints=[1]>()
        a = Unsqueeze(x, one) c = MatMul(a, w) d = Squeeze(c, one) v = Gather(b, place) s = Add(d, v)"""
    groups = dependency_groups(graph := network(_HEAD + body + _TAIL))
    assert [[str(m) for m in g.members] for g in groups] == [["r[1]", "u[0]", "b[0]"], ["u[2]", "b[1]", "h[0]"]]
    assert certify(graph, groups) <= 1e-5


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("place = ArgMax<axis=1>(logits) f = Cast<to=1>(place) s = Mul(f, b0)", "its positions are used as numbers"),
        (
            "place = ArgMax<axis=1, keepdims=0>(logits) n = Constant<value_int=8>()"
            " f = Constant<value_floats=[0.0,1.0]>() q = OneHot(place, n, f) s = MatMul(q, b8)",
            "another depth",
        ),
        (
            "k = Constant<value_ints=[6]>() best, place = TopK(logits, k) s = MatMul(best, b)",
            "TopK picks all positions",
        ),
    ],
)
def test_positions_that_are_read_otherwise_are_fixed(body: str, reason: str) -> None:
    head = _HEAD.replace("float[5,3] h", "float[1,5] b0, float[8,5] b8, float[5,3] h")
    graph = network(head + body + _TAIL)
    groups = dependency_groups(graph)
    assert not any(g.units == 6 for g in groups)
    assert any(reason in f.reason for f in groups.fixed if f.value.name == "r")


def test_positions_that_leave_the_model_are_fixed() -> None:
    graph = network("(float[7,4] x, float[4,6] r) => (int64[7,1] y) { a = MatMul(x, r) y = ArgMax<axis=1>(a) }")
    groups = dependency_groups(graph)
    assert not groups
    assert "holds its positions" in str(groups)


def test_sparse_codes_keep_as_many_as_are_active() -> None:
    """A k-sparse autoencoder: any code may go, but k must stay."""
    graph = network(
        """(float[7,4] x, float[4,12] e, float[12] b, float[12,4] d) => (float[7,4] y) { a = MatMul(x, e) c = Add(a, b)
        k = Constant<value_ints=[3]>() v, i = TopK(c, k) r = Relu(v) s = Constant<value_ints=[7,12]>()
        z = ConstantOfShape(s) f = ScatterElements<axis=1>(z, i, r) y = MatMul(f, d) }"""
    )
    groups = dependency_groups(graph)
    assert described(groups) == {("hidden unit", 12, 1, 3)}
    assert certify(graph, groups) <= 1e-5
    pruned = Prune(ratio=0.7, metric="params")(graph, Context())
    assert 3 <= int((pruned.value("e").shape or (0, 0))[1]) < 12
    execute(pruned, random_inputs(pruned))


PICKS = {
    "slices": """ a = Constant<value_ints=[0]>() b = Constant<value_ints=[1]>() c = Constant<value_ints=[2]>()
        d = Constant<value_ints=[3]>() w0 = Slice(gate, a, b, b) w1 = Slice(gate, b, c, b) w2 = Slice(gate, c, d, b)""",
    "indices": """ a = Constant<value_int=0>() b = Constant<value_int=-2>() c = Constant<value_ints=[2]>()
        d = Constant<value_ints=[1]>() p0 = Gather<axis=1>(gate, a) p1 = Gather<axis=1>(gate, b)
        w2 = Gather<axis=1>(gate, c) w0 = Unsqueeze(p0, d) w1 = Unsqueeze(p1, d)""",
    "split": " w0, w1, w2 = Split<axis=1, num_outputs=3>(gate)",
}
SUMS = {
    "added": " s0 = Add(m0, m1) s = Add(s0, m2)",
    "added the other way": " s0 = Add(m1, m2) s = Add(m0, s0)",
    "summed": " s = Sum(m0, m1, m2)",
    "beside a shortcut": " s0 = Add(x, m0) s1 = Add(s0, m1) s = Add(s1, m2)",
}


def listed(pick: str, total: str) -> Graph:
    """Three experts of their own widths, each weighed by one column of the router."""
    return network(
        """(float[7,4] x, float[4,3] r, float[4,5] u0, float[4,6] u1, float[4,7] u2, float[5,4] d0, float[6,4] d1,
        float[7,4] d2, float[4,2] h) => (float[7,2] y) { l = MatMul(x, r) gate = Sigmoid(l)"""
        + PICKS[pick]
        + """ a0 = MatMul(x, u0) a1 = MatMul(x, u1) a2 = MatMul(x, u2) r0 = Relu(a0) r1 = Relu(a1) r2 = Relu(a2)
        e0 = MatMul(r0, d0) e1 = MatMul(r1, d1) e2 = MatMul(r2, d2) m0 = Mul(w0, e0) m1 = Mul(e1, w1)
        m2 = Mul(e2, w2)"""
        + SUMS[total]
        + " y = MatMul(s, h) }"
    )


@pytest.mark.parametrize("total", SUMS)
@pytest.mark.parametrize("pick", PICKS)
def test_experts_that_are_modules_of_their_own(pick: str, total: str) -> None:
    graph = listed(pick, total)
    groups = dependency_groups(graph)
    assert certify(graph, groups) <= 1e-5
    experts = next(g for g in groups if g.kind == "expert")
    assert (experts.units, experts.minimum) == (3, 1)
    assert {g.units for g in groups if g is not experts} == (
        {5, 6, 7} if total == "beside a shortcut" else {4, 5, 6, 7}
    )
    data = random_inputs(graph)
    x, r, h = data["x"], graph.value("r").numpy(), graph.value("h").numpy()
    for gone in ([0], [1], [2], [0, 1], [0, 2], [1, 2]):
        keep = np.ones(groups.unit_count, bool)
        keep[experts.blocks[0][gone]] = False
        pruned = restrict(groups, keep)
        verify(pruned)
        stay = [i for i in range(3) if i not in gone]
        s = x if total == "beside a shortcut" else np.zeros_like(x)
        for i in stay:
            up, down = graph.value(f"u{i}").numpy(), graph.value(f"d{i}").numpy()
            s = s + np.maximum(x @ up, 0) @ down / (1 + np.exp(-(x @ r[:, [i]])))
        np.testing.assert_allclose(execute(pruned, data)["y"], s @ h, rtol=1e-4, atol=1e-5)
        assert {c.name for c in pruned.constants()} >= {f"u{i}" for i in stay}
        assert not {c.name for c in pruned.constants()} & {f"u{i}" for i in gone}
        assert pruning_error(groups, keep, pruned) <= 1e-5


def test_an_expert_that_is_a_module_counts_with_all_its_weights() -> None:
    graph = listed("slices", "added")
    context = Context()
    Prune(ratio=0.3, metric="params", only=("r",), criterion="l1")(graph, context)
    report = context.reports["prune"][0]
    assert report.reached == pytest.approx(0.3, abs=0.1)
    assert report.before.params - report.after.params >= 4 + 2 * 4 * 5
    groups = dependency_groups(graph)
    experts = next(i for i, g in enumerate(groups) if g.kind == "expert")
    assert carried(groups)[experts].params == 4 + 2 * 4 * 5


@pytest.mark.parametrize(
    "body",
    [
        " m0 = Mul(w0, e0) m1 = Mul(e1, w1) s0 = Add(m0, m1) s = Add(s0, e2)",  # one position weighs nothing
        " m0 = Mul(w0, e0) m1 = Mul(e1, w1) m2 = Add(e2, w2) s0 = Add(m0, m1) s = Add(s0, m2)",  # one is no factor
        # two sums
        " m0 = Mul(w0, e0) m1 = Mul(e1, w1) m2 = Mul(e2, w2) s0 = Add(m0, m1) s1 = Relu(s0) s = Add(s1, m2)",
        " m0 = Mul(w0, e0) m1 = Mul(m0, w1) m2 = Mul(e2, w2) s = Add(m1, m2)",  # two weigh one term
    ],
)
def test_positions_that_do_not_weigh_terms_of_one_sum_are_fixed(body: str) -> None:
    graph = network(
        "(float[7,4] x, float[4,3] r, float[4,4] u0, float[4,4] u1, float[4,4] u2) => (float[7,4] s) {"
        + " gate = MatMul(x, r)"
        + PICKS["split"]
        + " e0 = MatMul(x, u0) e1 = MatMul(x, u1) e2 = MatMul(x, u2)"
        + body
        + "}"
    )
    assert not any("r[1]" in str(g) for g in dependency_groups(graph))
