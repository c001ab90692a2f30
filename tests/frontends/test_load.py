"""What loading keeps, drops and names: shapes, constants, bodies, functions, types, metadata."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser

from compiler.exporters import to_model_proto
from compiler.frontends import FRONTENDS, Frontend, check_ops, load, parse_shape, register_frontend
from compiler.ir import MIN_OPSET, Graph, SecateurError, infer_shapes, shape_rule, subgraphs
from compiler.ir.execute import execute, random_inputs, relative_difference
from compiler.ir.shapes import SHAPE_RULES
from tests.models import LIGHT_MODELS, SMALL_LIGHT_MODELS, light_model, light_path

TWO_INPUTS = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[batch,3,h,w] image, float[batch,k] extra, float[?,4] open) => (float[batch,k] y, float[] z) {
  p = ReduceMax<keepdims = 0>(image)
  y = Add(extra, p)
  z = ReduceSum<keepdims = 0>(open)
}
"""


def test_paths_and_messages_load_alike(tmp_path: Path) -> None:
    path = light_path("zfnet512")
    texts = {str(load(source)) for source in (path, str(path), onnx.load(path))}
    assert len(texts) == 1


def test_the_given_message_is_not_changed() -> None:
    model = onnx.load(light_path("zfnet512"))
    before = model.SerializeToString()
    load(model, shapes={"gpu_0/data_0": (1, 3, 224, 224)})
    assert model.SerializeToString() == before


@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_light_models_lift_to_typed_graphs(name: str) -> None:
    graph = load(light_path(name))
    assert graph.opset == MIN_OPSET
    assert len(graph.inputs) == len(graph.outputs) == 1  # IR version 3 lists weights as inputs
    assert all(v.static_shape is not None and v.dtype is not None for v in graph.values())
    check_ops(graph)


@pytest.mark.parametrize("name", SMALL_LIGHT_MODELS)
def test_light_models_survive_the_round_trip(name: str) -> None:
    model = light_model(name)
    graph = load(model)
    inputs = random_inputs(graph)
    expected = execute(model, inputs)
    assert all(np.isfinite(v).all() and v.std() > 0 for v in expected.values())
    again = load(to_model_proto(graph))
    assert relative_difference(execute(again, inputs), expected) <= 1e-5
    assert [v.name for v in again.inputs + again.outputs] == [v.name for v in graph.inputs + graph.outputs]


@pytest.mark.parametrize("name", sorted(set(LIGHT_MODELS) - set(SMALL_LIGHT_MODELS)))
def test_heavy_light_models_survive_the_round_trip(name: str) -> None:
    graph = load(light_path(name))
    again = load(to_model_proto(graph))
    assert str(again) == str(graph)


def test_origin_and_names() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        net (float[2] x) => (float[2] y) { [same] a = Relu(x) [same] b = Tanh(a) y = Neg(b) }""")
    graph = load(model)
    assert [n.name for n in graph.nodes] == ["same", "same_1", "y"]
    assert [n.origin.path for n in graph.nodes if n.origin] == ["same", "same", "y"]


def test_graph_name() -> None:
    model = parser.parse_model(TWO_INPUTS)
    assert load(model).name == "net"
    assert load(model, name="other").name == "other"
    model.graph.name = ""
    with pytest.raises(SecateurError, match="name"):  # the standard wants one
        load(model)


def test_unsorted_nodes_are_sorted() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        net (float[2] x) => (float[2] y) { y = Neg(b) b = Tanh(a) a = Relu(x) }""")
    assert [n.op for n in load(model).nodes] == ["Relu", "Tanh", "Neg"]


def test_unused_things_disappear() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1, "ai.onnx.ml" : 3]>
        net (float[2] x) => (float[2] y) <float[2] unused = {1, 2}> { y = Neg(x) }""")
    graph = load(model)
    assert graph.constants() == []
    assert graph.domains == {}


def test_the_other_spelling_of_the_standard_domain() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["ai.onnx" : 21]>
        net (float[2] x) => (float[2] y) { y = ai.onnx.Neg(x) }""")
    assert load(model).nodes[0].qualified_op == "Neg"


def test_metadata_is_kept() -> None:
    model = parser.parse_model(TWO_INPUTS)
    model.metadata_props.add(key="licence", value="MIT")
    model.opset_import[0].version = 17
    graph = load(model)
    assert graph.metadata == {"licence": "MIT"}
    exported = to_model_proto(graph)
    assert [(p.key, p.value) for p in exported.metadata_props] == [("licence", "MIT")]
    assert exported.producer_name == "secateur"


class TestShapes:
    def test_symbols_are_kept_and_open_dims_named(self) -> None:
        graph = load(parser.parse_model(TWO_INPUTS))
        shapes = {v.name: v.shape for v in graph.inputs}
        assert shapes == {"image": ("batch", 3, "h", "w"), "extra": ("batch", "k"), "open": ("open_dim0", 4)}
        assert graph.outputs[0].shape == ("batch", "k")

    def test_binding_reaches_every_use_of_a_symbol(self) -> None:
        graph = load(parser.parse_model(TWO_INPUTS), shapes={"image": (2, 3, 8, 9)})
        assert [v.shape for v in graph.inputs] == [(2, 3, 8, 9), (2, "k"), ("open_dim0", 4)]
        assert graph.outputs[0].shape == (2, "k")

    def test_inner_shapes_follow(self) -> None:
        model = light_model("squeezenet")
        for info in (*model.graph.input, *model.graph.output):
            if info.name in ("data_0", "softmaxout_1"):
                info.type.tensor_type.shape.dim[0].dim_param = "n"
        free, bound = load(model), load(model, shapes={"data_0": (4, 3, 224, 224)})
        assert free.outputs[0].shape == ("n", 1000, 1, 1)
        assert bound.outputs[0].shape == (4, 1000, 1, 1)

    @pytest.mark.parametrize(
        ("shapes", "code", "message"),
        [
            ({"imagee": (1,)}, "E_UNKNOWN_INPUT", "no input called 'imagee'"),
            ({"image": (1, 4, 8, 8)}, "E_BIND_SHAPE", "axis 1 is 3 in the model"),
            ({"image": (1, 3, 8)}, "E_BIND_SHAPE", "has 4 axes"),
            ({"image": (1, 3, 8, -1)}, "E_BIND_SHAPE", "cannot be negative"),
            ({"image": (1, 3, 8, 8), "extra": (2, 5)}, "E_BIND_SHAPE", "'batch' is already 1"),
        ],
    )
    def test_contradictions(self, shapes: Any, code: str, message: str, golden: Any) -> None:
        with pytest.raises(SecateurError, match=message) as caught:
            load(parser.parse_model(TWO_INPUTS), shapes=shapes)
        assert caught.value.code == code
        golden(str(caught.value), f"errors/bind_{message.replace(' ', '_').replace(chr(39), '')}")

    def test_weights_are_no_inputs_to_bind(self) -> None:
        with pytest.raises(SecateurError, match="no input called 'conv1_w_0'"):
            load(light_model("squeezenet"), shapes={"conv1_w_0": (1,)})

    def test_negative_extents_of_old_exporters_are_open(self) -> None:
        model = parser.parse_model(TWO_INPUTS)
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -1
        assert load(model).inputs[0].shape == ("batch", 3, "image_dim2", "w")

    @pytest.mark.parametrize(
        ("text", "parsed"),
        [
            ("x=1x3x224x224", ("x", (1, 3, 224, 224))),
            ("a=b=2,5", ("a=b", (2, 5))),
            ("scalar=", ("scalar", ())),
            ("input.1= 7 ", ("input.1", (7,))),
        ],
    )
    def test_option(self, text: str, parsed: Any) -> None:
        assert parse_shape(text) == parsed

    @pytest.mark.parametrize("text", ["x", "=1x2", "x=1xx2", "x=-1", "x=1x", "x=a", ""])
    def test_malformed_option(self, text: str) -> None:
        with pytest.raises(SecateurError, match="cannot read the shape"):
            parse_shape(text)


class TestConstants:
    def test_every_form_of_constant_node(self) -> None:
        model = parser.parse_model("""
            <ir_version: 10, opset_import: ["" : 21]>
            net (float[2] x) => (float[2] a, float[2] b, int64 c, int64[2] d, string e, string[2] f, float[2] g) {
              t = Constant<value = float[2] {1, 2}>()
              a = Add(x, t)
              v = Constant<value_float = 2.5>()
              b = Mul(x, v)
              c = Constant<value_int = 3>()
              d = Constant<value_ints = [4, 5]>()
              e = Constant<value_string = "s">()
              f = Constant<value_strings = ["t", "u"]>()
              g = Constant<value_floats = [1.5, 2.5]>()
            }""")
        graph = load(model)
        assert [n.op for n in graph.nodes] == ["Add", "Mul"]
        x = {"x": np.ones(2, np.float32)}
        expected, actual = execute(model, x), execute(to_model_proto(graph), x)
        assert {k: v.tolist() for k, v in actual.items()} == {k: v.tolist() for k, v in expected.items()}

    def test_sparse_initializers_become_dense(self) -> None:
        model = parser.parse_model("""
            <ir_version: 10, opset_import: ["" : 21]>
            net (float[2,3] x) => (float[2,3] y) { a = Add(x, w) y = Add(a, v) }""")
        values = helper.make_tensor("w", TensorProto.FLOAT, [2], [5.0, 7.0])
        flat = helper.make_tensor("i", TensorProto.INT64, [2], [1, 5])
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, flat, [2, 3]))
        values = helper.make_tensor("v", TensorProto.FLOAT, [1], [9.0])
        pairs = helper.make_tensor("j", TensorProto.INT64, [1, 2], [1, 0])
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, pairs, [2, 3]))
        graph = load(model)
        np.testing.assert_array_equal(graph.value("w").numpy(), [[0, 5, 0], [0, 0, 7]])
        np.testing.assert_array_equal(graph.value("v").numpy(), [[0, 0, 0], [9, 0, 0]])

    @pytest.mark.parametrize(
        "kind",
        [
            *(np.float16, np.float64, np.int8, np.uint8, np.int32, np.int64, np.bool_, object),
            *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4, ml_dtypes.uint4),
        ],
        ids=lambda kind: np.dtype(kind).name,
    )
    def test_element_types_survive(self, kind: type) -> None:
        texts = kind is object
        array = np.array(["a", "ü", ""], dtype=object) if texts else np.array([0, 1, 1]).astype(kind)
        element = TensorProto.STRING if texts else helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        infos = [helper.make_tensor_value_info(n, element, [3]) for n in ("x", "y", "z")]
        nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["w"], ["z"])]
        graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [numpy_helper.from_array(array, "w")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
        loaded = load(to_model_proto(load(model)))
        assert loaded.inputs[0].dtype == np.dtype(kind)
        assert loaded.value("w").numpy().tolist() == array.tolist()


class TestBodies:
    MODEL = """
        <ir_version: 10, opset_import: ["" : 21]>
        net (bool c, float[2] x) => (float[2] y, float[2] z) <float[2] w = {3, 4}> {
          h = Relu(x)
          y = If (c) <
            then_branch = a () => (float[2] r) { k = Constant<value = float[2] {1, 2}>() s = Add(h, w) r = Add(s, k) },
            else_branch = a () => (float[2] r) { k = Constant<value = float[2] {5, 6}>() s = Sub(h, w) r = Add(s, k) }>
          z = If (c) <then_branch = t () => (float[2] q) { q = Identity(w) },
                      else_branch = e () => (float[2] q) { q = Constant<value = float[2] {8, 9}>() }>
        }"""

    def test_bodies_share_outer_values(self) -> None:
        graph = load(parser.parse_model(self.MODEL))
        then, other = subgraphs(graph.nodes[1])
        assert then.nodes[0].inputs == other.nodes[0].inputs == [graph.nodes[0].outputs[0], then.value("w")]

    def test_names_are_unique_everywhere(self) -> None:
        graph = load(parser.parse_model(self.MODEL))
        bodies = [b for n in graph.nodes for b in subgraphs(n)]
        names = [v.name for b in bodies for n in b.nodes for v in n.outputs]
        assert len(names) == len(set(names))

    @pytest.mark.parametrize("flag", [True, False])
    def test_round_trip(self, flag: bool) -> None:
        model = parser.parse_model(self.MODEL)
        feeds = {"c": np.array(flag), "x": np.array([1, -1], np.float32)}
        again = load(to_model_proto(load(model)))
        assert relative_difference(execute(again, feeds), execute(model, feeds)) == 0

    def test_text(self, golden: Any) -> None:
        golden(str(load(parser.parse_model(self.MODEL))), "load_bodies")

    def test_large_weights_inside_bodies(self) -> None:
        model = parser.parse_model(self.MODEL.replace("float[2] x", "float[1,40] x").replace("float[2]", "float[1,40]"))
        del model.graph.initializer[:], model.graph.node[2], model.graph.output[1]
        model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 40), np.float32), "w"))
        for i, attribute in enumerate(model.graph.node[1].attribute):
            del attribute.g.node[:]
            weight = np.full((40, 40), i + 1, np.float32)
            attribute.g.initializer.append(numpy_helper.from_array(weight, "same"))
            attribute.g.node.append(helper.make_node("MatMul", ["h", "same"], ["r"]))
        graph = load(model)
        for flag in (True, False):
            feeds = {"c": np.array(flag), "x": np.ones((1, 40), np.float32)}
            assert relative_difference(execute(graph, feeds), execute(model, feeds)) == 0

    def test_loop(self) -> None:
        model = parser.parse_model("""
            <ir_version: 10, opset_import: ["" : 21]>
            net (int64 n, float[2] x) => (float[2] y, float[k,2] trace) {
              go = Constant<value = bool {1}>()
              y, trace = Loop (n, go, x) <body = b (int64 i, bool c, float[2] v) => (bool c2, float[2] v2, float[2] t) {
                c2 = Identity(c) v2 = Add(v, x) t = Neg(v2) }>
            }""")
        feeds = {"n": np.array(3), "x": np.array([1, 2], np.float32)}
        assert relative_difference(execute(load(to_model_proto(load(model))), feeds), execute(model, feeds)) == 0


def test_local_functions_are_inlined() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        net (float[2] x) => (float[2] y) { a = local.twice(x) y = local.twice(a) }
        <domain: "local", opset_import: ["" : 21]>
        twice (v) => (w) { two = Constant<value_float = 2.0>() w = Mul(v, two) }""")
    graph = load(model)
    assert [n.qualified_op for n in graph.nodes] == ["Mul", "Mul"]
    x = {"x": np.array([1, 2], np.float32)}
    np.testing.assert_array_equal(execute(graph, x)["y"], [4, 8])


def test_functions_of_an_older_opset_are_lifted() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 13, "local" : 1]>
        net (float[2,3] x) => (float[] y) { y = local.mean(x) }
        <domain: "local", opset_import: ["" : 13]>
        mean (v) => (w) { w = ReduceMean<axes = [1]>(v) }""")
    x = {"x": np.arange(6, dtype=np.float32).reshape(2, 3)}
    np.testing.assert_allclose(execute(load(model), x)["y"], [[1], [4]])


def test_omitted_operands_and_results() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        net (float[3,2,4] x) => (float[1,2,5] h) { , h = LSTM<hidden_size = 5>(x, w, r, , , , ) }""")
    for name, shape in (("w", (1, 20, 4)), ("r", (1, 20, 5))):
        model.graph.initializer.append(numpy_helper.from_array(np.full(shape, 0.1, np.float32), name))
    graph = load(model)
    assert len(graph.nodes[0].inputs) == 3
    x = {"x": np.ones((3, 2, 4), np.float32)}
    assert relative_difference(execute(graph, x), execute(model, x)) < 1e-6


def test_operators_with_a_shape_rule_are_known() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        net (float[2,n] x) => (float[2,n] y) { g = com.microsoft.TestGelu(x) y = Relu(g) }""")
    with pytest.raises(SecateurError, match="TestGelu"):
        load(model)
    try:
        shape_rule("TestGelu", "com.microsoft")(lambda node: [(node.inputs[0].dtype, node.inputs[0].shape)])
        graph = load(model)
        assert graph.nodes[0].outputs[0].shape == graph.outputs[0].shape == (2, "n")
    finally:
        SHAPE_RULES.pop(("com.microsoft", "TestGelu"), None)
    with pytest.raises(SecateurError, match="TestGelu"):
        check_ops(graph)


def test_an_output_of_unknown_rank_is_fine() -> None:
    model = parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        net (float[2,3] x, int64[k] s) => (float[] y) { y = Reshape(x, s) }""")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    graph = load(to_model_proto(load(model)))
    assert graph.outputs[0].shape is None
    np.testing.assert_array_equal(
        execute(graph, {"x": np.ones((2, 3), np.float32), "s": np.array([6])})["y"], np.ones(6)
    )


def test_frontends_can_be_added() -> None:
    class Thing:
        pass

    graph = Graph("made", [], [], [])
    register_frontend(Frontend("thing", "a Thing", lambda s: isinstance(s, Thing), lambda s, **_: graph))
    try:
        assert load(Thing()) is graph
        with pytest.raises(SecateurError, match="nothing reads") as caught:
            load(3.14)
        assert "a Thing" in caught.value.hint
    finally:
        FRONTENDS.pop("thing")


_ZFNET = light_path("zfnet512").read_bytes()


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(0, len(_ZFNET) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_bytes_never_crash(changes: list[tuple[int, int]]) -> None:
    """Whatever the bytes, there is a graph or one clear error."""
    data = bytearray(_ZFNET)
    for place, byte in changes:
        data[place] = byte
    model = onnx.ModelProto()
    try:
        model.ParseFromString(bytes(data))
    except Exception:
        return
    with contextlib.suppress(SecateurError):
        infer_shapes(load(model))
