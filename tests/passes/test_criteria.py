"""Each criterion against an independent computation, on groups that couple layers."""

from __future__ import annotations

import numpy as np
import pytest

from compiler.ir import Graph
from compiler.ir.execute import execute
from passes import Groups, dependency_groups
from passes.calibration import Evidence, calibration_samples
from passes.coupling.groups import Group
from passes.importance import AGGREGATES, criterion, unit_scores
from passes.importance.obspa import DAMPING
from tests.networks import network

RESIDUAL = """(float[N,3,8,8] x, float[6,3,3,3] w1, float[6,1,3,3] wd, float[6,6,1,1] w2, float[4,6,3,3] w3,
    float[5,4] h) => (float[N,5] y) { a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) d =
    Conv<pads=[1,1,1,1], group=6>(r, wd) e = Relu(d) b = Conv(e, w2) s = Add(r, b) t = Relu(s) c =
    Conv(t, w3) u = Relu(c) ax = Constant<value_ints=[2,3]>() m = ReduceMean<keepdims=0>(u, ax) y =
    Gemm<transB=1>(m, h) }"""
"""One group of 6 (w1, wd, w2 both ways, w3) and one of 4 (w3, h)."""

ATTENTION = """(float[N,6,16] x, float[16,24] wq, float[16,24] wk, float[16,24] wv, float[24,5] h) => (float[N,6,5] y) {
    q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) s = Constant<value_ints=[0,6,2,12]>()
    q1 = Reshape(q, s) k1 = Reshape(k, s) v1 = Reshape(v, s) q2 = Transpose<perm=[0,2,1,3]>(q1)
    k2 = Transpose<perm=[0,2,3,1]>(k1) v2 = Transpose<perm=[0,2,1,3]>(v1) a = MatMul(q2, k2) p = Softmax(a)
    o = MatMul(p, v2) o1 = Transpose<perm=[0,2,1,3]>(o) s2 = Constant<value_ints=[0,6,24]>() o2 = Reshape(o1, s2)
    y = MatMul(o2, h) }"""


@pytest.fixture
def residual() -> Groups:
    return dependency_groups(network(RESIDUAL))


def evidence(groups: Groups, count: int = 24) -> Evidence:
    rng = np.random.default_rng(5)
    shape = [d if isinstance(d, int) else count for d in groups.graph.inputs[0].shape or ()]
    x = rng.standard_normal((count, *shape[1:])).astype(np.float32)
    return Evidence(groups, calibration_samples(groups.graph, {"x": x}))


def group(groups: Groups, units: int) -> Group:
    return next(g for g in groups if g.units == units)


def weight(graph: Graph, name: str) -> np.ndarray:
    return np.asarray(graph.value(name).numpy(), np.float64)


def inner(groups: Groups, found: Evidence, *names: str) -> list[np.ndarray]:
    """Values inside the network, on all samples."""
    graph = groups.graph.copy()
    graph.outputs = [graph.value(n) for n in names]
    parts = [execute(graph, feeds) for feeds in found.samples]
    return [np.concatenate([p[n] for p in parts]).astype(np.float64) for n in names]


def test_lamp_compares_with_the_weights_that_are_not_smaller(residual: Groups) -> None:
    def layer(w: np.ndarray) -> np.ndarray:
        squares = np.square(w)
        return squares / np.array([squares[squares >= s].sum() for s in squares.ravel()]).reshape(w.shape)

    scores = unit_scores(residual, criterion("lamp"))[group(residual, 4).blocks[0]]
    graph = residual.graph
    expected = layer(weight(graph, "w3")).sum((1, 2, 3)) + layer(weight(graph, "h")).sum(0)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_fpgm_sums_distances_between_filters(residual: Groups) -> None:
    filters = weight(residual.graph, "w3").reshape(4, -1)
    expected = [sum(np.linalg.norm(a - b) for b in filters) for a in filters]
    scores = unit_scores(residual, criterion("fpgm"))[group(residual, 4).blocks[0]]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_fpgm_of_a_coupled_group_sums_over_its_producers(residual: Groups) -> None:
    total = np.zeros(6)
    for name in ("w1", "wd", "w2"):
        filters = weight(residual.graph, name).reshape(6, -1)
        total += [sum(np.linalg.norm(a - b) for b in filters) for a in filters]
    np.testing.assert_allclose(unit_scores(residual, criterion("fpgm"))[group(residual, 6).blocks[0]], total, rtol=1e-6)


def columns(w: np.ndarray, axis: int) -> np.ndarray:
    return w.sum(tuple(a for a in range(w.ndim) if a != axis))


def test_activation_criteria_read_the_inputs_of_weights(residual: Groups) -> None:
    found = evidence(residual)
    e, t, m = inner(residual, found, "e", "t", "m")  # what w2, w3 and h read
    w2, w3 = weight(residual.graph, "w2"), weight(residual.graph, "w3")
    six, four = group(residual, 6).blocks[0], group(residual, 4).blocks[0]
    space = (0, 2, 3)
    expected = {
        "wanda": sum(np.sqrt(np.square(x).sum(space)) * columns(np.abs(w), 1) for x, w in ((e, w2), (t, w3))),
        "flap": sum(x.var(space) * columns(np.square(w), 1) for x, w in ((e, w2), (t, w3))),
        "activation_mean": sum(np.abs(x.mean(space)) for x in (e, t)),
        "activation_variance": sum(x.std(space) for x in (e, t)),
        "apoz": sum((x != 0).mean(space) for x in (e, t)),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(unit_scores(residual, criterion(name), found)[six], values, rtol=1e-5, err_msg=name)
    entropy = []
    for values in m.T:
        counts = np.histogram(values, 16)[0] / len(values)
        entropy.append(-sum(p * np.log(p) for p in counts if p))
    np.testing.assert_allclose(unit_scores(residual, criterion("entropy"), found)[four], entropy, rtol=1e-6)


def test_activation_criteria_score_channels_within_heads() -> None:
    groups = dependency_groups(network(ATTENTION))
    found = evidence(groups)
    (o2,) = inner(groups, found, "o2")
    values = next(g for g in groups if "wv[1]" in str(g))
    expected = np.sqrt(np.square(o2).sum((0, 1))) * np.abs(weight(groups.graph, "h")).sum(1)
    scores = unit_scores(groups, criterion("wanda"), found)
    np.testing.assert_allclose(scores[np.concatenate(values.blocks)], expected, rtol=1e-5)


def test_obspa_scores_what_the_best_mending_loses() -> None:
    """With a linear layer the score is the growth of the squared error after solving anew without the unit."""
    groups = dependency_groups(
        network(
            "(float[N,5] x, float[5,7] w, float[7,3] h) => (float[N,3] y)"
            " { a = MatMul(x, w) b = Tanh(a) y = MatMul(b, h) }"
        )
    )
    found = evidence(groups, 400)
    (b,) = inner(groups, found, "b")
    h = weight(groups.graph, "h")
    scores = unit_scores(groups, criterion("obspa"), found)[group(groups, 7).blocks[0]]
    losses = []
    for unit in range(7):
        rest = np.delete(b, unit, 1)
        damping = DAMPING * np.square(b).sum(0).mean()
        start = np.delete(h, unit, 0)
        target = b @ h - rest @ start
        change = np.linalg.solve(rest.T @ rest + damping * np.eye(6), rest.T @ target)
        losses.append(
            (np.square(target - rest @ change).sum() + damping * (np.square(change).sum() + np.square(h[unit]).sum()))
            / len(b)
        )
    np.testing.assert_allclose(scores, losses, rtol=1e-3)


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_members_are_aggregated(residual: Groups, aggregate: str) -> None:
    graph = residual.graph
    parts = np.stack([np.abs(weight(graph, "w3")).sum((1, 2, 3)), np.abs(weight(graph, "h")).sum(0)])
    how = {"sum": parts.sum(0), "mean": parts.mean(0), "max": parts.max(0), "prod": np.sqrt(parts.prod(0))}
    scores = unit_scores(residual, criterion("l1"), aggregate=aggregate)[group(residual, 4).blocks[0]]
    np.testing.assert_allclose(scores, how[aggregate], rtol=1e-6)


@pytest.mark.parametrize("name", ["wanda", "flap", "apoz", "entropy", "obspa"])
def test_a_criterion_that_needs_data_says_so(residual: Groups, name: str) -> None:
    with pytest.raises(Exception, match="E_NO_CALIBRATION"):
        unit_scores(residual, criterion(name))
