"""Layers as regressions, their solution, and what mending gives back."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compiler.errors import SecateurWarning
from compiler.frontends import load
from compiler.ir import ArrayConstant, Graph
from compiler.ir.execute import execute, random_inputs
from examples.fashion_mnist.data import load_test_images, preprocess
from passes import Context, Pipeline, Prune, dependency_groups
from passes.calibration import Evidence, calibration_samples, noise_samples
from passes.calibration.running import observe
from passes.coupling.groups import Groups
from passes.coupling.transform import restrict
from passes.importance import criterion, unit_scores
from passes.reconstruction import MENDS, mend, solve
from passes.reconstruction.layers import layer_of
from passes.reconstruction.solve import Regression
from passes.sparsity import Sparsify
from tests.networks import network

LAYERS = {
    "convolution": "(float[2,6,9,8] x, float[8,6,3,2] w, float[8] b) => (float[2,8,A,B] y)"
    " { y = Conv<pads=[1,0,2,1], strides=[2,1], dilations=[1,2]>(x, w, b) }",
    "same, upper": "(float[2,6,9,8] x, float[8,6,3,2] w) => (float[2,8,A,B] y)"
    ' { y = Conv<auto_pad="SAME_UPPER", strides=[2,1]>(x, w) }',
    "same, lower": "(float[2,6,9,8] x, float[8,6,3,2] w) => (float[2,8,A,B] y)"
    ' { y = Conv<auto_pad="SAME_LOWER">(x, w) }',
    "groups": "(float[2,6,9,8] x, float[9,2,3,3] w, float[9] b) => (float[2,9,A,B] y) { y = Conv<group=3>(x, w, b) }",
    "depthwise": "(float[2,6,9] x, float[6,1,3] w) => (float[2,6,A] y) { y = Conv<group=6, pads=[1,1]>(x, w) }",
    "volume": "(float[1,3,5,6,4] x, float[4,3,2,3,1] w) => (float[1,4,A,B,C] y) { y = Conv(x, w) }",
    "transposed": "(float[2,6,5,4] x, float[6,4,3,2] w, float[4] b) => (float[2,4,A,B] y)"
    " { y = ConvTranspose<strides=[2,3], pads=[1,0,0,1], output_padding=[1,2], dilations=[2,1]>(x, w, b) }",
    "transposed groups": "(float[2,6,5] x, float[6,2,3] w) => (float[2,6,A] y)"
    " { y = ConvTranspose<group=3, strides=[2], pads=[3,3]>(x, w) }",
    "gemm": "(float[7,5] x, float[3,5] w, float[3] b) => (float[7,3] y) { y = Gemm<transB=1>(x, w, b) }",
    "gemm, straight": "(float[7,5] x, float[5,3] w) => (float[7,3] y) { y = Gemm(x, w) }",
    "product": "(float[2,4,5] x, float[5,3] w) => (float[2,4,3] y) { y = MatMul(x, w) }",
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_inputs_times_its_matrix(name: str) -> None:
    graph = network(LAYERS[name])
    layer = layer_of(graph.nodes[0])
    assert layer is not None
    data = random_inputs(graph)
    y = execute(graph, data)["y"].astype(np.float64)
    rows = np.arange(0, layer.row_count(y), 2)
    made = layer.inputs(data["x"].astype(np.float64), rows) @ layer.matrices()
    made = made.swapaxes(0, 1).reshape(len(rows), -1)
    if layer.bias is not None:
        made = made + layer.bias.numpy()
    np.testing.assert_allclose(made, layer.outputs(y, rows), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer.stored(layer.matrices()), layer.weight.numpy())


@pytest.mark.parametrize("centered", [False, True])
def test_the_solution_is_that_of_ridge_regression(centered: bool) -> None:
    rng = np.random.default_rng(0)
    x, true = rng.standard_normal((1, 500, 6)) + 2, rng.standard_normal((1, 6, 3))
    y = x @ true + (1.5 if centered else 0)
    regression = Regression(1, 6, 3, centered=centered)
    for part in np.array_split(np.arange(500), 3):
        regression.add(x[:, part], y[:, part])
    solved = regression.solve(np.zeros((1, 6, 3)), damping=1e-9)
    assert solved is not None
    np.testing.assert_allclose(solved[0], true, rtol=1e-5)
    if centered:
        np.testing.assert_allclose(solved[1], 1.5, rtol=1e-5)


@pytest.mark.parametrize(("large", "tolerance"), [(9000, 1e-4), (20, 2e-3)])
def test_only_what_is_free_changes_and_in_the_best_way(
    large: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside ridge regression on the free inputs of each output alone, with inputs that depend on one another."""
    monkeypatch.setattr(solve, "_LARGE", large)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 900, 60)) @ rng.standard_normal((2, 60, 60)) + 1
    start, free = rng.standard_normal((2, 60, 7)), rng.random((2, 60, 7)) < 0.3
    start, y = np.where(free, start, 0), rng.standard_normal((2, 900, 7))
    free[1, :, 3] = False  # an output with nothing to change
    regression = Regression(2, 60, 7, centered=False)
    regression.add(x, y)
    solved = regression.solve(start, damping=0.01, free=free)
    assert solved is not None
    np.testing.assert_array_equal(solved[0][~free], start[~free])
    for b in range(2):
        h = x[b].T @ x[b] / 900
        h += 0.01 * np.diag(h).mean() * np.eye(60)
        for o in range(7):
            s = free[b, :, o]
            wanted = x[b].T @ (y[b, :, o] - x[b] @ start[b, :, o]) / 900
            best = start[b, s, o] + np.linalg.solve(h[np.ix_(s, s)], wanted[s])
            np.testing.assert_allclose(solved[0][b, s, o], best, rtol=tolerance, atol=tolerance)
    regression._h[1, 3, 3] = -1e6
    assert regression.solve(start, free=free) is None


@pytest.mark.parametrize("size", [1, 4])
def test_a_large_matrix_is_worked_on_in_place(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block in float32, beside numpy's own answers; nothing of it is lost, so that it can be asked again."""
    rng = np.random.default_rng(0)
    x, y, start = rng.standard_normal((2, 4000, 2600)) + 1, rng.standard_normal((2, 4000, 3)), np.zeros((2, 2600, 3))
    found = []
    for large in (9000, 2000):
        monkeypatch.setattr(solve, "_LARGE", large)
        regression = Regression(2, 2600, 3, centered=True)
        for part in np.array_split(np.arange(4000), 3):
            regression.add(x[:, part], y[:, part])
        found.append([regression.inverse_blocks(size), regression.solve(start), regression.inverse_blocks(size)])
    for whole, by_blocks in zip(*found, strict=True):
        for a, b in zip(whole, by_blocks, strict=True):
            np.testing.assert_allclose(b, a, rtol=2e-3, atol=2e-4 * np.abs(a).max())


@pytest.mark.parametrize("large", [9000, 20])
def test_singular_and_indefinite_moments(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "_LARGE", large)
    x = np.random.default_rng(0).standard_normal((1, 5, 60))  # five rows for sixty inputs
    regression = Regression(1, 60, 1, centered=False)
    regression.add(x, x[..., :1])
    solved = regression.solve(np.zeros((1, 60, 1)))
    assert solved is not None and np.isfinite(solved[0]).all()
    assert np.abs(x @ solved[0] - x[..., :1]).max() < 0.1
    inverse = regression.inverse_blocks(1)
    assert inverse is not None and (inverse > 0).all()
    regression._h[0, 3, 4] = regression._h[0, 4, 3] = 30.0  # as no second moments are: ten times the damping, and again
    raised = regression.inverse_blocks(1)
    assert raised is None or np.isfinite(raised).all()
    regression._h[0, 3, 4] = regression._h[0, 4, 3] = 1e6
    assert regression.inverse_blocks(1) is None
    regression._h[0, 7, 7] = np.nan
    assert regression.inverse_blocks(1) is None and regression.solve(np.zeros((1, 60, 1))) is None


def test_a_layer_that_cannot_be_solved_for_is_left_with_a_message() -> None:
    """The logarithm of what is not positive: no criterion, no solution, and all other layers are mended."""
    graph = network(
        "(float[N,8] x, float[8,9] w, float[9] b, float[9,7] w2, float[7] b2, float[7,3] h) => (float[N,3] y)"
        " { a = Gemm(x, w, b) r = Relu(a) c = Gemm(r, w2, b2) d = Log(c) y = Gemm(d, h) }"
    )
    weights = graph.value("h").numpy()
    samples = noise_samples(graph, 128)
    with pytest.warns(SecateurWarning, match="no Cholesky factor.*finite.*scored by its weights alone"):
        scores = unit_scores(groups := dependency_groups(graph), criterion("obspa"), Evidence(groups, samples))
    assert np.isfinite(scores).all()
    own = groups.layouts[graph.value("h")][0]
    assert own is not None
    np.testing.assert_allclose(scores[own.ravel()], (weights.astype(np.float64) ** 2).sum(1), rtol=1e-5)
    keep = np.ones(groups.unit_count, bool)
    keep[groups[0].blocks[0][:2]] = False
    with pytest.warns(SecateurWarning, match="'y'.*is not mended: the second moments"):
        done = mend(restrict(groups, keep), groups, keep, samples, "layers")
    assert done.layers == ["a", "c"] and list(done.left) == ["y"]
    assert all(np.isfinite(v.numpy()).all() for v in done.graph.constants())


def test_memory_of_a_wide_layer() -> None:
    """A layer's second moments are held once, and little beside them: 16,384 inputs take 4 GiB at the most.

    (`make bench-size` shows them; 6,400 take the same road.)
    """
    width = 6400
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.wide_layer", str(width)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    peak, _, before, after = map(float, result.stdout.split())
    assert peak < 0.6 + 1.5 * width**2 * 4 / 2**30  # 2.1 GiB for 16,384; what is loaded takes about 0.4
    assert after < 0.1 < before


def test_with_no_variation_the_weights_stay() -> None:
    start = np.ones((1, 4, 2))
    regression = Regression(1, 4, 2, centered=False)
    regression.add(np.zeros((1, 9, 4)), np.zeros((1, 9, 2)))
    solved = regression.solve(start)
    assert solved is not None
    np.testing.assert_array_equal(solved[0], start)


CHAIN = """(float[N,3,8,8] x, float[8,3,3,3] w1, float[8] s, float[8] b, float[8] m, float[8] v, float[8,1,3,3] wd,
    float[8] bd, float[6,8,3,3] w2, float[6] b2, float[6,4] h, float[4] hb) => (float[N,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1) n = BatchNormalization(a, s, b, m, v) r = Relu(n)
    d = Conv<pads=[1,1,1,1], group=8>(r, wd, bd) e = Relu(d) c = Conv(e, w2, b2) u = Relu(c)
    ax = Constant<value_ints=[2,3]>() g = ReduceMean<keepdims=0>(u, ax) z = MatMul(g, h) y = Add(z, hb) }"""


def distance(graph: Graph, other: Graph, x: np.ndarray) -> float:
    a, b = execute(graph, {"x": x})["y"], execute(other, {"x": x})["y"]
    return float(np.linalg.norm(a - b) / np.linalg.norm(a - a.mean(0)))


def test_mending_brings_the_function_back_on_unseen_data() -> None:
    graph = network(CHAIN)
    groups = dependency_groups(graph)
    keep = np.ones(groups.unit_count, bool)
    for group in groups:
        keep[group.blocks[0][:2]] = False
    pruned = restrict(groups, keep)
    samples = replace(noise_samples(graph, 256), noise=False)
    unseen = np.random.default_rng(99).standard_normal((64, 3, 8, 8)).astype(np.float32)
    before = str(groups.graph)
    found = {how: mend(pruned, groups, keep, samples, how) for how in MENDS}
    gaps = {how: distance(graph, m.graph, unseen) for how, m in found.items()}
    assert gaps["layers"] < 0.7 * gaps["batchnorm"]
    assert gaps["layers"] < 0.7 * gaps["none"]
    done = found["layers"]
    assert len(done.layers) == 4
    assert len(done.normalizations) == 1
    assert not done.left
    assert str(groups.graph) == before
    assert [c.shape for c in done.graph.constants()] == [c.shape for c in pruned.constants()]


def test_nothing_changes_where_nothing_was_removed() -> None:
    graph = network(CHAIN)
    groups = dependency_groups(graph)
    keep = np.ones(groups.unit_count, bool)
    mended = mend(restrict(groups, keep), groups, keep, noise_samples(graph, 128), "layers").graph
    x = np.random.default_rng(9).standard_normal((32, 3, 8, 8)).astype(np.float32)
    assert distance(graph, mended, x) < 1e-3


def test_copies_of_a_unit_are_made_up_for_exactly() -> None:
    """Two hidden units that are alike: without one of them the other's weights double."""
    graph = network(
        "(float[N,4] x, float[4,6] w, float[6,3] h) => (float[N,3] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, h) }"
    )
    w = np.array(graph.value("w").numpy())
    w[:, 1] = w[:, 0]
    graph.value("w").data = type(graph.value("w").data)(w)  # type: ignore[call-arg, misc]
    groups = dependency_groups(graph)
    keep = np.ones(groups.unit_count, bool)
    keep[groups[0].blocks[0][1]] = False
    pruned = restrict(groups, keep)
    mended = mend(pruned, groups, keep, noise_samples(graph, 512), "layers").graph
    x = np.random.default_rng(9).standard_normal((64, 4)).astype(np.float32)
    assert distance(graph, mended, x) < 0.05 * distance(graph, pruned, x)
    h = graph.value("h").numpy()
    np.testing.assert_allclose(mended.value("h").numpy()[0], h[0] + h[1], atol=0.1)


def test_too_few_samples_are_warned_of() -> None:
    graph = network(
        "(float[N,40] x, float[40,9] w, float[9,3] h) => (float[N,3] y) { a = MatMul(x, w) y = MatMul(a, h) }"
    )
    groups = dependency_groups(graph)
    keep = np.ones(groups.unit_count, bool)
    keep[0] = False
    with pytest.warns(
        UserWarning, match="2 of 2 layers.*4 samples x 1 positions = 4 for 40 inputs; .*= 4 for 8 inputs"
    ):
        mend(restrict(groups, keep), groups, keep, noise_samples(graph, 4, batch=4), "layers")


MODEL = Path("examples/fashion_mnist/fashion_cnn.onnx")


@pytest.mark.parametrize(("scale", "warned"), [(1.0, False), (255 * 0.353, True)])
def test_data_unlike_the_training_data_are_warned_of(scale: float, warned: bool) -> None:
    graph = Pipeline("simplify")(load(MODEL))
    samples = calibration_samples(graph, preprocess(load_test_images()[0][:64]) * scale)
    prune = Prune(ratio=0.3, calibration=samples, mend="batchnorm")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        prune(graph, Context())
    assert [str(w.message)[:11] for w in found if "unlike" in str(w.message)] == ["the samples"] * warned


def test_obspa_keeps_the_accuracy_of_the_bundled_model() -> None:
    graph = Pipeline("simplify")(load(MODEL))
    images, labels = load_test_images()
    x = preprocess(images)
    name, batch = graph.inputs[0].name, graph.inputs[0].shape[0] if graph.inputs[0].shape else None
    size = batch if isinstance(batch, int) else 250

    def accuracy(network: Graph) -> float:
        right = 0
        for start in range(500, 1000, size):
            scores = next(iter(execute(network, {name: x[start : start + size]}).values()))
            right += int((scores.argmax(1) == labels[start : start + size]).sum())
        return right / 500

    samples = calibration_samples(graph, x[:256])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mended = Prune(ratio=0.5, criterion="obspa", calibration=samples)(graph, Context())
        magnitude = Prune(ratio=0.5, criterion="l1", calibration=samples, mend="batchnorm")(graph, Context())
        blind = Prune(ratio=0.5, criterion="l1", calibration="none", mend="layers")(graph, Context())
    full, ours, theirs = accuracy(graph), accuracy(mended), accuracy(magnitude)
    assert full - ours <= (full - theirs) / 3
    assert full - ours <= 0.05
    assert full - accuracy(blind) <= (full - theirs) / 2  # without any data


def test_pruning_mends_a_sparse_network_within_its_zeros() -> None:
    graph = network(
        "(float[N,40] x, float[64,40] a, float[64] b, float[64,64] c, float[64] d, float[10,64] e) => (float[N,10] y)"
        " { h = Gemm<transB=1>(x, a, b) r = Relu(h) i = Gemm<transB=1>(r, c, d) s = Relu(i) y = Gemm<transB=1>(s, e) }"
    )
    samples = calibration_samples(graph, {"x": np.random.default_rng(1).standard_normal((600, 40)).astype(np.float32)})
    sparse = Sparsify(sparsity=0.8, keep_first=False, min_size=1)(graph, Context())
    bare, mended = (Prune(ratio=0.3, calibration=samples, mend=how)(sparse, Context()) for how in ("none", "layers"))
    for name in "ace":
        zeros = [np.asarray(g.value(name).numpy() == 0) for g in (bare, mended)]
        assert zeros[0].mean() > 0.5
        np.testing.assert_array_equal(*zeros)
    x = np.random.default_rng(2).standard_normal((300, 40)).astype(np.float32)
    assert distance(sparse, mended, x) < 0.8 * distance(sparse, bare, x)


def test_zeros_are_made_good_for_in_the_bundled_model() -> None:
    graph = Pipeline("simplify")(load(MODEL))
    images, labels = load_test_images()
    x, name = preprocess(images), graph.inputs[0].name
    samples = calibration_samples(graph, x[:384])
    found = {}
    for how in MENDS:
        sparse = Sparsify(sparsity=0.8, mend=how, calibration=samples)(graph, Context())
        scores = next(iter(execute(sparse, {name: x[500:]}).values()))
        found[how] = float((scores.argmax(1) == labels[500:]).mean())
    assert found["none"] < found["batchnorm"] < found["layers"]
    assert found["layers"] > 0.89


NORMALIZED = """(float[N,3,8,8] x, float[8,3,3,3] w1, float[8] s1, float[8] b1, float[8] m1, float[8] v1,
    float[8,1,3,3] wd, float[8] sd, float[8] bd, float[8] md, float[8] vd, float[8,8,1,1] w2, float[8] s2, float[8] b2,
    float[8] m2, float[8] v2, float[8,6,2,2] wt, float[6] st, float[6] bt, float[6] mt, float[6] vt, float[6,4] h,
    float[4] hb) => (float[N,4] y) {
    a1 = Conv<pads=[1,1,1,1]>(x, w1) n1 = BatchNormalization(a1, s1, b1, m1, v1) r1 = Relu(n1)
    ad = Conv<pads=[1,1,1,1], group=8>(r1, wd) nd = BatchNormalization(ad, sd, bd, md, vd) rd = Relu(nd)
    a2 = Conv(rd, w2) n2 = BatchNormalization(a2, s2, b2, m2, v2) sum = Add(r1, n2)
    at = ConvTranspose<strides=[2,2]>(sum, wt) nt = BatchNormalization(at, st, bt, mt, vt) rt = Relu(nt)
    ax = Constant<value_ints=[2,3]>() g = ReduceMean<keepdims=0>(rt, ax) y = Gemm(g, h, hb) }"""


def with_output(graph: Graph, name: str) -> Graph:
    copy = graph.copy()
    copy.outputs = [copy.value(name)]
    return copy


def first_two_units_gone(graph: Graph) -> tuple[Groups, np.ndarray]:
    groups = dependency_groups(graph)
    keep = np.ones(groups.unit_count, bool)
    for group in groups:
        keep[group.blocks[0][:2]] = False
    return groups, keep


@pytest.mark.parametrize(("how", "tolerance"), [("batchnorm", 1e-4), ("layers", 0.03)])
def test_a_folded_normalization_is_mended_as_a_plain_one(how: str, tolerance: float) -> None:
    plain = network(NORMALIZED)
    folded = Pipeline("simplify(batchnorm=true)")(plain)
    assert not any(n.op == "BatchNormalization" for n in folded.nodes)
    samples = replace(noise_samples(plain, 128), noise=False)  # data, as far as they know
    unseen = np.random.default_rng(9).standard_normal((64, 3, 8, 8), np.float32)
    before, after, done = [], [], []
    for graph in (plain, folded):
        groups, keep = first_two_units_gone(graph)
        assert len(groups) == 2
        before.append(pruned := restrict(groups, keep))
        done.append(mend(pruned, groups, keep, samples, how))
        after.append(done[-1].graph)
    assert distance(*before, unseen) < 1e-4
    assert distance(*after, unseen) < tolerance
    normal, corrected = done
    for name, (_, error) in corrected.errors.items() if how == "layers" else ():
        found = [execute(with_output(g, name), {"x": unseen})[name] for g in (folded, after[1])]
        labels = groups.layouts.get(folded.value(name), [None, None])[1]
        kept = found[0] if labels is None else found[0][:, keep[labels.ravel()]]
        assert np.linalg.norm(found[1] - kept) / np.linalg.norm(kept) == pytest.approx(error, rel=0.3, abs=0.01)
    assert len(normal.normalizations) == 4 == len(corrected.corrections)
    assert not normal.corrections and not corrected.normalizations and not corrected.left


def test_every_channel_has_the_mean_and_the_variance_that_it_had() -> None:
    graph = Pipeline("simplify(batchnorm=true)")(network(NORMALIZED))
    groups, keep = first_two_units_gone(graph)
    samples = noise_samples(graph, 128)
    mended = mend(restrict(groups, keep), groups, keep, samples, "batchnorm").graph
    layers = [n for n in graph.nodes if n.op in ("Conv", "ConvTranspose")]
    twins = [n for n in mended.nodes if n.op in ("Conv", "ConvTranspose")]
    for old, new in zip(layers, twins, strict=True):
        moments = []
        for network_, node in ((graph, old), (mended, new)):
            found = [f[node.outputs[0]] for f in observe(network_, [node.outputs[0]], samples)]
            joined = np.moveaxis(np.concatenate(found), 1, -1).reshape(-1, found[0].shape[1]).astype(np.float64)
            moments.append((joined.mean(0), joined.std(0)))
        width = len(moments[1][0])
        assert width == len(moments[0][0]) - 2
        for was, is_now in zip(*moments, strict=True):
            np.testing.assert_allclose(is_now, was[-width:], rtol=1e-3, atol=1e-4)


def test_answers_are_not_rescaled() -> None:
    """Not the last layers, nor where nothing tells the spread: few samples, a channel that has lost all of it."""
    text = """(float[N,3,8,8] x, float[8,3,1,1] w1, float[8] b1, float[6,8,1,1] w2, float[6] b2, float[5,6,1,1] w3,
        float[5] b3) => (float[N,5,16,16] y, float[N,6,8,8] z) { a = Conv(x, w1, b1) r = Relu(a) c = Conv(r, w2, b2)
        z = Sigmoid(c) d = Conv(z, w3, b3) k = Constant<value_floats=[1.,1.,2.,2.]>() y = Resize(d, , k) }"""
    graph = network(text)
    groups, keep = first_two_units_gone(graph)
    done = mend(restrict(groups, keep), groups, keep, noise_samples(graph, 64), "batchnorm")
    assert done.corrections == ["a"]
    small = Pipeline("simplify(batchnorm=true)")(network(CHAIN.replace("8,8] x", "3,3] x")))
    groups, keep = first_two_units_gone(small)
    done = mend(restrict(groups, keep), groups, keep, noise_samples(small, 4, batch=4), "batchnorm")
    assert not done.corrections and done.left
    assert set(done.left.values()) == {"there are too few samples to tell its spread"}


def test_a_channel_without_spread_is_only_shifted() -> None:
    graph = Pipeline("simplify(batchnorm=true)")(network(NORMALIZED))
    groups, keep = first_two_units_gone(graph)
    weight = next(n for n in graph.nodes if n.op == "ConvTranspose").inputs[1]
    assert weight is not None
    array = np.array(weight.numpy())
    array[2:, 3] *= 1e-7  # what is kept of the inputs makes next to nothing of output 3
    weight.data = ArrayConstant(array)
    mended = mend(restrict(groups, keep), groups, keep, noise_samples(graph, 128), "batchnorm").graph
    found = next(n for n in mended.nodes if n.op == "ConvTranspose").inputs[1]
    assert found is not None
    np.testing.assert_allclose(found.numpy()[:, 1], array[2:, 3], rtol=1e-6)


def test_a_folded_file_recovers_its_accuracy() -> None:
    """As re-estimation does for the same network with its BatchNormalization; the selection is the same."""
    plain = Pipeline("simplify")(load(MODEL))
    folded = Pipeline("simplify(batchnorm=true)")(load(MODEL))
    images, labels = load_test_images()
    x = preprocess(images)
    samples = calibration_samples(plain, x[:256])
    right = {}
    for name, graph in (("plain", plain), ("folded", folded)):
        groups = dependency_groups(graph)
        keep = np.ones(groups.unit_count, bool)
        for group in groups:
            for block in group.blocks:
                keep[block[: len(block) // 4]] = False
        pruned = restrict(groups, keep)
        for how, network_ in (("none", pruned), ("batchnorm", mend(pruned, groups, keep, samples, "batchnorm").graph)):
            (logits,) = execute(network_, {graph.inputs[0].name: x[500:]}).values()
            right[name, how] = float((logits.argmax(1) == labels[500:]).mean())
    assert right["folded", "none"] == right["plain", "none"] < 0.6
    assert abs(right["folded", "batchnorm"] - right["plain", "batchnorm"]) <= 0.01
    assert right["folded", "batchnorm"] > right["folded", "none"] + 0.2
