"""Simplification keeps what a network computes and its boundary, and makes it smaller."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from onnx import helper, parser

from compiler.exporters import to_model_proto
from compiler.frontends import load
from compiler.ir import Constant, Graph, Node, Value, infer_shapes
from compiler.ir.execute import execute, random_inputs, relative_difference
from passes.pipeline import Context, Pass, Pipeline, parse_passes
from passes.simplify import (
    Canonicalize,
    EliminateDead,
    EliminateIdentities,
    FoldBatchNorm,
    FoldConstants,
    Simplify,
)
from tests.models import SMALL_LIGHT_MODELS, light_model, light_path
from tests.strategies import networks

Golden = Callable[[str, str], None]


def net(body: str, signature: str = "float[2,3] x => float[2,3] y", constants: str = "", opset: int = 21) -> Graph:
    """A graph from the text form of ONNX."""
    inputs, outputs = signature.split("=>")
    return load(
        parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : {opset}]> net ({inputs}) => ({outputs}) <{constants}> {{ {body} }}'
        )
    )


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes]


def boundary(graph: Graph) -> list[tuple[str, object, object]]:
    return [(v.name, v.dtype, v.shape) for v in (*graph.inputs, *graph.outputs)]


def same(graph: Graph, result: Graph, tolerance: float = 1e-6, symbol: int = 2) -> Graph:
    """`result`, which must compute what `graph` computes behind the same boundary."""
    assert boundary(result) == boundary(graph)
    inputs = random_inputs(graph, symbol=symbol)
    expected = execute(graph, inputs, optimize=False)
    assert relative_difference(execute(result, inputs, optimize=False), expected) <= tolerance
    return result


class TestNetworks:
    @pytest.mark.parametrize("name", SMALL_LIGHT_MODELS)
    def test_light_models(self, name: str, golden: Golden) -> None:
        graph = load(light_model(name))
        same(graph, Simplify()(graph), 1e-5)
        folded = same(graph, Simplify(batchnorm=True)(graph), 1e-5)
        counts = Counter(ops(folded))
        golden("".join(f"{op} {n}\n" for op, n in sorted(counts.items())), f"simplify_light_{name}")

    def test_weights_made_by_nodes_become_constants(self) -> None:
        graph = Simplify()(load(light_path("vgg19")))  # 550 MB when written out, one number each until then
        assert "ConstantOfShape" not in ops(graph)
        assert graph.value("fc6_w_0").shape == (4096, 25088)

    def test_a_network_of_1746_nodes_takes_seconds(self) -> None:
        start = time.perf_counter()
        graph = Simplify()(load(light_path("densenet121")))
        assert time.perf_counter() - start < 20  # 0.6 s on an idle machine
        assert len(graph.nodes) == 668

    @settings(max_examples=60)
    @given(networks())
    def test_random_networks(self, graph: Graph) -> None:
        before = str(graph)
        for chosen in (Simplify(), Simplify(batchnorm=True)):
            same(graph, chosen(graph), 1e-5)
        assert str(graph) == before  # a pass never changes its argument

    @settings(max_examples=30)
    @given(networks())
    def test_it_is_a_fixed_point(self, graph: Graph) -> None:
        once = Simplify(batchnorm=True)(graph)
        assert Simplify(batchnorm=True)(once) is once


class TestPipelineForm:
    def test_text(self) -> None:
        assert parse_passes("simplify(batchnorm=true)") == (Simplify(batchnorm=True),)
        assert str(Simplify()) == "simplify"

    def test_report(self) -> None:
        context = Context()
        graph = net("a = Identity(x) y = Relu(a)")
        Pipeline("simplify").run(graph, context)
        assert context.reports["simplify"] == [{"changes": 1, "nodes_before": 2, "nodes": 1}]

    @pytest.mark.parametrize(
        "chosen", [Simplify(), FoldConstants(), EliminateIdentities(), FoldBatchNorm(), EliminateDead(), Canonicalize()]
    )
    def test_nothing_to_do_gives_the_same_graph(self, chosen: Pass) -> None:
        graph = net("y = Relu(x)")
        assert chosen(graph) is graph


class TestFoldConstants:
    def test_golden(self, golden: Golden) -> None:
        graph = net(
            """n = Neg(w) s = Add(n, one) shape = Constant<value_ints = [2, 3]>() z = ConstantOfShape(shape)
               f = Cast<to = 1>(i) a = Add(x, s) b = Mul(a, f) y = Add(b, z)""",
            constants="float[3] w = {1, 2, 3}, float one = {1}, int64[3] i = {4, 5, 6}",
        )
        golden(str(same(graph, FoldConstants()(graph))), "fold_constants")

    @pytest.mark.parametrize(
        "body",
        [
            "s = Shape(x) y = Reshape(x, s)",
            "s = Shape(x) b = Gather(s, zero) r = Concat<axis = 0>(b, rest) y = Reshape(x, r)",
            "s = Shape<start = 0, end = 1>(x) r = Concat<axis = 0>(s, rest) y = Reshape(x, r)",
            "s = Shape(x) c = Cast<to = 7>(s) b = Slice(c, zero, one) r = Concat<axis = 0>(b, rest) y = Reshape(x, r)",
            "s = Shape(x) u = Slice(s, zero, one) q = Squeeze(u) m = Mul(q, unit) v = Unsqueeze(m, zero)"
            " r = Concat<axis = 0>(v, rest) y = Reshape(x, r)",
            "s = Shape(x) n = Slice(s, one, two) k = Div(n, two) m = Mul(k, two) b = Gather(s, zero)"
            " r = Concat<axis = 0>(b, m) y = Reshape(x, r)",
        ],
    )
    @pytest.mark.parametrize("batch", ["2", "n"])
    def test_shape_arithmetic_disappears(self, body: str, batch: str) -> None:
        graph = net(
            body,
            f"float[{batch},4] x => float[{batch},4] y",
            "int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64 unit = {1}, int64[1] rest = {4}",
        )
        assert ops(same(graph, Simplify()(graph), symbol=3)) == ["Identity"]

    def test_one_open_extent_becomes_minus_one(self) -> None:
        graph = net(
            "s = Shape(x) b = Gather(s, zero) r = Concat<axis = 0>(b, half, half) y = Reshape(x, r)",
            "float[n,4] x => float[n,2,2] y",
            "int64[1] zero = {0}, int64[1] half = {2}",
        )
        result = same(graph, Simplify()(graph), symbol=3)
        assert ops(result) == ["Reshape"]
        assert result.nodes[0].inputs[1].numpy().tolist() == [0, 2, 2]  # type: ignore[union-attr]

    def test_two_open_extents_of_which_one_is_copied(self) -> None:
        graph = net(
            "s = Shape(x) b = Gather(s, zero) h = Gather(s, two) r = Concat<axis = 0>(b, h, c) y = Reshape(x, r)",
            "float[n,4,h] x => float[n,h,4] y",
            "int64[1] zero = {0}, int64[1] two = {2}, int64[1] c = {4}",
        )
        result = same(graph, Simplify()(graph), symbol=3)
        assert ops(result) == ["Reshape"]
        assert result.nodes[0].inputs[1].numpy().tolist() == [0, -1, 4]  # type: ignore[union-attr]

    def test_open_extents_that_one_minus_one_cannot_say_stay(self) -> None:
        graph = net(
            "s = Shape(x) t = Gather(s, order) y = Reshape(x, t)",
            "float[n,4,h] x => float[h,n,4] y",
            "int64[3] order = {2, 0, 1}",
        )
        assert ops(same(graph, Simplify()(graph), symbol=3)) == ["Shape", "Gather", "Reshape"]

    def test_no_minus_one_beside_an_extent_that_data_may_make_zero(self) -> None:
        graph = net(
            "i = NonZero(x) t = Transpose(i) b = Shape<start = 0, end = 1>(t) h = Shape<start = 1, end = 2>(x)"
            " r = Concat<axis = 0>(b, h) y = Reshape(t, r)",
            "float[2,n] x => int64[m,n] y",
        )
        result = Simplify()(graph)
        for x in (np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32)):
            expected = execute(graph, {"x": x}, optimize=False)
            assert relative_difference(execute(result, {"x": x}, optimize=False), expected) == 0

    def test_products_of_open_extents_stay_right(self) -> None:
        graph = net(
            "s = Shape(x) b = Slice(s, zero, two) p = ReduceProd(b) r = Concat<axis = 0>(p, c) y = Reshape(x, r)",
            "float[n,m,4] x => float[k,4] y",
            "int64[1] zero = {0}, int64[1] two = {2}, int64[1] c = {4}",
        )
        result = Simplify()(graph)
        inputs = random_inputs(graph, symbol=3)
        assert relative_difference(execute(result, inputs), execute(graph, inputs)) == 0
        assert result.nodes[-1].inputs[1].numpy().tolist() == [-1, 4]  # type: ignore[union-attr]

    def test_integers_that_are_no_shapes_wrap_around(self) -> None:
        graph = net(
            "h = Mul(big, big) d = Div(minus, three) i = Add(h, d) y = Add(x, i)",
            "int64[1] x => int64[1] y",
            "int64[1] big = {4611686018427387904}, int64[1] minus = {-7}, int64[1] three = {3}",
        )
        assert ops(same(graph, Simplify()(graph))) == ["Add"]

    def test_random_operators_stay(self) -> None:
        graph = net("s = Constant<value_ints = [2, 3]>() r = RandomNormal<shape = [2, 3]>() y = Add(x, r)")
        assert ops(Simplify()(graph)) == ["RandomNormal", "Add"]
        graph = net("r = RandomUniformLike(w) y = Add(x, r)", constants="float[2,3] w = {1, 2, 3, 4, 5, 6}")
        assert ops(Simplify()(graph)) == ["RandomUniformLike", "Add"]

    def test_quantized_weights_stay_quantized(self) -> None:
        graph = net("d = DequantizeLinear(q, s) y = Add(x, d)", constants="int8[3] q = {1, 2, 3}, float s = {0.5}")
        assert ops(Simplify()(graph)) == ["DequantizeLinear", "Add"]

    @pytest.mark.parametrize(
        ("body", "expected", "elements"),
        [
            pytest.param(body, expected.split(), elements, id=name)
            for name, body, expected, elements in (
                (
                    "an embedding and its transpose",
                    "e = Gather(w, x) z = Relu(e) t = Transpose<perm = [1, 0]>(w) y = MatMul(z, t)",
                    "Gather Relu Transpose MatMul",
                    24,
                ),
                (
                    "by way of an Identity, into a Gemm",
                    "v = Identity(w) e = Gather(w, x) t = Transpose(v) y = Gemm(e, t)",
                    "Gather Gemm",
                    24,
                ),
                (
                    "one layer used twice",
                    "e = Gather(w, x) s = Transpose(square) a = MatMul(e, s) b = Relu(a) "
                    "t = Transpose<perm = [1, 0]>(square) c = MatMul(b, t) y = MatMul(c, t)",
                    "Gather MatMul Relu MatMul MatMul",
                    24 + 16,
                ),
                (
                    "a weight that is made of others",
                    "u = Mul(w, g) e = Gather(u, x) t = Transpose<perm = [1, 0]>(u) y = MatMul(e, t)",
                    "Gather Transpose MatMul",
                    24,
                ),
                (
                    "forms that only make another weight",
                    "t = Transpose<perm = [1, 0]>(w) n = MatMul(w, t) e = Gather(n, x) y = MatMul(e, n)",
                    "Gather MatMul",
                    36,
                ),
                (
                    "a vector",
                    "s = Constant<value_ints = [1, 4]>() r = Reshape(g, s) "
                    "e = Gather(w, x) a = Add(e, r) y = Add(a, g)",
                    "Gather Add Add",
                    24 + 4 + 4,
                ),
            )
        ],
    )
    def test_a_weight_that_is_read_in_two_forms_stays_one(self, body: str, expected: list[str], elements: int) -> None:
        graph = net(
            body,
            "int64[3] x => float[3,n] y",
            ", ".join(
                f"{name} = {{{', '.join(str(i * i % 7 / 4) for i in range(size))}}}"
                for name, size in (("float[6,4] w", 24), ("float[4,4] square", 16), ("float[4] g", 4))
            ),
        )
        inputs = {"x": np.array([0, 5, 3])}
        result = Simplify()(graph)
        assert ops(result) == expected
        assert relative_difference(execute(result, inputs), execute(graph, inputs, optimize=False)) <= 1e-6
        assert sum(v.data.size for v in result.constants() if v.data is not None) == elements

    def test_without_weights_only_moves_are_folded(self) -> None:
        graph = net(
            "t = Transpose<perm = [1, 0]>(w) r = Reshape(t, s) a = Add(x, r) u = Mul(v, two) b = Add(a, u) "
            "g = Gather(table, i) c = Mul(g, two) d = Add(b, c) e = Gather(table, all) h = Gather(e, i) y = Add(d, h)",
            constants="float[3,2] w = {1, 2, 3, 4, 5, 6}, int64[2] s = {2, 3}, float[3] v = {1, 2, 3}, float two = {2},"
            "float[4,3] table = {1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2}, int64[2] i = {1, 3}, int64[4] all = {3, 2, 1, 0}",
        )
        assert ops(same(graph, FoldConstants(weights=False)(graph))) == [
            *("Add", "Mul", "Add"),
            *("Gather", "Mul", "Add", "Gather", "Add"),
        ]
        assert ops(same(graph, FoldConstants()(graph))) == ["Add"] * 4

    def test_the_cap_holds(self) -> None:
        graph = net("z = ConstantOfShape(s) y = Add(x, z)", constants="int64[2] s = {2, 3}")
        assert ops(FoldConstants(max_bytes=23)(graph)) == ["ConstantOfShape", "Add"]
        assert ops(FoldConstants(max_bytes=24)(graph)) == ["Add"]

    def test_large_constants_are_not_read(self) -> None:
        class Huge(Constant):
            dtype = np.dtype(np.float32)
            shape = (2**20, 2**12)

            def numpy(self) -> np.ndarray:
                raise AssertionError("16 GB would be read")

        x, t, y = Value("x", np.float32, (1, 2**12)), Value("t"), Value("y")
        nodes = [Node("Transpose", [Value("w", data=Huge())], [t]), Node("MatMul", [x, t], [y])]
        graph = Graph("g", [x], [y], nodes)
        infer_shapes(graph)
        assert Simplify()(graph) is graph

    def test_constants_inside_bodies(self) -> None:
        graph = net(
            """y = If (c) <then_branch = a () => (float[2,3] r) { k = Neg(w) r = Add(x, k) },
                           else_branch = b () => (float[2,3] q) { q = Neg(v) }>""",
            "bool c, float[2,3] x => float[2,3] y",
            "float[3] w = {1, 2, 3}, float[2,3] v = {1, 2, 3, 4, 5, 6}",
        )
        result = Simplify()(graph)
        bodies = [result.nodes[0].attributes[k] for k in ("then_branch", "else_branch")]
        assert [ops(b) for b in bodies] == [["Add"], []]
        for flag in (True, False):
            feeds = {"c": np.array(flag), "x": np.ones((2, 3), np.float32)}
            assert relative_difference(execute(result, feeds), execute(graph, feeds)) == 0

    def test_a_constant_output_keeps_its_name(self) -> None:
        graph = net("y = Neg(w)", "float[2] x => float[2] y", "float[2] w = {1, 2}")
        result = same(graph, Simplify()(graph))
        assert result.outputs[0].is_constant
        assert same(graph, load(to_model_proto(result))).outputs[0].name == "y"


class TestEliminateIdentities:
    IDENTITIES = (
        "Identity(x)",
        "Dropout(x)",
        "Dropout(x, ratio, no)",
        "Cast<to = 1>(x)",
        "CastLike(x, w)",
        "Reshape(x, shape)",
        "Flatten<axis = 1>(x)",
        "Transpose<perm = [0, 1]>(x)",
        "Expand(x, shape)",
        "Tile(x, ones)",
        "Pad(x, zeros)",
        "Slice(x, none, far)",
        "Slice(x, none, extents)",
        "Concat<axis = 1>(x)",
        "Sum(x)",
        "Max(x)",
        "Mean(x)",
        "Add(x, zero)",
        "Add(zero, x)",
        "Sub(x, zero)",
        "Mul(x, one)",
        "Mul(one, x)",
        "Div(x, one)",
    )
    CONSTANTS = """float ratio = {0.5}, bool no = {0}, float[1] w = {1}, int64[2] shape = {2, 3},
        int64[2] ones = {1, 1},
        int64[4] zeros = {0, 0, 0, 0}, int64[2] none = {0, 0}, int64[2] far = {9223372036854775807, 2147483647},
        int64[2] extents = {2, 3}, float zero = {0}, float one = {1}"""

    @pytest.mark.parametrize("call", IDENTITIES)
    def test_what_does_nothing_goes(self, call: str) -> None:
        graph = net(f"a = {call} y = Tanh(a)", constants=self.CONSTANTS)
        assert ops(same(graph, EliminateIdentities()(graph))) == ["Tanh"]

    @pytest.mark.parametrize("call", IDENTITIES)
    def test_an_output_keeps_its_name(self, call: str) -> None:
        call = re.sub(r"\bx\b", "a", call)
        graph = net(f"a = Tanh(x) y = {call}", constants=self.CONSTANTS)
        assert ops(same(graph, EliminateIdentities()(graph))) == ["Tanh"]

    @pytest.mark.parametrize("call", IDENTITIES)
    def test_an_identity_stays_between_input_and_output(self, call: str) -> None:
        graph = net(f"y = {call}", constants=self.CONSTANTS)
        assert ops(same(graph, EliminateIdentities()(graph))) == ["Identity"]

    @pytest.mark.parametrize(
        "call",
        [
            "Cast<to = 11>(x)",
            "Transpose<perm = [1, 0]>(x)",
            "Sub(zero, x)",
            "Div(one, x)",
            "Add(x, zeros4)",
            "Dropout(x, ratio, yes)",
            "Slice(x, none, ends, axes, back)",
            "Concat<axis = 0>(x, x)",
            "Reshape(x, turned)",
            "Mul(x, rows)",
        ],
    )
    def test_what_does_something_stays(self, call: str) -> None:
        constants = """float ratio = {0.5}, bool yes = {1}, float zero = {0}, float one = {1}, float[4,1,1] zeros4 =
            {0, 0, 0, 0}, int64[1] none = {-1}, int64[1] ends = {-9}, int64[1] axes = {0}, int64[1] back = {-1},
            int64[2] turned = {3, 2}, float[2,1,1] rows = {1, 1}"""
        graph = net(f"y = {call}", f"float[2,3] x => {'double' if 'to = 11' in call else 'float'}[] y", constants)
        assert EliminateIdentities()(graph) is graph

    def test_golden(self, golden: Golden) -> None:
        graph = net(
            """a = Transpose<perm = [0, 2, 3, 1]>(x) b = Transpose<perm = [0, 3, 1, 2]>(a) c = Relu(b)
               d = Transpose<perm = [1, 0, 2, 3]>(c) e = Transpose<perm = [0, 2, 1, 3]>(d)
               f = Reshape(e, flat) g = Reshape(f, matrix) h, mask = Dropout(g) y = Identity(h)""",
            "float[2,3,4,5] x => float[6,20] y",
            "int64[1] flat = {-1}, int64[2] matrix = {6, 20}",
        )
        golden(str(same(graph, Pipeline("eliminate_identities,eliminate_dead")(graph))), "eliminate_identities")

    def test_a_used_mask_keeps_the_dropout(self) -> None:
        graph = net("y, mask = Dropout(x)", "float[2,3] x => float[2,3] y, bool[2,3] mask")
        assert EliminateIdentities()(graph) is graph

    def test_a_reshape_that_copies_extents_is_not_merged(self) -> None:
        graph = net(
            "a = Reshape(x, first) y = Reshape(a, second)",
            "float[2,3] x => float[3,2,1] y",
            "int64[2] first = {3, 2}, int64[3] second = {0, 0, 1}",
        )
        assert ops(same(graph, Simplify()(graph))) == ["Reshape", "Reshape"]

    def test_squeeze_undoes_unsqueeze_with_open_extents(self) -> None:
        graph = net(
            "a = Unsqueeze(x, one) b = Squeeze(a, one) y = Tanh(b)",
            "float[n,m] x => float[n,m] y",
            "int64[1] one = {1}",
        )
        assert ops(same(graph, Simplify()(graph))) == ["Tanh"]

    def test_two_outputs_of_one_value(self) -> None:
        graph = net("a = Tanh(x) y = Identity(a) z = Identity(a)", "float[2,3] x => float[2,3] y, float[2,3] z")
        assert ops(same(graph, Simplify()(graph))) == ["Tanh", "Identity"]

    def test_a_value_that_is_an_output_itself(self) -> None:
        graph = net("a = Tanh(x) y = Identity(a)", "float[2,3] x => float[2,3] a, float[2,3] y")
        assert ops(same(graph, Simplify()(graph))) == ["Tanh", "Identity"]

    def test_inside_bodies(self) -> None:
        graph = net(
            """h = Tanh(x)
               y = If (c) <then_branch = a () => (float[2,3] r) { r = Identity(h) },
                           else_branch = b () => (float[2,3] q) { t = Identity(h) s = Neg(t) q = Identity(s) }>""",
            "bool c, float[2,3] x => float[2,3] y",
        )
        result = Simplify()(graph)
        bodies = [result.nodes[1].attributes[k] for k in ("then_branch", "else_branch")]
        assert [ops(b) for b in bodies] == [["Identity"], ["Neg"]]
        for flag in (True, False):
            feeds = {"c": np.array(flag), "x": np.ones((2, 3), np.float32)}
            assert relative_difference(execute(result, feeds), execute(graph, feeds)) == 0


class TestEliminateDead:
    def test_golden(self, golden: Golden) -> None:
        graph = net(
            """a = Relu(x) dead = Tanh(a) deader = Neg(dead) p, unused = MaxPool<kernel_shape = [1, 1]>(a)
               s, t = Split<axis = 1, num_outputs = 2>(p) d, mask = Dropout(s) y = Neg(d)""",
            "float[1,4,2,2] x, float[3] unread => float[1,2,2,2] y",
        )
        golden(str(same(graph, EliminateDead()(graph))), "eliminate_dead")

    def test_what_only_a_body_reads_lives(self) -> None:
        graph = net(
            """h = Tanh(x)
               y = If (c) <then_branch = a () => (float[2,3] r) { r = Neg(h) waste = Exp(h) },
                           else_branch = b () => (float[2,3] q) { q = Relu(x) }>""",
            "bool c, float[2,3] x => float[2,3] y",
        )
        result = EliminateDead()(graph)
        assert ops(result) == ["Tanh", "If"]
        assert ops(result.nodes[1].attributes["then_branch"]) == ["Neg"]


class TestFoldBatchNorm:
    C = "BatchNormalization<epsilon = 0.001>({}, s, b, m, v)"
    NORM = "float[4] s = {1, 2, 0.5, 1.5}, float[4] b = {1, -1, 0, 2}, float[4] m = {0.5, 0, 1, -1}, "
    NORM += "float[4] v = {1, 0.5, 2, 1}"

    def weights(self, *shape: int) -> str:
        rng = np.random.default_rng(0)
        numbers = ", ".join(f"{n:.3f}" for n in rng.standard_normal(int(np.prod(shape))))
        return f", float[{','.join(map(str, shape))}] w = {{{numbers}}}"

    @pytest.mark.parametrize(
        ("layer", "shape", "signature"),
        [
            ("Conv(x, w)", (4, 2, 3, 3), "float[1,2,5,5] x => float[1,4,3,3] y"),
            ("Conv(x, w, b)", (4, 2, 3, 3), "float[1,2,5,5] x => float[1,4,3,3] y"),
            ("Conv<group = 2>(x, w, b)", (4, 2, 1, 1), "float[1,4,3,3] x => float[1,4,3,3] y"),
            ("Conv(x, w, b)", (4, 2, 3), "float[1,2,5] x => float[1,4,3] y"),
            ("ConvTranspose(x, w)", (2, 4, 2, 2), "float[1,2,3,3] x => float[1,4,4,4] y"),
            ("ConvTranspose<group = 2>(x, w, b)", (6, 2, 2, 2), "float[1,6,3,3] x => float[1,4,4,4] y"),
            ("Gemm(x, w)", (3, 4), "float[2,3] x => float[2,4] y"),
            ("Gemm<transB = 1, alpha = 0.5, beta = 2.0>(x, w, b)", (4, 3), "float[2,3] x => float[2,4] y"),
            ("BatchNormalization(x, s, b, m, v)", (1,), "float[1,4,3,3] x => float[1,4,3,3] y"),
        ],
    )
    def test_into_each_layer(self, layer: str, shape: tuple[int, ...], signature: str) -> None:
        graph = net(f"c = {layer} y = {self.C.format('c')}", signature, self.NORM + self.weights(*shape))
        result = same(graph, FoldBatchNorm()(graph))
        assert len(result.nodes) == 1

    @pytest.mark.parametrize(
        "calls",
        ["Mul(c, k)", "Mul(k, c)", "Add(c, k)", "Sub(c, k)", "Sub(k, c)", "Div(c, k)", "Mul(c, one)", "Add(c, row)"],
    )
    def test_explicit_constants(self, calls: str) -> None:
        constants = """, float[4,1,1] k = {1.5, -2, 0.5, 3}, float one = {2.5}, float[1,4,1,1] row = {1, 2, 3, 4}"""
        graph = net(
            f"c = Conv(x, w) y = {calls}",
            "float[1,2,5,5] x => float[1,4,3,3] y",
            self.NORM + self.weights(4, 2, 3, 3) + constants,
        )
        assert ops(same(graph, FoldBatchNorm()(graph))) == ["Conv"]

    @pytest.mark.parametrize(
        "calls",
        [
            "y = Mul(c, width)",
            "y = Div(k, c)",
            "r = Relu(c) y = Mul(r, k)",
            "d = Neg(c) m2 = Mul(c, k) y = Add(d, m2)",
            "y = Add(c, c)",
            "y = Div(c, zeros)",
        ],
    )
    def test_what_must_stay(self, calls: str) -> None:
        constants = ", float[4,1,1] k = {1, 2, 3, 4}, float[3] width = {1, 2, 3}, float[4,1,1] zeros = {1, 0, 1, 1}"
        graph = net(
            f"c = Conv(x, w) {calls}",
            "float[1,2,5,5] x => float[1,4,3,3] y",
            self.NORM + self.weights(4, 2, 3, 3) + constants,
        )
        assert FoldBatchNorm()(graph) is graph

    def test_an_intermediate_output_stays(self) -> None:
        graph = net(
            f"c = Conv(x, w) y = {self.C.format('c')}",
            "float[1,2,5,5] x => float[1,4,3,3] c, float[1,4,3,3] y",
            self.NORM + self.weights(4, 2, 3, 3),
        )
        assert FoldBatchNorm()(graph) is graph

    def test_shared_weights_are_copied(self) -> None:
        graph = net(
            f"c = Conv(x, w) n = {self.C.format('c')} d = Conv(x, w) y = Add(n, d)",
            "float[1,2,5,5] x => float[1,4,3,3] y",
            self.NORM + self.weights(4, 2, 3, 3),
        )
        assert ops(same(graph, FoldBatchNorm()(graph))) == ["Conv", "Conv", "Add"]

    def test_golden(self, golden: Golden) -> None:
        graph = net(
            f"c = Conv(x, w) n = {self.C.format('c')} m2 = Mul(n, k) a = Add(m2, k) r = Relu(a) "
            f"p = {self.C.format('r')} y = Sub(p, k)",
            "float[1,2,5,5] x => float[1,4,3,3] y",
            self.NORM + self.weights(4, 2, 3, 3) + ", float[4,1,1] k = {1, 2, 3, 4}",
        )
        golden(str(same(graph, FoldBatchNorm()(graph))), "fold_batchnorm")

    def test_half_precision(self) -> None:
        x, y, c = Value("x", np.float16, (1, 2, 4, 4)), Value("y"), Value("c")
        rng = np.random.default_rng(0)
        half = [Value(f"p{i}", data=rng.uniform(0.5, 1.5, 3).astype(np.float16)) for i in range(4)]
        w = Value("w", data=rng.standard_normal((3, 2, 1, 1)).astype(np.float16))
        graph = Graph("g", [x], [y], [Node("Conv", [x, w], [c]), Node("BatchNormalization", [c, *half], [y])])
        infer_shapes(graph)
        result = same(graph, FoldBatchNorm()(graph), 5e-3)
        assert {v.dtype for v in result.constants()} == {np.dtype(np.float16)}


class TestCanonicalize:
    @pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
    @pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "Conv", "ConvTranspose"])
    @pytest.mark.parametrize("stride", [1, 2, 3])
    def test_padding_becomes_explicit(self, mode: str, op: str, stride: int) -> None:
        weight = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32)
        weighted = op.startswith("Conv")
        attributes = {"auto_pad": mode, "strides": [stride, 1]} | ({} if weighted else {"kernel_shape": [3, 4]})
        x, y = Value("x", np.float32, (1, 2, 8, 7)), Value("y")
        node = Node(op, [x, Value("w", data=weight)] if weighted else [x], [y], attributes)
        graph = Graph("g", [x], [y], [node])
        infer_shapes(graph)
        result = same(graph, Canonicalize()(graph))
        assert "auto_pad" not in result.nodes[0].attributes
        assert result.nodes[0].attributes["kernel_shape"] == [3, 4]

    def test_open_extents_keep_auto_pad(self) -> None:
        graph = net(
            'y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], auto_pad = "SAME_UPPER">(x)',
            "float[1,2,h,w] x => float[1,2,a,b] y",
        )
        assert Canonicalize()(graph) is graph

    def test_an_initial_state_of_zeros_is_left_out(self) -> None:
        graph = net(
            "y, h, c = LSTM<hidden_size = 2>(x, w, r, none, none, zero, some)".replace("none", ""),
            "float[3,1,2] x => float[3,1,1,2] y, float[1,1,2] h, float[1,1,2] c",
            "float[1,8,2] w = {" + ", ".join(["0.5"] * 16) + "}, float[1,8,2] r = {" + ", ".join(["0.1"] * 16) + "},"
            "float[1,1,2] zero = {0, 0}, float[1,1,2] some = {0, 1}",
        )
        operands = same(graph, Canonicalize()(graph)).nodes[0].inputs
        assert operands[5] is None and operands[6] is not None

    def test_axes_count_from_the_front(self, golden: Golden) -> None:
        graph = net(
            """a = Softmax(x) b = Concat<axis = -2>(a, x) c, d = Split<axis = -1, split = [1, 2]>(b)
               y = Gather<axis = -1>(d, i)""".replace(", split = [1, 2]", "").replace("(b)", "(b, parts)"),
            "float[2,3] x => float[4] y",
            "int64[2] parts = {1, 2}, int64 i = {1}",
        )
        golden(str(same(graph, Canonicalize()(graph))), "canonicalize")


def test_helpers_agree_with_onnx_on_default_axes() -> None:
    """The defaults in canonicalize are those of the standard."""
    import onnx

    from passes.simplify.canonicalize import _AXIS

    for op, default in _AXIS.items():
        attribute = onnx.defs.get_schema(op, 23).attributes.get("axis")
        stated = (
            helper.get_attribute_value(attribute.default_value) if attribute and attribute.default_value.name else None
        )
        assert stated == default, op
