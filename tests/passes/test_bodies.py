"""Dependency groups inside the bodies of If, Loop, Scan and SequenceMap: derived by hand, certified, pruned."""

from __future__ import annotations

from random import Random

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.frontends import load
from compiler.frontends.onnx.protos import bodies
from compiler.ir import CheckFailed, Graph, graph_cost, subgraphs, verify
from compiler.ir.bodies import runs
from compiler.ir.execute import execute, random_inputs, relative_difference
from passes import Context, Groups, Pipeline, Prune, carried, certify, dependency_groups
from passes.coupling.transform import restrict
from passes.structured.budget import METRICS
from passes.structured.check import pruning_error
from tests.networks import network, network_proto
from tests.strategies import networks_with_bodies

DECIDE = "z0 = Constant<value_float=0.0>() s0 = ReduceSum<keepdims=0>(x) go = Greater(s0, z0)"

# name -> (text, expected groups). In all of them, what enters and leaves a body is fixed.
PATTERNS: dict[str, tuple[str, list[str]]] = {
    "if": (
        f"""(float[2,6] x, float[6,8] w0, float[8,12] u1, float[12,8] d1, float[8,20] u2, float[20,8] d2, float[8,5] h)
        => (float[2,5] y) {{ a = MatMul(x, w0) {DECIDE}
        b = If(go) <then_branch = t () => (tb) {{ t1 = MatMul(a, u1) t2 = Relu(t1) tb = MatMul(t2, d1) }},
                    else_branch = e () => (eb) {{ e1 = MatMul(a, u2) e2 = Tanh(e1) eb = MatMul(e2, d2) }}>
        y = MatMul(b, h) }}""",
        ["u1[1]: 12", "u2[1]: 20"],
    ),
    "if, weights shared by both branches": (
        f"""(float[2,8] x, float[8,12] u, float[12,8] d, float[12] v, float[8,5] h) => (float[2,5] y) {{ {DECIDE}
        b = If(go) <then_branch = t () => (tb) {{ t1 = MatMul(x, u) t2 = Relu(t1) tb = MatMul(t2, d) }},
                    else_branch = e () => (eb) {{ e1 = MatMul(x, u) e2 = Mul(e1, v) eb = MatMul(e2, d) }}>
        y = MatMul(b, h) }}""",
        ["u[1]: 12"],
    ),
    "if, a weight that one branch gives out": (
        f"""(float[2,8] x, float[8,12] u, float[12,8] d, float[8,12] u2, float[12,5] h) => (float[2,5] y) {{ {DECIDE}
        b = If(go) <then_branch = t () => (tb) {{ t1 = MatMul(x, u) t2 = MatMul(t1, d) tb = MatMul(t2, u2) }},
                    else_branch = e () => (eb) {{ eb = MatMul(x, u) }}>
        y = MatMul(b, h) }}""",
        ["d[1]: 8"],  # the twelve of u leave the other branch, and those of u2 this one
    ),
    "if, weights shared with the outer graph": (
        f"""(float[2,8] x, float[8,12] u, float[12,8] d, float[8,5] h) => (float[2,5] y) {{ {DECIDE}
        o1 = MatMul(x, u) o2 = Sigmoid(o1) o = MatMul(o2, d)
        b = If(go) <then_branch = t () => (tb) {{ t1 = MatMul(x, u) t2 = Relu(t1) tb = MatMul(t2, d) }},
                    else_branch = e () => (eb) {{ eb = Identity(x) }}>
        c = Add(o, b) y = MatMul(c, h) }}""",
        ["u[1]: 12"],
    ),
    "loop": (
        """(float[2,6] x, float[6,8] w0, float[8,16] u, float[16] v, float[16,8] d, float[8,10] w1, float[10,5] h)
        => (float[2,5] y) { a = MatMul(x, w0) n = Constant<value_int=3>() k = Constant<value_int=1>() c = Cast<to=9>(k)
        b, all = Loop(n, c, a) <body = l (int64 i, bool c1, float[2,8] s) => (bool c2, float[2,8] s2, float[2,8] r) {
            l1 = MatMul(s, u) l2 = Relu(l1) l3 = Mul(l2, v) l4 = MatMul(l3, d) s2 = Add(s, l4) r = Neg(s2)
            c2 = Identity(c1) }>
        q = ReduceSum<keepdims=0>(all) m = Add(b, q) z = MatMul(m, w1) y = MatMul(z, h) }""",
        ["u[1]: 16", "w1[1]: 10"],
    ),
    "scan, a recurrent cell": (
        """(float[5,2,4] x, float[2,8] h0, float[12,16] u, float[16,8] d, float[12,8] g, float[8,5] h)
        => (float[5,2,5] y) {
        last, all = Scan (h0, x) <num_scan_inputs=1,
            body = l (float[2,8] s, float[2,4] xt) => (float[2,8] s2, float[2,8] out) {
            k = Concat<axis=1>(s, xt) l1 = MatMul(k, u) l2 = Relu(l1) l3 = MatMul(l2, d) l4 = Tanh(l3)
            g1 = MatMul(k, g) g2 = Sigmoid(g1) m = Mul(g2, l4) s2 = Add(s, m) out = Identity(s2) }>
        y = MatMul(all, h) }""",
        ["u[1]: 16"],
    ),
    "scan backwards along another axis": (
        """(float[2,5,4] x, float[2,8] h0, float[12,16] u, float[16,8] d, float[8,5] h) => (float[5,2,5] y) {
        last, all = Scan (h0, x) <num_scan_inputs=1, scan_input_axes=[1], scan_input_directions=[1],
            body = l (float[2,8] s, float[2,4] xt) => (float[2,8] s2, float[2,8] out) {
            k = Concat<axis=1>(s, xt) l1 = MatMul(k, u) l2 = Relu(l1) s2 = MatMul(l2, d) out = Identity(s2) }>
        y = MatMul(all, h) }""",
        ["u[1]: 16"],
    ),
    "if inside a loop": (
        """(float[2,8] x, float[8,12] u1, float[12,8] d1, float[8,20] u2, float[20,8] d2, float[8,16] u, float[16,8] d,
        float[8,5] h) => (float[2,5] y) {
        n = Constant<value_int=2>() z0 = Constant<value_float=0.0>()
        b = Loop(n, , x) <body = l (int64 i, bool c1, float[2,8] s) => (bool c2, float[2,8] s2) {
            l1 = MatMul(s, u) l2 = Relu(l1) a = MatMul(l2, d) s0 = ReduceSum<keepdims=0>(a) go = Greater(s0, z0)
            s2 = If(go) <then_branch = t () => (tb) { t1 = MatMul(a, u1) t2 = Relu(t1) tb = MatMul(t2, d1) },
                         else_branch = e () => (eb) { e1 = MatMul(x, u2) e2 = Tanh(e1) e3 = MatMul(e2, d2)
                                                      eb = Add(e3, a) }>
            c2 = Identity(c1) }>
        y = MatMul(b, h) }""",
        ["u[1]: 16", "u1[1]: 12", "u2[1]: 20"],
    ),
    "numbers that spell extents": (
        """(float[1,4,4,4] x, float[8,4,1,1] w1, float[8,1,3,3] w2, float[10,8,1,1] w3, float[4,10,1,1] w4,
        float[4,4,1,1] h) => (float[1,4,4,4] y) { n = Constant<value_int=2>()
        s1 = Constant<value_ints=[1,8,16]>() s2 = Constant<value_ints=[1,8,4,4]>() p = Constant<value_ints=[4,6]>()
        b = Loop(n, , x) <body = l (int64 i, bool c1, float[1,4,4,4] s) => (bool c2, float[1,4,4,4] t) {
            l1 = Conv(s, w1) l2 = Conv<group=8, pads=[1,1,1,1]>(l1, w2) l3 = Reshape(l2, s1) l4 = Relu(l3)
            l5 = Reshape(l4, s2) l6 = Conv(l5, w3) l7, l8 = Split<axis=1>(l6, p) l9 = Neg(l8)
            l10 = Concat<axis=1>(l7, l9) t = Conv(l10, w4) c2 = Identity(c1) }>
        y = Conv(b, h) }""",
        ["w1[0]: 8", "w3[0]: 4", "w3[0]#2: 6"],
    ),
    "an extent read off inside": (
        """(float[1,4,4,4] x, float[8,4,1,1] w1, float[4,8,1,1] w2, float[4,4,1,1] h) => (float[1,4,4,4] y) {
        n = Constant<value_int=2>() one = Constant<value_int=1>() first = Constant<value_ints=[0]>()
        k1 = Constant<value_ints=[1]>() k8 = Constant<value_ints=[8]>() k16 = Constant<value_ints=[16]>()
        b = Loop(n, , x) <body = l (int64 i, bool c1, float[1,4,4,4] s) => (bool c2, float[1,4,4,4] t) {
            l1 = Conv(s, w1) sh = Shape(l1) b1 = Gather(sh, first) q1 = Concat<axis=0>(b1, k8, k16)
            l2 = Reshape(l1, q1) l3 = Relu(l2) l4 = Reshape(l3, sh) t = Conv(l4, w2) c2 = Identity(c1) }>
        y = Conv(b, h) }""",
        ["w1[0]: 8"],
    ),
    "a recurrence inside a branch": (
        f"""(float[3,2,4] x, float[1,24,4] w, float[1,24,6] r, float[1,48] bb, float[6,4] d, float[4,5] h)
        => (float[3,2,5] y) {{ {DECIDE} ax = Constant<value_ints=[1]>()
        b = If(go) <then_branch = t () => (tb) {{ t1 = LSTM<hidden_size=6>(x, w, r, bb) t2 = Squeeze(t1, ax)
                                                tb = MatMul(t2, d) }},
                    else_branch = e () => (eb) {{ eb = Identity(x) }}>
        y = MatMul(b, h) }}""",
        ["w[1]: 6"],
    ),
    "a sequence grows in a loop": (
        """(float[2,8] x, float[8,16] u, float[16,8] d) => (float[y0,8] y) {
        n = Constant<value_int=3>() q0 = SequenceEmpty<dtype=1>()
        b, q = Loop(n, , x, q0) <body = l (int64 i, bool c1, float[2,8] s, seq(float[2,8]) q1)
            => (bool c2, float[2,8] s2, seq(float[2,8]) q2) {
            l1 = MatMul(s, u) l2 = Relu(l1) l3 = MatMul(l2, d) s2 = Tanh(l3) q2 = SequenceInsert(q1, s2)
            c2 = Identity(c1) }>
        y = ConcatFromSequence<axis=0>(q) }""",
        ["u[1]: 16"],
    ),
    "sequence map": (
        """(float[2,8] x, float[2,8] x1, float[8,16] u, float[16,8] d) => (float[y0,8] y) {
        q = SequenceConstruct(x, x1)
        m = SequenceMap(q) <body = l (float[2,8] s) => (float[2,8] t) {
            l1 = MatMul(s, u) l2 = Relu(l1) t = MatMul(l2, d) }>
        y = ConcatFromSequence<axis=0>(m) }""",
        ["u[1]: 16"],
    ),
}


def described(groups: Groups) -> list[str]:
    return [f"{g.name}: {g.units}" + (f" in {g.balanced} blocks" if g.balanced > 1 else "") for g in groups]


def stored_inside(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every initializer that a single body reads stored in that body."""
    for node in model.graph.node:
        for body in bodies(node):
            _store(model.graph, body, model.graph)
    return model


def _store(holder: onnx.GraphProto, body: onnx.GraphProto, outermost: onnx.GraphProto) -> None:
    for node in body.node:
        for inner in bodies(node):
            _store(holder, inner, outermost)
    for tensor in list(holder.initializer):
        read = any(tensor.name in n.input for n in body.node)
        if read and _readers(outermost, tensor.name) == 1:
            body.initializer.append(tensor)
            holder.initializer.remove(tensor)


def _readers(graph: onnx.GraphProto, name: str) -> int:
    """How many graphs read a name: this one and its bodies."""
    inner = sum(_readers(b, name) for n in graph.node for b in bodies(n))
    return inner + any(name in n.input for n in graph.node)


@pytest.mark.parametrize("store", ["captured", "inside"])
@pytest.mark.parametrize("name", PATTERNS)
def test_pattern(name: str, store: str) -> None:
    text, expected = PATTERNS[name]
    model = network_proto(text)
    if store == "inside":
        model = stored_inside(model)
        assert any(b.initializer for n in model.graph.node for b in bodies(n)) or "shared" in name or "gives" in name
    for graph in (load(model), Pipeline("simplify")(load(model))):
        groups = dependency_groups(graph)
        assert described(groups) == expected
        assert certify(graph, groups) <= 1e-4
        for ratio in (0.25, 0.5):
            check_pruning(graph, ratio)


def check_pruning(graph: Graph, ratio: float) -> None:
    """Half of every group goes, exactly, and bodies shrink as the plan says."""
    groups = dependency_groups(graph)
    keep = np.ones(groups.unit_count, bool)
    for group in groups:
        for block in group.blocks:
            keep[block[: int(len(block) * ratio)]] = False
    pruned = restrict(groups, keep)
    verify(pruned)
    assert pruning_error(groups, keep, pruned) <= 1e-4
    data = random_inputs(graph)
    before, after = execute(graph, data), execute(pruned, data)
    assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in before.items()}
    assert [described(dependency_groups(pruned))] == [[f"{g.name}: {g.units - int(g.units * ratio)}" for g in groups]]


def test_the_pass_prunes_bodies_to_the_ratio_asked_for() -> None:
    graph = network(PATTERNS["if inside a loop"][0])
    for metric in ("params", "macs"):
        context = Context()
        pruned = Prune(ratio=0.5, metric=metric)(graph, context)
        report = context.reports["prune"][0]
        assert report.reached == pytest.approx(0.5, abs=0.03)
        before, after = graph_cost(graph), graph_cost(pruned)
        assert 1 - getattr(after, metric) / getattr(before, metric) == report.reached
        assert pruning_error(*report.selection, pruned) <= 1e-4


def test_what_two_graphs_share_counts_once() -> None:
    graph = network(PATTERNS["if, weights shared with the outer graph"][0])
    assert graph_cost(graph).params == 8 * 12 + 12 * 8 + 8 * 5
    (unit,) = carried(dependency_groups(graph))
    assert unit.params == 16
    assert unit.macs == 2 * 2 * 16  # two rows through the pair of weights, outside and in one branch


def test_why_what_crosses_the_boundary_is_fixed() -> None:
    """An operand, what meets a state, a captured activation, a result."""
    groups = dependency_groups(network(PATTERNS["loop"][0]))
    fixed = {f"{f.value.name}[{f.axis}]": f.reason for f in groups.fixed}
    assert fixed["w0[1]"] == "Loop gives this to a body, or decides by it (node 'b' (Loop))"
    assert fixed["d[1]"] == "'l4' meets 's', one of which is fixed (node 's2' (Add))"
    groups = dependency_groups(network(PATTERNS["if"][0]))
    fixed = {f"{f.value.name}[{f.axis}]": f.reason for f in groups.fixed}
    assert fixed["w0[1]"] == "a body of If reads this from outside (node 'b' (If))"
    assert fixed["d2[1]"] == "a body of If gives this out (node 'b' (If))"


def test_extents_that_a_body_reads_from_outside_are_fixed() -> None:
    groups = dependency_groups(
        network(
            f"""(float[1,4,4,4] x, float[8,4,1,1] w, float[8,4,1,1] u, float[5,8,1,1] d, float[5,8] h)
            => (float[1,5] y, float[1,5,4,4] y2) {{ {DECIDE} a = Conv(x, w) sh = Shape(a) p = GlobalAveragePool(a)
            f = Flatten(p) y = Gemm<transB=1>(f, h)
            y2 = If(go) <then_branch = t () => (tb) {{ t1 = Conv(x, u) t2 = Reshape(t1, sh) tb = Conv(t2, d) }},
                         else_branch = e () => (eb) {{ e1 = Conv(x, u) eb = Conv(e1, d) }}> }}""",
            simplify=False,
        )
    )
    assert described(groups) == []
    reasons = {f"{f.value.name}[{f.axis}]": f.reason for f in groups.fixed}
    assert "its extent is used as a number" in reasons["w[0]"]


def test_an_unknown_operator_fixes_what_its_bodies_read() -> None:
    groups = dependency_groups(
        network(
            """(float[2,8] x, float[8,12] u, float[12,8] d, float[8,5] h) => (float[2,5] y) {
            a = MatMul(x, u) b = Relu(a) c = MatMul(b, d) y = MatMul(c, h)
            k = custom.Twice(x) <body = l (float[2,8] s) => (float[2,8] t) { l1 = MatMul(s, u) t = MatMul(l1, d) }>
            }""",
            simplify=False,
        )
    )
    assert described(groups) == []
    assert {f.value.name for f in groups.fixed} >= {"u", "d"}


def test_names_inside_bodies_are_unambiguous() -> None:
    """Both branches store a weight of the same name."""
    model = network_proto(PATTERNS["if"][0])
    stored_inside(model)
    (node,) = (n for n in model.graph.node if n.op_type == "If")
    for body in bodies(node):
        for tensor in body.initializer:
            old, tensor.name = tensor.name, tensor.name[0]
            for inner in body.node:
                inner.input[:] = [tensor.name if name == old else name for name in inner.input]
    graph = load(model)
    groups = dependency_groups(graph)
    assert described(groups) == ["u[1]: 12", "u_1[1]: 20"]
    assert [[n.name for m in g.members for n in m.nodes] for g in groups] == [["t1", "tb"], ["e1", "eb"]]
    assert certify(graph, groups) <= 1e-4


class TestProof:
    """Neither the certificate nor the exact check may pass over what the data does not run."""

    def graph(self) -> Graph:
        return network(PATTERNS["if inside a loop"][0])

    def test_every_body_runs(self) -> None:
        graph = self.graph()
        found = runs(graph, random_inputs(graph), graph.all_constants())
        results = {body.name: set(run.execute(graph)) for run in found if (body := run.body(graph)) is not None}
        assert results == {"net": {"y"}, "l": {"s2", "c2"}, "t": {"tb"}, "e": {"eb"}}

    @pytest.mark.parametrize("weight", ["d", "d1", "d2"])
    def test_a_missed_member_shows_in_any_body(self, weight: str) -> None:
        graph = self.graph()
        groups = dependency_groups(graph)
        (missed,) = (c for c in graph.all_constants() if c.name == weight)
        groups.layouts[missed] = [None, None]
        with pytest.raises(CheckFailed, match="permuting the groups changes the outputs") as caught:
            certify(graph, groups)
        assert caught.value.where == {"d": "u[1]", "d1": "u1[1]", "d2": "u2[1]"}[weight]

    def test_a_wrong_pruning_shows_in_a_branch_that_is_not_taken(self) -> None:
        graph = self.graph()
        groups = dependency_groups(graph)
        keep = np.ones(groups.unit_count, bool)
        for group in groups:
            keep[group.blocks[0][:4]] = False
        for name in ("u1", "u2"):
            pruned = restrict(groups, keep)
            assert pruning_error(groups, keep, pruned) <= 1e-4
            (wrong,) = (c for c in pruned.all_constants() if c.name == name)
            wrong.data = type(wrong)(name, data=wrong.numpy()[:, ::-1].copy()).data
            assert pruning_error(groups, keep, pruned) > 1e-3

    def test_a_body_that_cannot_run_is_not_called_proven(self) -> None:
        """A branch for inputs of one row, on data of two."""
        graph = network(
            """(float[n,8] x, float[8,12] u, float[12,8] d, float[12] w) => (float[m,8] y) {
            z = Constant<value_ints=[0]>() a = Shape<end=1>(x) one = Constant<value_ints=[1]>() c = Equal(a, one)
            k = Squeeze(c)
            y = If(k) <then_branch = t () => (tb) { t0 = Squeeze(x, z) t1 = MatMul(t0, u) t2 = Relu(t1)
                                                   t3 = MatMul(t2, d) tb = Unsqueeze(t3, z) },
                       else_branch = e () => (eb) { e1 = MatMul(x, u) e2 = Mul(e1, w) eb = MatMul(e2, d) }> }"""
        )
        groups = dependency_groups(graph)
        assert described(groups) == ["u[1]: 12"]
        with pytest.raises(CheckFailed, match="'t' cannot be run alone on the data at hand") as caught:
            certify(graph, groups)
        assert caught.value.code == "E_BODY"
        keep = np.ones(groups.unit_count, bool)
        keep[:6] = False
        assert pruning_error(groups, keep, restrict(groups, keep)) is None


class TestFunctions:
    """Model-local functions are inlined: with bodies inside them, and called by bodies."""

    TEXT = """
        <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        net (float[2,8] x, bool g) => (float[2,8] y)
        <float[8,4] u = {%s}, float[4,8] d = {%s}> {
          n = Constant<value_int=2>()
          a = local.branch(x, g, u, d)
          y = Loop(n, , a) <body = l (int64 i, bool c1, float[2,8] s) => (bool c2, float[2,8] s2) {
              s2 = local.mlp(s, u, d) c2 = Identity(c1) }>
        }
        <domain: "local", opset_import: ["" : 21]>
        mlp (v, up, down) => (w) { h = MatMul(v, up) r = Relu(h) w = MatMul(r, down) }
        <domain: "local", opset_import: ["" : 21, "local" : 1]>
        branch (v, go, up, down) => (w) {
          w = If(go) <then_branch = t () => (tb) { tb = local.mlp(v, up, down) },
                      else_branch = e () => (eb) { eb = Neg(v) }>
        }"""

    def test_groups_pass_through(self) -> None:
        rng = np.random.default_rng(0)
        numbers = [", ".join(f"{n:.3f}" for n in rng.standard_normal(32)) for _ in range(2)]
        model = onnx.parser.parse_model(self.TEXT % tuple(numbers))
        graph = load(model)
        assert {n.op for n in graph.all_nodes()} >= {"If", "Loop", "MatMul", "Relu"}
        data = random_inputs(graph)
        assert relative_difference(execute(graph, data), execute(model, data)) <= 1e-6
        groups = dependency_groups(graph)
        assert [g.units for g in groups] == [4]
        assert {m.value.name for m in groups[0].members} == {"u", "d"}
        assert len({n for m in groups[0].members for n in m.nodes}) == 4  # in the branch and in the loop
        assert certify(graph, groups) <= 1e-4
        check_pruning(graph, 0.5)


EXPERTS = f"""(float[7,4] x, float[4,3] r, float[4,5] u0, float[4,6] u1, float[4,7] u2, float[5,4] d0, float[6,4] d1,
    float[7,4] d2, float[4,2] h) => (float[7,2] y) {{ {DECIDE} l = MatMul(x, r) gate = Sigmoid(l)
    w0, w1, w2 = Split<axis=1, num_outputs=3>(gate) a0 = MatMul(x, u0) r0 = Relu(a0) e0 = MatMul(r0, d0)
    e1 = If(go) <then_branch = t () => (tb) {{ t1 = MatMul(x, u1) t2 = Relu(t1) tb = MatMul(t2, d1) }},
                 else_branch = e () => (eb) {{ eb = Neg(x) }}>
    a2 = MatMul(x, u2) r2 = Relu(a2) e2 = MatMul(r2, d2) m0 = Mul(w0, e0) m1 = WEIGH m2 = Mul(w2, e2)
    s1 = Add(m0, m1) s = Add(s1, m2) y = MatMul(s, h) }}"""


def test_an_expert_with_a_branch_goes_as_a_whole() -> None:
    graph = network(EXPERTS.replace("WEIGH", "Mul(w1, e1)"))
    groups = dependency_groups(graph)
    assert {(g.kind, g.units) for g in groups} == {
        ("expert", 3),
        *(("hidden unit", n) for n in (5, 6, 7)),
    }
    assert certify(graph, groups) <= 1e-4
    (experts,) = (i for i, g in enumerate(groups) if g.kind == "expert")
    for gone in ([0], [1], [1, 2]):
        keep = np.ones(groups.unit_count, bool)
        keep[groups[experts].blocks[0][gone]] = False
        pruned = restrict(groups, keep)
        verify(pruned)
        assert pruning_error(groups, keep, pruned) <= 1e-4
        assert {c.name for c in pruned.all_constants()}.isdisjoint(f"{w}{i}" for i in gone for w in "ud")
        for metric, cost in (("params", graph_cost(pruned).params), ("macs", graph_cost(pruned).macs)):
            assert METRICS[metric](groups)(keep) == cost


def test_an_expert_that_a_body_weighs_stays() -> None:
    branch = "If(go) <then_branch = a () => (ab) { ab = Mul(w1, e1) }, else_branch = b () => (bb) { bb = Neg(e1) }>"
    groups = dependency_groups(network(EXPERTS.replace("WEIGH", branch)))
    assert {g.kind for g in groups} == {"hidden unit"}


def test_a_loop_without_states() -> None:
    """Its two leading operands are written even where both are left out."""
    text = """(float[2,8] x, float[8,12] u, float[12,4] d) => (float[k,2,4] y) { n = Constant<value_int=3>()
        y = Loop(n, n) <body = l (int64 i, bool c1) => (bool c2, float[2,4] t) {
            l1 = MatMul(x, u) l2 = Relu(l1) t = MatMul(l2, d) c2 = Identity(c1) }> }"""
    model = network_proto(text)
    (loop,) = (n for n in model.graph.node if n.op_type == "Loop")
    loop.input[1] = ""
    graph = Pipeline("simplify")(load(model))
    groups = dependency_groups(graph)
    assert described(groups) == ["u[1]: 12"]
    assert certify(graph, groups) <= 1e-4
    check_pruning(graph, 0.5)


class TestShapes:
    """What a Loop gives out has a known shape where its states keep theirs."""

    def loop(self, states: str, body: str, outputs: str, first: str = "x") -> Graph:
        return network(
            f"""(float[2,8] x, float[8,8] w) => (float[a,b] y) {{ n = Constant<value_int=2>()
            y = Loop(n, , {first}) <body = l (int64 i, bool c1, {states} s) => (bool c2, {outputs} s2) {{
            {body} c2 = Identity(c1) }}> }}""",
            simplify=False,
        )

    @pytest.mark.parametrize("declared", ["float[2,8]", "float[p,q]", "float[]"])
    def test_a_state_that_keeps_its_shape(self, declared: str) -> None:
        graph = self.loop(declared, "s2 = MatMul(s, w)", "float[]")
        assert graph.outputs[0].shape == (2, 8)
        (body,) = graph.all_bodies()
        assert body.inputs[2].shape == (2, 8)

    def test_a_state_that_grows(self) -> None:
        graph = self.loop("float[p,8]", "s2 = Concat<axis=0>(s, s)", "float[q,8]")
        (body,) = graph.all_bodies()
        assert body.inputs[2].shape == ("p", 8)
        assert graph.outputs[0].shape is not None
        assert graph.outputs[0].shape[1] == 8
        assert not isinstance(graph.outputs[0].shape[0], int)

    def test_bodies_are_inferred_again_after_pruning(self) -> None:
        graph = network(PATTERNS["numbers that spell extents"][0])
        groups = dependency_groups(graph)
        keep = np.ones(groups.unit_count, bool)
        keep[groups[0].blocks[0][:3]] = False
        (loop,) = (n for n in restrict(groups, keep).nodes if n.op == "Loop")
        (body,) = subgraphs(loop)
        shapes = {v.name: v.shape for n in body.nodes for v in n.outputs}
        assert shapes["l2"] == (1, 5, 4, 4)
        assert next(n for n in body.nodes if n.name == "l2").attribute("group") == 5


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks_with_bodies(), st.randoms(use_true_random=False))
def test_random_networks(graph: Graph, random: Random) -> None:
    """Certified, and any choice of units is exact, in every body."""
    groups = dependency_groups(graph)
    try:
        difference = certify(graph, groups)
    except CheckFailed as failure:
        if failure.code != "E_CERTIFICATE_VACUOUS":
            raise
        difference = 0.0
    assert difference <= 1e-4
    keep = np.ones(groups.unit_count, bool)
    for group in groups:
        steps = random.randrange(group.size)
        for block, step in zip(group.blocks, group.step, strict=True):
            keep[random.sample(block.tolist(), steps * step)] = False
    pruned = restrict(groups, keep)
    verify(pruned)
    error = pruning_error(groups, keep, pruned)
    assert error is None or error <= 1e-4
    data = random_inputs(graph)
    before, after = execute(graph, data), execute(pruned, data)
    assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in before.items()}
