"""Every opset from 7 on is lifted without a change of meaning: ONNX Runtime's answer before equals the one after.

onnx's version converter is silent about several operators whose meaning changed, so each kind of change is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper, parser

from compiler.frontends import load
from compiler.ir import MIN_OPSET, SecateurError
from compiler.ir.execute import execute, relative_difference
from passes.simplify import Simplify

RNG = np.random.default_rng(0)
MAP = (2, 6, 8, 8)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def positive(*shape: int) -> np.ndarray:
    return np.abs(floats(*shape)) + 0.1


@dataclass
class Case:
    op: str
    opset: int
    inputs: list[np.ndarray]
    constants: list[np.ndarray | None] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    results: int = 1

    def __str__(self) -> str:
        told = "-".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.op}-{self.opset}-{told}".replace(" ", "")

    def model(self) -> onnx.ModelProto:
        names = [f"x{i}" for i in range(len(self.inputs))]
        constants = [f"c{i}" if c is not None else "" for i, c in enumerate(self.constants)]
        results = [f"y{i}" for i in range(self.results)]
        infos = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
            for n, x in zip(names, self.inputs, strict=True)
        ]
        node = helper.make_node(self.op, [*names, *constants], results, name="node", **self.attributes)
        graph = helper.make_graph(
            [node],
            "g",
            infos,
            [helper.make_empty_tensor_value_info(r) for r in results],
            [numpy_helper.from_array(c, f"c{i}") for i, c in enumerate(self.constants) if c is not None],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def scales(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


_POOL = {"kernel_shape": [3, 3], "strides": [2, 2]}

CASES = [
    Case("Upsample", 7, [floats(*MAP)], [], {"mode": "nearest", "scales": [1.0, 1.0, 2.0, 2.0]}),
    Case("Upsample", 7, [floats(*MAP)], [], {"mode": "linear", "scales": [1.0, 1.0, 2.0, 2.0]}),
    Case("Upsample", 9, [floats(*MAP)], [scales(1, 1, 2, 2)], {"mode": "nearest"}),
    Case("Upsample", 9, [floats(*MAP)], [scales(1, 1, 2, 2)], {"mode": "linear"}),
    Case("Resize", 10, [floats(*MAP)], [scales(1, 1, 2, 2)], {"mode": "nearest"}),
    Case("Resize", 10, [floats(*MAP)], [scales(1, 1, 2, 2)], {"mode": "linear"}),
    Case("Resize", 10, [floats(*MAP)], [scales(1, 1, 0.6, 0.6)], {"mode": "nearest"}),
    Case("Resize", 10, [floats(*MAP)], [scales(1, 1, 0.6, 0.6)], {"mode": "linear"}),
    Case("Resize", 13, [floats(*MAP)], [None, scales(1, 1, 2, 2)], {"mode": "cubic"}),
    Case("Resize", 18, [floats(*MAP)], [None, scales(1, 1, 2, 2)], {"mode": "nearest"}),
    *(
        Case("BatchNormalization", o, [floats(*MAP)], [floats(6), floats(6), floats(6), positive(6)])
        for o in (7, 9, 14)
    ),
    Case("Dropout", 7, [floats(*MAP)], [], {"ratio": 0.5}),
    Case("Dropout", 12, [floats(*MAP)], [np.array(0.5, np.float32)], results=2),
    Case("Clip", 7, [floats(*MAP)], [], {"min": -0.1, "max": 0.5}),
    Case("Clip", 7, [floats(*MAP)]),
    Case("Clip", 11, [floats(*MAP)], [np.array(-0.1, np.float32)]),
    Case("Pad", 7, [floats(*MAP)], [], {"pads": [0, 0, 1, 1, 0, 0, 2, 2], "value": 0.5}),
    Case("Pad", 7, [floats(*MAP)], [], {"pads": [0, 0, 1, 1, 0, 0, 2, 2], "mode": "reflect"}),
    Case("Pad", 11, [floats(*MAP)], [ints(0, 0, 1, 1, 0, 0, 2, 2)]),
    Case("Slice", 7, [floats(*MAP)], [], {"starts": [1, 2], "ends": [5, 9999], "axes": [1, 2]}),
    Case("Slice", 7, [floats(*MAP)], [], {"starts": [0, 2], "ends": [2, -1]}),
    Case("Slice", 10, [floats(*MAP)], [ints(1), ints(5), ints(2), ints(2)]),
    *(Case(op, o, [floats(2, 3, 4)], [], {"axis": 1}) for op in ("Softmax", "LogSoftmax") for o in (7, 11, 13)),
    Case("Softmax", 7, [floats(2, 3, 4)]),
    Case("Softmax", 11, [floats(2, 3, 4)], [], {"axis": -1}),
    Case("Hardmax", 11, [floats(2, 3, 4)], [], {"axis": -1}),
    *(
        Case(op, o, [positive(*MAP)], [], {"axes": [2, 3], "keepdims": 0})
        for op in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceProd", "ReduceLogSum")
        for o in (7, 11, 17)
    ),
    Case("ReduceMean", 7, [floats(*MAP)]),
    Case("ReduceSum", 7, [floats(*MAP)], [], {"axes": [1]}),
    Case("ReduceSum", 13, [floats(*MAP)], [ints(2, 3)], {"keepdims": 0}),
    Case("ReduceSum", 13, [floats(*MAP)], [], {"noop_with_empty_axes": 1}),
    Case("Squeeze", 7, [floats(2, 1, 3, 1)], [], {"axes": [1, 3]}),
    Case("Squeeze", 7, [floats(2, 1, 3, 1)]),
    Case("Unsqueeze", 11, [floats(2, 3)], [], {"axes": [0, -1]}),
    Case("Split", 7, [floats(*MAP)], [], {"axis": 1, "split": [2, 4]}, results=2),
    Case("Split", 7, [floats(*MAP)], [], {"axis": 1}, results=3),
    Case("Split", 13, [floats(*MAP)], [ints(1, 5)], {"axis": 1}, results=2),
    Case("Split", 13, [floats(*MAP)], [], {"axis": 1}, results=2),
    Case("TopK", 7, [floats(3, 5)], [], {"k": 2}, results=2),
    Case("TopK", 10, [floats(3, 5)], [ints(2)], {"axis": 0}, results=2),
    Case("MaxPool", 8, [floats(*MAP)], [], {**_POOL, "auto_pad": "SAME_UPPER"}, results=2),
    Case("MaxPool", 7, [floats(*MAP)], [], {**_POOL, "auto_pad": "SAME_LOWER"}),
    Case("AveragePool", 7, [floats(*MAP)], [], {**_POOL, "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", 7, [floats(*MAP)], [], {**_POOL, "auto_pad": "VALID"}),
    Case("AveragePool", 10, [floats(*MAP)], [], {**_POOL, "ceil_mode": 1}),
    Case("Conv", 7, [floats(*MAP)], [floats(4, 6, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("Conv", 7, [floats(*MAP)], [floats(4, 6, 4, 4)], {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    Case("ConvTranspose", 7, [floats(*MAP)], [floats(6, 4, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("ConvTranspose", 7, [floats(*MAP)], [floats(6, 4, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    Case("Cast", 7, [floats(*MAP)], [], {"to": onnx.TensorProto.INT32}),
    Case("Gemm", 7, [floats(3, 4)], [floats(5, 4), floats(5)], {"transB": 1, "alpha": 0.5}),
    Case("Gemm", 11, [floats(3, 4)], [floats(4, 5)]),
    Case("Expand", 8, [floats(1, 3)], [ints(2, 3)]),
    Case("OneHot", 9, [ints(1, 2, 0)], [ints(3), scales(0, 1)]),
    Case("Scatter", 9, [floats(3, 3)], [np.array([[0, 1]]), floats(1, 2)], {"axis": 1}),
    Case("PRelu", 7, [floats(*MAP)], [floats(6, 1, 1)]),
    Case("Max", 7, [floats(3, 3), floats(3, 3)]),
    Case("Mean", 8, [floats(3, 3), floats(3)]),
    Case("LSTM", 7, [floats(3, 2, 4)], [floats(1, 20, 4), floats(1, 20, 5)], {"hidden_size": 5}, results=3),
    Case("GRU", 7, [floats(3, 2, 4)], [floats(1, 15, 4), floats(1, 15, 5)], {"hidden_size": 5}, results=2),
    Case("ArgMax", 7, [floats(3, 4)], [], {"axis": 1}),
    Case("GridSample", 16, [floats(1, 2, 5, 5), floats(1, 3, 3, 2) / 2], [], {"mode": "bilinear"}),
    Case("QuantizeLinear", 10, [floats(*MAP)], [np.array(0.1, np.float32), np.array(3, np.uint8)]),
    Case("DequantizeLinear", 13, [np.arange(12, dtype=np.int8).reshape(3, 4)], [scales(1, 2, 3)], {"axis": 0}),
    Case("MeanVarianceNormalization", 9, [floats(*MAP)]),
    Case("LpNormalization", 7, [floats(3, 4)]),
    Case("DepthToSpace", 7, [floats(2, 8, 3, 3)], [], {"blocksize": 2}),
    Case("Reshape", 7, [floats(*MAP)], [ints(0, -1)]),
    Case("LayerNormalization", 17, [floats(3, 4)], [floats(4)]),
    Case("NonZero", 9, [floats(3, 3)]),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_old_operator_keeps_its_meaning(case: Case) -> None:
    model = case.model()
    feeds = {f"x{i}": x for i, x in enumerate(case.inputs)}
    expected = execute(model, feeds, optimize=False)
    graph = load(model)
    assert graph.opset == MIN_OPSET
    for result in (graph, Simplify()(graph)):
        assert relative_difference(execute(result, feeds, optimize=False), expected) < 1e-6
        assert [v.name for v in result.outputs] == list(expected)


REFUSED = [
    (Case("Hardmax", 7, [floats(2, 3, 4)]), "Hardmax flattened its input"),
    (Case("Resize", 10, [floats(*MAP)], [scales(1, 1, 2, 0.5)], {"mode": "nearest"}), "both grows and shrinks"),
]


@pytest.mark.parametrize(("case", "message"), REFUSED, ids=lambda x: str(x))
def test_what_cannot_be_lifted_is_refused(case: Case, message: str) -> None:
    with pytest.raises(SecateurError, match=message) as caught:
        load(case.model())
    assert caught.value.code == "E_OPSET"


@pytest.mark.parametrize("opset", range(7, onnx.defs.onnx_opset_version() + 1))
def test_every_opset_loads(opset: int) -> None:
    """A small network whose operators are the same at all opsets."""
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        net (float[1,2,6,6] x) => (float[1,3] y)
        <float[3,2,3,3] w = {{{", ".join(f"{i / 54}" for i in range(54))}}}, float[3] b = {{0.1, 0.2, 0.3}}> {{
          c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
          r = Relu(c)
          p = GlobalAveragePool(r)
          f = Flatten(p)
          y = Softmax<axis = 1>(f)
        }}"""
    )
    x = {"x": floats(1, 2, 6, 6)}
    graph = load(model)
    assert graph.opset == max(opset, MIN_OPSET)
    if opset <= 24:  # what the installed ONNX Runtime is sure to run
        assert relative_difference(execute(graph, x), execute(model, x)) < 1e-6


def test_bodies_are_lifted_too() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 11]>
        g (bool c, float[2,1,3] x) => (float[2,3] y) {
          y = If (c) <
            then_branch = t () => (float[2,3] a) { a = Squeeze<axes = [1]>(x) },
            else_branch = e () => (float[2,3] b) { s = Softmax<axis = 2>(x) b = Squeeze<axes = [1]>(s) }>
        }""")
    for flag in (True, False):
        feeds = {"c": np.array(flag), "x": floats(2, 1, 3)}
        assert relative_difference(execute(load(model), feeds), execute(model, feeds)) < 1e-6


def test_names_of_the_converter_do_not_collide() -> None:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 11]>
        g (float[2,1,3] _v_4, float[2,3] _v_5, float[2,3] _v_6) => (float[2,3] y) {
          _v_7 = Squeeze<axes = [1]>(_v_4)
          _v_8 = Add(_v_7, _v_5)
          y = Add(_v_8, _v_6)
        }""")
    feeds = {"_v_4": floats(2, 1, 3), "_v_5": floats(2, 3), "_v_6": floats(2, 3)}
    assert relative_difference(execute(load(model), feeds), execute(model, feeds)) == 0


def test_lifting_is_deterministic() -> None:
    make: Callable[[], str] = lambda: str(load(CASES[0].model()))  # noqa: E731
    assert make() == make()
