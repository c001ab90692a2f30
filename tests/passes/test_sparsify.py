"""Sparsifying whole networks: every kind of layer and pattern, what is spared and why, and what is reported."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from compiler.driver import verify_transformation
from compiler.exporters import export
from compiler.frontends import load
from compiler.ir import ArrayConstant, Graph, SecateurError, Value
from compiler.ir.execute import execute, random_inputs, relative_difference
from passes import Context, Pipeline, Sparsify, parse_passes, sparsity_of
from passes.calibration import Evidence
from passes.importance import ParameterCriterion, available_criteria, register_criterion
from passes.sparsity import SparsifyReport, mask
from passes.sparsity.distribution import erk_zeros
from tests.networks import network, network_proto

View = Callable[[np.ndarray], np.ndarray]
"""A weight as [groups, outputs, inputs, taps], written down by hand."""


def sparsified(graph: Graph, **options) -> tuple[Graph, SparsifyReport]:
    context = Context()
    options = {"keep_first": False, "min_size": 1} | options
    return Sparsify(**options)(graph, context), context.reports["sparsify"][0]


def weight(graph: Graph, name: str) -> np.ndarray:
    return next(c for c in graph.all_constants() if c.name == name).numpy()


def groups_of(count: int) -> View:
    return lambda w: w.reshape(count, w.shape[0] // count, w.shape[1], -1)


# kind -> (network whose only weight is w, its view)
LAYERS: dict[str, tuple[str, View]] = {
    "conv 1x1": ("(float[1,18,4,4] x, float[21,18,1,1] w) => (float[] y) { y = Conv(x, w) }", groups_of(1)),
    "conv 3x3": ("(float[1,10,5,5] x, float[19,10,3,3] w) => (float[] y) { y = Conv(x, w) }", groups_of(1)),
    "conv 1d": ("(float[1,10,9] x, float[19,10,3] w) => (float[] y) { y = Conv(x, w) }", groups_of(1)),
    "conv 3d": ("(float[1,10,3,3,3] x, float[18,10,2,1,2] w) => (float[] y) { y = Conv(x, w) }", groups_of(1)),
    "grouped conv": ("(float[1,27,5,5] x, float[21,9,3,3] w) => (float[] y) { y = Conv<group=3>(x, w) }", groups_of(3)),
    "transposed conv": (
        "(float[1,18,4,4] x, float[18,11,3,3] w) => (float[] y) { y = ConvTranspose(x, w) }",
        lambda w: w.transpose(1, 0, 2, 3).reshape(1, 11, 18, 9),
    ),
    "grouped transposed conv": (
        "(float[1,18,4,4] x, float[18,7,3,3] w) => (float[] y) { y = ConvTranspose<group=2>(x, w) }",
        lambda w: np.stack([w[:9], w[9:]]).transpose(0, 2, 1, 3, 4).reshape(2, 7, 9, 9),
    ),
    "gemm": ("(float[2,18] x, float[18,21] w) => (float[] y) { y = Gemm(x, w) }", lambda w: w.T[None, :, :, None]),
    "gemm, transposed": (
        "(float[2,18] x, float[21,18] w) => (float[] y) { y = Gemm<transB=1>(x, w) }",
        lambda w: w[None, :, :, None],
    ),
    "gemm, left": (
        "(float[18,5] x, float[21,18] w) => (float[] y) { y = Gemm(w, x) }",
        lambda w: w[None, :, :, None],
    ),
    "matmul": (
        "(float[2,3,18] x, float[18,21] w) => (float[] y) { y = MatMul(x, w) }",
        lambda w: w.T[None, :, :, None],
    ),
    "matmul, left": (
        "(float[2,18,3] x, float[21,18] w) => (float[] y) { y = MatMul(w, x) }",
        lambda w: w[None, :, :, None],
    ),
    "matmul of a batch": (
        "(float[3,2,18] x, float[3,18,21] w) => (float[] y) { y = MatMul(x, w) }",
        lambda w: w.transpose(0, 2, 1)[..., None],
    ),
    "einsum": (
        '(float[2,4,18] x, float[18,3,7] w) => (float[] y) { y = Einsum<equation="bsd,dhk->bshk">(x, w) }',
        lambda w: w.reshape(18, 21).T[None, :, :, None],
    ),
    "lstm": (
        """(float[4,1,18] x, float[1,24,18] w, float[1,24,6] r) => (float[] y)
        { y = LSTM<hidden_size=6>(x, w, r) }""",
        lambda w: w[..., None],
    ),
    "depthwise": (
        "(float[1,21,5,5] x, float[21,1,3,3] w) => (float[] y) { y = Conv<group=21>(x, w) }",
        lambda w: w.reshape(1, 21, 1, 9),
    ),
}
PATTERNS = ("unstructured", "2:4", "1:4", "4:8", "2:4@out", "4x1", "2x1", "1x4", "16x1", "4x4")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_layer_takes_every_pattern(kind: str, pattern: str) -> None:
    text, view = LAYERS[kind]
    if kind == "depthwise" and pattern in ("2:4", "1:4", "4:8"):
        with pytest.raises(SecateurError, match="keeps all 1 inputs of a group"):
            sparsified(network(text), pattern=pattern, depthwise=True)
        return
    graph = network(text)
    before = weight(graph, "w")
    fixed = ":" in pattern
    options = {"only": ("w",), "depthwise": True, "sparsity": None if fixed else 0.6}
    result, report = sparsified(graph, pattern=pattern, **options)
    after = weight(result, "w")
    stays = mask(np.abs(view(before)), pattern, None if fixed else 0.6)
    np.testing.assert_array_equal(view(after), view(before) * stays)
    assert after.dtype == before.dtype and not np.signbit(after[after == 0]).any()
    change = next(w for w in report.weights if w.name == "w")
    assert change.zeros == (0, int((~stays).sum()))
    assert report.reached == pytest.approx(1 - stays.mean())
    data = random_inputs(graph, 0)
    expected = graph.copy()
    next(c for c in expected.all_constants() if c.name == "w").data = graph.value("w").data.__class__(
        np.where(after != 0, before, 0).astype(before.dtype)
    )
    assert relative_difference(execute(result, data), execute(expected, data)) == 0


def test_n_m_is_along_inputs_at_each_tap() -> None:
    graph = network("(float[1,10,5,5] x, float[6,10,3,3] w) => (float[] y) { y = Conv(x, w) }")
    result, _ = sparsified(graph, pattern="2:4")
    found = weight(result, "w") != 0
    assert (found[:, :4].sum(1) == 2).all() and (found[:, 4:8].sum(1) == 2).all() and (found[:, 8:].sum(1) == 2).all()
    turned, report = sparsified(graph, pattern="2:4@out")
    found = weight(turned, "w") != 0
    assert (found[:4].sum(0) == 2).all() and found[4:].all()
    assert report.pattern == "2:4@out" and report.requested == 0.5
    assert report.reached == pytest.approx(1 / 3)


NET = """(float[1,3,8,8] x, float[32,3,3,3] stem, float[32,1,3,3] dw, float[48,32,1,1] pw, float[40,48,3,3] w3,
    float[40,10,3,3] grouped, float[10,40] head) => (float[1,10] y) { a = Conv<pads=[1,1,1,1]>(x, stem) r = Relu(a)
    d = Conv<group=32, pads=[1,1,1,1]>(r, dw) p = Conv(d, pw) q = Relu(p) t = Conv<pads=[1,1,1,1]>(q, w3)
    g = Conv<group=4>(t, grouped) m = GlobalAveragePool(g) f = Flatten(m) y = Gemm<transB=1>(f, head) }"""


def spared(report: SparsifyReport) -> dict[str, str]:
    return {w.name: w.spared for w in report.weights}


def test_what_is_spared_unless_told_otherwise() -> None:
    graph = network(NET)
    _, report = sparsified(graph, sparsity=0.9, keep_first=True, min_size=1024)
    assert spared(report) == {
        "stem": "first layer (keep_first)",
        "dw": "depthwise (depthwise)",
        "pw": "",
        "w3": "",
        "grouped": "",
        "head": "fewer than 1,024 weights (min_size)",
    }
    options = {"keep_first": False, "depthwise": True, "min_size": 1}
    _, report = sparsified(graph, sparsity=0.9, **options)
    assert set(spared(report).values()) == {""}
    _, report = sparsified(graph, sparsity=0.9, **options, keep_last=True, ignore=("w*", "d"))
    assert {k for k, v in spared(report).items() if v} == {"w3", "dw", "head"}
    _, report = sparsified(graph, sparsity=0.9, **options, only=("Gemm", "w3"))
    assert {k for k, v in spared(report).items() if not v} == {"w3", "head"}
    _, report = sparsified(graph, pattern="2:4", **options)
    assert spared(report)["dw"] == "2:4 keeps all 1 inputs of a group"


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
@pytest.mark.parametrize("pattern", ["unstructured", "4x1"])
def test_the_share_asked_for_is_of_what_is_eligible(distribution: str, pattern: str) -> None:
    graph = network(NET)
    result, report = sparsified(
        graph, sparsity=0.8, pattern=pattern, distribution=distribution, keep_first=True, min_size=1024
    )
    names = ["pw", "w3", "grouped"]
    zeros = {n: int((weight(result, n) == 0).sum()) for n in names}
    sizes = {n: weight(graph, n).size for n in names}
    assert [w.name for w in report.eligible] == names
    assert report.reached == sum(zeros.values()) / sum(sizes.values()) == pytest.approx(0.8, abs=2e-4)
    assert report.overall == (0, sum(zeros.values()) / sum(weight(graph, w.name).size for w in report.weights))
    assert {w.name: w.zeros[1] for w in report.eligible} == zeros
    step = 1 if pattern == "unstructured" else 4
    shares = {
        "uniform": [0.8 * sizes[n] for n in names],
        "erk": erk_zeros([weight(graph, n).shape for n in names], 0.8),
        "global": [zeros[n] for n in names],
    }[distribution]
    np.testing.assert_allclose(list(zeros.values()), shares, atol=step / 2 + 0.5)


def test_global_takes_the_lowest_of_all_layers() -> None:
    graph = network(NET)
    result, _ = sparsified(graph, sparsity=0.7, distribution="global", only=("pw", "w3"))
    before = np.concatenate([np.abs(weight(graph, n)).ravel() for n in ("pw", "w3")])
    after = np.concatenate([weight(result, n).ravel() for n in ("pw", "w3")])
    count = round(0.7 * before.size)
    np.testing.assert_array_equal(np.flatnonzero(after == 0), np.sort(np.argsort(before, kind="stable")[:count]))


def test_no_layer_becomes_wholly_zero() -> None:
    graph = network(NET)
    small = graph.value("pw")
    small.data = type(small.data)(small.numpy() * np.float32(1e-6))
    result, _ = sparsified(graph, sparsity=0.9, distribution="global", pattern="4x1", only=("pw", "w3"))
    assert np.count_nonzero(weight(result, "pw")) == 4


TIED = """(float[2,40] x, float[40,40] w) => (float[2,40] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }"""
TURNED = """(float[2,40] x, float[40,40] w) => (float[2,40] y) { a = MatMul(x, w) r = Relu(a)
    y = Gemm<transB=1>(r, w) }"""


def test_a_shared_weight_is_sparsified_once() -> None:
    result, report = sparsified(network(TIED), sparsity=0.75)
    assert [(w.name, w.nodes, w.zeros) for w in report.weights] == [("w", ("a", "y"), (0, 1200))]
    assert result.nodes[0].inputs[1] is result.nodes[2].inputs[1]


def test_a_weight_shared_both_ways_round() -> None:
    _, report = sparsified(network(TURNED), sparsity=0.75)
    assert report.reached == 0.75
    for pattern in ("4x1", "2:4"):
        with pytest.raises(SecateurError, match=r"E_NOTHING_TO_SPARSIFY.*1 shared by layers that see its outputs"):
            sparsified(network(TURNED), pattern=pattern)


def test_a_weight_that_is_read_otherwise_too() -> None:
    text = """(int64[4] xi, float[30,40] e, float[40,40] w) => (float[4,30] y) { r = Gather(e, xi) a = MatMul(r, w)
        t = Transpose<perm=[1,0]>(e) y = MatMul(a, t) z = Gemm<transB=1>(a, e) }"""
    _, report = sparsified(network(text.replace("(float[4,30] y)", "(float[] y, float[] z)")), sparsity=0.5)
    assert spared(report) == {"e": "read by node 'r' (Gather) too, in another way", "w": ""}


def test_weights_in_bodies() -> None:
    text = """(float[2,40] x, float[40,48] u, float[48,40] d, float[40,40] h) => (float[2,40] y) {
        n = Constant<value_int=2>()
        b = Loop(n, , x) <body = l (int64 i, bool c1, float[2,40] s) => (bool c2, float[2,40] s2) {
            l1 = MatMul(s, u) l2 = Relu(l1) s2 = MatMul(l2, d) c2 = Identity(c1) }>
        y = MatMul(b, h) }"""
    graph = network(text)
    result, report = sparsified(graph, pattern="2:4")
    assert spared(report) == {"u_1": "", "d_1": "", "h": ""}
    assert report.reached == 0.5
    for name in spared(report):
        assert np.count_nonzero(weight(graph, name)) == 2 * np.count_nonzero(weight(result, name))
    execute(result, random_inputs(result, 0))
    with pytest.raises(SecateurError, match="criterion 'wanda' does not score it"):
        sparsified(graph, pattern="2:4", only=("u_1", "d_1"), criterion="wanda", calibration="noise")


def test_embeddings_are_first_layers_and_masks_make_none() -> None:
    text = """(int64[1,4] xi, float[1,1,4,4] xm, float[30,8] e, float[8,8] q, float[8,8] k, float[8,8] v, float[8,8] o,
        float[8,8] q2) => (float[] y) { h = Gather(e, xi) a = MatMul(h, q) b = MatMul(h, k) c = MatMul(h, v)
        bt = Transpose<perm=[0,2,1]>(b) s = MatMul(a, bt) m = Add(s, xm) p = Softmax(m) z = MatMul(p, c)
        w = MatMul(z, o) y = MatMul(w, q2) }"""
    _, report = sparsified(network(text), sparsity=0.5, keep_first=True)
    assert spared(report) == dict.fromkeys(("q", "k", "v", "o", "q2"), "")


def test_quantised_weights_are_left_alone() -> None:
    text = """(float[2,40] x, int8[40,40] w, float[40,40] u) => (float[] y) { s = Constant<value_float=0.1>()
        d = DequantizeLinear(w, s) a = MatMul(x, d) y = MatMul(a, u) }"""
    graph = network(text)
    result, report = sparsified(graph, sparsity=0.5)
    assert spared(report) == {"w": "stored as int8", "u": ""}
    assert report.weights[0].zeros == (None, None)
    np.testing.assert_array_equal(weight(graph, "w"), weight(result, "w"))
    assert report.overall == (0, 0.5)


@pytest.mark.parametrize("dtype", ["float16", "double", "bfloat16"])
def test_types_stay(dtype: str) -> None:
    graph = network(f"({dtype}[2,40] x, {dtype}[40,40] w) => ({dtype}[] y) {{ y = MatMul(x, w) }}")
    before = weight(graph, "w")
    result, _ = sparsified(graph, sparsity=0.9)
    after = weight(result, "w")
    assert after.dtype == before.dtype
    kept = after != 0
    assert kept.sum() == 160
    np.testing.assert_array_equal(after[kept], before[kept])


def test_the_source_is_untouched() -> None:
    graph = network(NET)
    before = {c.name: c.numpy().copy() for c in graph.constants()}
    sparsified(graph, sparsity=0.5)
    assert all(np.array_equal(before[c.name], c.numpy()) for c in graph.constants())


def test_large_weights_stay_in_their_file(tmp_path: Path) -> None:
    model = network_proto(NET)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    graph = load(tmp_path / "m.onnx")
    result, report = sparsified(graph, sparsity=0.9)
    changed = [next(c for c in result.constants() if c.name == w.name) for w in report.eligible]
    assert all(c.data is not None and c.data.sources() for c in changed)
    whole, _ = sparsified(network(NET), sparsity=0.9)
    for constant in changed:
        np.testing.assert_array_equal(constant.numpy(), weight(whole, constant.name))
    export(result, tmp_path / "s.onnx")
    assert {w.name: w.zeros for w in sparsity_of(load(tmp_path / "s.onnx"))} == {
        w.name: w.zeros[1] for w in report.weights
    }


def test_zeros_that_are_there_stay_and_count() -> None:
    graph = network(NET)
    once, first = sparsified(graph, sparsity=0.5, criterion="random")
    twice, second = sparsified(once, sparsity=0.8)
    assert [w.zeros[0] for w in second.weights] == [w.zeros[1] for w in first.weights]
    for change in second.eligible:
        was, now = weight(once, change.name) == 0, weight(twice, change.name) == 0
        assert now[was].all()
        assert now.sum() == round(0.8 * now.size)
    again, third = sparsified(once, sparsity=0.3)
    assert third.reached == pytest.approx(0.5, abs=1e-3)
    assert all(np.array_equal(weight(once, w.name), weight(again, w.name)) for w in third.eligible)


def test_whole_blocks_of_zeros_count() -> None:
    graph = network("(float[2,32] x, float[64,32] w) => (float[] y) { y = Gemm<transB=1>(x, w) }")
    once, _ = sparsified(graph, sparsity=0.5, pattern="4x1", criterion="random")
    twice, report = sparsified(once, sparsity=0.75, pattern="4x1", criterion="random", seed=1)
    assert report.reached == 0.75
    assert (weight(twice, "w")[weight(once, "w") == 0] == 0).all()
    assert sparsity_of(twice)[0].structure == ("4x1",)
    loose, _ = sparsified(graph, sparsity=0.5)
    _, report = sparsified(loose, sparsity=0.5, pattern="4x1")
    assert report.reached > 0.5  # half of the blocks go, and others hold zeros too


def test_the_zeros_of_a_file() -> None:
    graph = network(NET)
    assert {w.name: (w.zeros, w.structure) for w in sparsity_of(graph)} == dict.fromkeys(
        ("stem", "dw", "pw", "w3", "grouped", "head"), (0, ())
    )
    for pattern, options in (("2:4", {}), ("4x1", {"sparsity": 0.7}), ("unstructured", {"sparsity": 0.7})):
        result, _ = sparsified(graph, pattern=pattern, only=("w3", "pw"), **options)
        found = {w.name: w for w in sparsity_of(result)}
        assert found["w3"].structure == found["pw"].structure == (pattern,)
        assert found["w3"].zeros == (weight(result, "w3") == 0).sum()
        assert (found["w3"].op, found["w3"].nodes, found["w3"].weights) == ("Conv", ("t",), 40 * 48 * 9)


@pytest.mark.parametrize("share", [0, 1, -0.5, 1.5, math.nan, math.inf])
def test_sparsity_outside_its_range(share: float) -> None:
    with pytest.raises(SecateurError, match=r"E_SPARSITY.*the sparsity must be more than 0 and less than 1"):
        Sparsify(sparsity=share)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "3:2"}, "E_SPARSITY_PATTERN.*leaves every weight"),
        ({"pattern": "0x1"}, "E_SPARSITY_PATTERN.*blocks of no weights"),
        (
            {"pattern": "2:4", "sparsity": 0.9},
            "E_SPARSITY.*2:4 makes 0.5 of the weights zero.*contradicts sparsity=0.9",
        ),
        ({"pattern": "2:4", "distribution": "erk"}, "E_OPTION_VALUE.*gives every layer the same sparsity"),
        ({"distribution": "globl"}, "E_OPTION_VALUE.*did you mean 'global'"),
        ({"mend": "weights"}, "E_OPTION_VALUE.*one of: none, batchnorm, layers"),
        ({"mend": "layers"}, "E_NO_CALIBRATION.*mend=layers"),
        ({"mend": "batchnorm"}, "E_NO_CALIBRATION.*mend=batchnorm"),
        ({"min_size": 0}, "min_size must be at least 1"),
        ({"criterion": "magic"}, "E_CRITERION.*known criteria"),
        ({"criterion": "fpgm"}, "E_CRITERION.*scores whole channels.*those that score weights: .*l1, l2, lamp"),
        ({"criterion": "wanda"}, "E_NO_CALIBRATION.*criterion 'wanda'"),
        ({"criterion": "taylor"}, "E_NO_LABELS"),
        ({"ignore": ("stm",)}, "E_PATTERN.*matches no weight, node or operator.*did you mean stem"),
        ({"min_size": 10**6}, r"E_NOTHING_TO_SPARSIFY.*fewer than 1,000,000 weights \(min_size\)"),
    ],
)
def test_wrong_options(options: dict, message: str) -> None:
    with pytest.raises(SecateurError, match="(?s)" + message):
        sparsified(network(NET), **options)


def test_a_network_without_weights() -> None:
    with pytest.raises(SecateurError, match=r"E_NOTHING_TO_SPARSIFY.*no convolution or matrix product"):
        sparsified(network("(float[2,3] x) => (float[] y) { y = Relu(x) }"))


def test_n_m_with_the_sparsity_that_it_has() -> None:
    assert Sparsify(pattern="1:3", sparsity=0.667).wanted == pytest.approx(2 / 3)


def test_textual_form_is_the_pass() -> None:
    text = "simplify,sparsify(sparsity=0.8,pattern=4x1,distribution=erk,keep_first=false,ignore=[head*,w9])"
    _, made = parse_passes(text)
    assert made == Sparsify(pattern="4x1", sparsity=0.8, distribution="erk", keep_first=False, ignore=("head*", "w9"))
    assert str(Pipeline(text)) == text
    assert parse_passes("sparsify(pattern=2:4)") == (Sparsify(pattern="2:4"),)


X = np.random.default_rng(7).standard_normal((24, 3, 8, 8)).astype(np.float32)
DATA = {"x": X, "labels": np.arange(24) % 10}
BATCHED = NET.replace("float[1,3,8,8] x", "float[N,3,8,8] x").replace("float[1,10] y", "float[N,10] y")


@pytest.mark.parametrize("name", [n for n, c in available_criteria().items() if getattr(c, "scores_weights", False)])
def test_every_criterion_of_weights(name: str) -> None:
    graph = network(BATCHED)
    _, report = sparsified(graph, sparsity=0.6, criterion=name, calibration=DATA, distribution="global", depthwise=True)
    left = {"dw": f"criterion {name!r} does not score it"} if name in ("wanda", "flap", "obspa") else {}
    assert {k: v for k, v in spared(report).items() if v} == left
    assert report.reached == pytest.approx(0.6, abs=1e-3)


def inner(graph: Graph, name: str) -> np.ndarray:
    copy = graph.copy()
    copy.outputs = [copy.value(name)]
    return execute(copy, {"x": X})[name].astype(np.float64)


def test_wanda_weighs_by_the_norms_of_inputs() -> None:
    graph = network(BATCHED)
    result, _ = sparsified(graph, sparsity=0.5, criterion="wanda", calibration=DATA, only=("w3", "grouped", "head"))
    norms = {
        "w3": np.sqrt(np.square(inner(graph, "q")).sum((0, 2, 3)))[None, :, None, None],
        "grouped": np.sqrt(np.square(inner(graph, "t")).sum((0, 2, 3)))
        .reshape(4, 1, 10, 1, 1)
        .repeat(10, 1)
        .reshape(40, 10, 1, 1),
        "head": np.sqrt(np.square(inner(graph, "f")).sum(0))[None],
    }
    for name, norm in norms.items():
        scores = (np.abs(weight(graph, name)) * norm).ravel()
        stays = np.ones(scores.size, bool)
        stays[np.argsort(scores, kind="stable")[: scores.size // 2]] = False
        assert ((weight(result, name).ravel() != 0) == stays).mean() > 0.999  # but for rounding


def test_lamp_ranks_all_layers() -> None:
    graph = network(NET)
    result, _ = sparsified(graph, sparsity=0.8, criterion="lamp", distribution="global", only=("pw", "head"))
    scores = []
    for name in ("pw", "head"):
        squares = np.square(weight(graph, name).astype(np.float64)).ravel()
        scores.append(np.array([s / squares[squares >= s].sum() for s in squares]))
    bound = np.sort(np.concatenate(scores))[round(0.8 * (1536 + 400))]
    for name, own in zip(("pw", "head"), scores, strict=True):
        np.testing.assert_array_equal(weight(result, name).ravel() != 0, own >= bound)


def test_blocks_add_up_scores() -> None:
    graph = network("(float[2,32] x, float[64,32] w) => (float[] y) { y = Gemm<transB=1>(x, w) }")
    w = weight(graph, "w")
    result, _ = sparsified(graph, sparsity=0.75, pattern="4x1", criterion="l2")
    sums = np.square(w.reshape(16, 4, 32)).sum(1)
    stays = sums >= np.sort(sums.ravel())[round(0.75 * sums.size)]
    np.testing.assert_array_equal(weight(result, "w") != 0, stays.repeat(4, 0))


NORMALIZED = """(float[N,3,8,8] x, float[32,3,3,3] w1, float[32] s, float[32] b, float[32] m, float[32] v,
    float[16,32,3,3] w2, float[16] s2, float[16] b2, float[16] m2, float[16] v2) => (float[] y) { a = Conv(x, w1)
    n = BatchNormalization(a, s, b, m, v) r = Relu(n) c = Conv(r, w2) y = BatchNormalization(c, s2, b2, m2, v2) }"""


def test_batchnorm_is_mended_and_zeros_stay() -> None:
    graph = network(NORMALIZED)
    calibration = {"x": np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32)}
    plain, _ = sparsified(graph, sparsity=0.8)
    mended, report = sparsified(graph, sparsity=0.8, mend="batchnorm", calibration=calibration)
    assert report.mended is not None and report.mended.normalizations == ["n", "y"]
    for name in ("w1", "w2"):
        np.testing.assert_array_equal(weight(mended, name), weight(plain, name))
    was, bare, now = (execute(g, calibration)["y"] for g in (graph, plain, mended))
    spread = was.std((0, 2, 3))
    np.testing.assert_allclose(now.mean((0, 2, 3)), was.mean((0, 2, 3)), atol=1e-3)
    np.testing.assert_allclose(now.std((0, 2, 3)), spread, rtol=1e-2)
    assert np.abs(bare.std((0, 2, 3)) / spread - 1).min() > 0.1


@pytest.mark.parametrize("pattern", ["unstructured", "4x1", "2:4"])
def test_layers_are_mended_where_weights_stay(pattern: str) -> None:
    graph = network(
        "(float[N,24,9,9] x, float[32,24,3,3] a, float[32] b, float[32,1,3,3] c, float[48,32,1,1] d, float[48,20] e)"
        " => (float[N,20] y) { h = Conv<pads=[1,1,1,1]>(x, a, b) r = Relu(h) i = Conv<group=32>(r, c) s = Relu(i)"
        " j = Conv(s, d) t = Relu(j) ax = Constant<value_ints=[2,3]>() g = ReduceMean<keepdims=0>(t, ax)"
        " y = MatMul(g, e) }"
    )
    rng = np.random.default_rng(0)
    seen, unseen = ({"x": rng.standard_normal((n, 24, 9, 9)).astype(np.float32)} for n in (128, 32))
    options = {"sparsity": None if ":" in pattern else 0.7, "pattern": pattern, "keep_first": False, "min_size": 500}
    plain, _ = sparsified(graph, **options)
    mended, report = sparsified(graph, **options, mend="layers", calibration=seen)
    assert report.mended is not None and len(report.mended.layers) == 4
    for name in "acde":
        np.testing.assert_array_equal(weight(mended, name) == 0, weight(plain, name) == 0)
    was, bare, now = (execute(g, unseen)["y"] for g in (graph, plain, mended))
    assert np.abs(now - was).mean() < 0.6 * np.abs(bare - was).mean()


def test_weights_that_are_no_numbers_are_named() -> None:
    graph = network("(float[2,40] x, float[40,40] w) => (float[] y) { y = MatMul(x, w) }")
    broken = graph.value("w").numpy().copy()
    broken[3, 4] = np.nan
    graph.value("w").data = ArrayConstant(broken)
    with pytest.raises(SecateurError, match=r"(?s)E_SCORES.*not numbers.*where: w"):
        sparsified(graph)


def test_a_criterion_of_single_weights_needs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = sys.modules["passes.importance.criterion"]
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register_criterion("test_signed")
    class Signed(ParameterCriterion):
        def score(self, data: np.ndarray, constant: Value, rows: slice) -> np.ndarray:
            return data

    @register_criterion("test_misshapen")
    class Misshapen(Signed):
        def weight_scores(self, evidence: Evidence, constant: Value) -> np.ndarray:
            return np.zeros(3)

    graph = network("(float[2,40] x, float[40,40] w) => (float[] y) { y = MatMul(x, w) }")
    result, _ = sparsified(graph, sparsity=0.3, criterion="test_signed")
    w = weight(graph, "w")
    np.testing.assert_array_equal(weight(result, "w") == 0, w < np.sort(w.ravel())[480])
    with pytest.raises(SecateurError, match=r"E_SCORES.*of shape \(3,\) to weights of \(40, 40\)"):
        sparsified(graph, criterion="test_misshapen")


def test_sparse_then_pruned_and_pruned_then_sparse() -> None:
    graph = network(NET)
    for text in ("sparsify(sparsity=0.6),prune(ratio=0.3)", "prune(ratio=0.3),sparsify(sparsity=0.6)"):
        context = Context()
        pipeline = Pipeline(text)
        result = pipeline.run(graph, context)
        checks = verify_transformation(graph, result, pipeline, context)
        assert [c.difference <= c.tolerance for c in checks] == [True] * len(checks) and checks
    context.reports["sparsify"][0].after.value("w3").data = ArrayConstant(weight(result, "w3") * np.float32(1.5))
    with pytest.raises(SecateurError, match="E_VERIFY"):
        verify_transformation(graph, result, pipeline, context)
