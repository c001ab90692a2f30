"""Small networks for backend tests, and their answers from ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper


def single(
    op: str,
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray] | None = None,
    outputs: int = 1,
    opset: int = 21,
    **attributes: object,
) -> onnx.ModelProto:
    """A model of one node: operands in order, inputs first then constants, "" for one that is omitted."""
    constants = dict(constants or {})
    names = [*inputs, *constants]
    results = [f"y{i}" for i in range(outputs)]
    return network(
        [helper.make_node(op, [n.strip() for n in names], results, **attributes)], inputs, constants, results, opset
    )


def network(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    constants: Mapping[str, np.ndarray],
    outputs: Sequence[str],
    opset: int = 21,
) -> onnx.ModelProto:
    """A model whose inputs have the types of the arrays given, and inferred outputs."""
    graph = helper.make_graph(
        nodes,
        "network",
        [_info(name, array) for name, array in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name.strip()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    typed = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return typed


def _info(name: str, array: np.ndarray) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def reference(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime answers."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in model.graph.output]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def assert_same(expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray], where: str = "") -> None:
    """Equal names, types and shapes; floats to 1e-4 of the norm, everything else exactly."""
    assert set(expected) == set(actual)
    for name, wanted in expected.items():
        got = actual[name]
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), f"{where} {name}"
        if wanted.dtype.kind != "f":
            np.testing.assert_array_equal(got, wanted, err_msg=where)
            continue
        np.testing.assert_array_equal(np.isfinite(got), np.isfinite(wanted), err_msg=where)
        finite = np.isfinite(wanted)
        distance = np.linalg.norm((got - wanted)[finite].astype(np.float64))
        assert distance <= 1e-4 * np.linalg.norm(wanted[finite].astype(np.float64)) + 1e-6, (
            f"{where} {name}: {distance}"
        )


def small_cnn(seed: int = 0) -> onnx.ModelProto:
    """Convolutions with BatchNormalization, a residual, two branches joined by Concat, pooling, a classifier."""
    random = np.random.default_rng(seed)
    weights = {
        "w1": random.standard_normal((8, 3, 3, 3)) * 0.2,
        "w2": random.standard_normal((8, 8, 3, 3)) * 0.1,
        "gamma": random.uniform(0.5, 1.5, 8),
        "beta": random.standard_normal(8) * 0.1,
        "mean": random.standard_normal(8) * 0.1,
        "var": random.uniform(0.5, 1.5, 8),
        "fc": random.standard_normal((10, 16)) * 0.2,
        "fb": random.standard_normal(10),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c1", "gamma", "beta", "mean", "var"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["a"]),
        helper.make_node("HardSwish", ["a"], ["r2"]),
        helper.make_node("MaxPool", ["r2"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("AveragePool", ["r2"], ["p2"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Concat", ["p1", "p2"], ["j"], axis=1),
        helper.make_node("GlobalAveragePool", ["j"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "fc", "fb"], ["l"], transB=1),
        helper.make_node("Softmax", ["l"], ["y"]),
    ]
    inputs = {"x": np.zeros((1, 3, 32, 32), np.float32)}
    return network(nodes, inputs, {k: v.astype(np.float32) for k, v in weights.items()}, ["y"])
