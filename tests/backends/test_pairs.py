"""A 1x1 convolution and the depthwise one after it as one kernel: right on any shape, taken only where it may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.lowering import lower
from backends.pairs import choose_pair
from backends.schedules import ConvSpec, Epilogue, SparseConvSpec, SparseDepthwiseSpec, sparse_depthwise
from backends.schedules.windows_in_place import WindowsInPlace
from backends.target import Target
from compiler.frontends.onnx import load_onnx
from tests.backends.inprocess import run_models
from tests.backends.schedules_harness import TOLERANCE, Library
from tests.backends.test_sparse import EPILOGUES, reference

NATIVE = Target.native()
# Small caches cut even small images into bands.
TARGETS = {
    "native": NATIVE,
    "narrow": dataclasses.replace(NATIVE, vector_bytes=16, vector_registers=16, l1_bytes=4096, l2_bytes=32768),
    "small": dataclasses.replace(NATIVE, l1_bytes=8192, l2_bytes=16384),
    "half": dataclasses.replace(NATIVE, vector_bytes=16, vector_registers=32, l2_bytes=65536, dtype="float16"),
}


def specs(seed: int, count: int, on: Target) -> Iterator[SparseDepthwiseSpec]:
    r = np.random.default_rng(seed)
    index = 0
    while index < count:
        batch, inputs, outputs = int(r.integers(1, 3)), int(r.integers(1, 40)), int(r.integers(1, 24))
        height, width = (int(r.choice([1, 7, 14, 28, int(r.integers(1, 70))])) for _ in range(2))
        kernel, strides = (
            tuple(int(k) for k in r.choice([1, 3, 3, 5, 7], 2)),
            tuple(int(s) for s in r.integers(1, 3, 2)),
        )
        dilations, pads = tuple(int(d) for d in r.choice([1, 1, 2], 2)), tuple(int(p) for p in r.integers(0, 4, 4))
        if min(height + pads[0] + pads[2], width + pads[1] + pads[3]) <= max(
            d * (k - 1) for d, k in zip(dilations, kernel, strict=True)
        ):
            continue
        before = dataclasses.replace(EPILOGUES[int(r.integers(len(EPILOGUES)))], residual=False)
        after = EPILOGUES[int(r.integers(len(EPILOGUES)))]
        first = ConvSpec(batch, inputs, height, width, outputs, (1, 1), epilogue=before)
        second = ConvSpec(batch, outputs, height, width, outputs, kernel, strides, pads, dilations, outputs, after)
        block = int(r.choice([1, 2, 3, 4]))
        sparse = SparseConvSpec(
            first, block, int(r.integers(1, 8 // block + 2)), patterns=index % 4 == 1, deltas=index % 4 > 1
        )
        spec = SparseDepthwiseSpec(sparse, second)
        if spec.supported(on):
            index += 1
            yield spec


@pytest.mark.parametrize("name", TARGETS)
def test_pairs_of_all_shapes(name):
    on, r = TARGETS[name], np.random.default_rng(3)
    chosen = list(specs(len(name), 10, on))
    kernels = [sparse_depthwise(spec, on, bool(i % 2)) for i, spec in enumerate(chosen)]
    library = Library([kernel.func for kernel in kernels], on)
    for index, (spec, kernel) in enumerate(zip(chosen, kernels, strict=True)):
        first, second = spec.first.conv, spec.second
        w = r.standard_normal((first.out_channels, first.in_channels, 1, 1)).astype(np.float32)
        w[r.random(w.shape) >= (0.1, 0.5, 1.0, 0.0)[index % 4]] = 0
        taps = r.standard_normal((second.out_channels, 1, *second.kernel)).astype(np.float32)
        biases = [r.standard_normal(first.out_channels).astype(np.float32) for _ in range(2)]
        x = r.standard_normal((first.batch, first.in_channels, first.height, first.width)).astype(np.float32)
        shape = (second.batch, second.out_channels, second.out_height, second.out_width)
        arrays = {"residual": r.standard_normal(shape).astype(np.float32)} if second.epilogue.residual else {}
        middle = reference(first, {"x": x}, w, biases[0])
        expected = reference(second, {"x": middle, **arrays}, taps, biases[1])
        library.set_tasks(1 + index % 4)
        packed = kernel.pack(w, biases[0], taps, biases[1])
        actual = library.call(kernel, {"x": x, **arrays, **packed}, shape, bool(index % 3))
        error = np.linalg.norm(actual.astype(np.float64) - expected)
        assert error <= TOLERANCE[on.dtype] * np.linalg.norm(expected) + 1e-30, spec


def test_the_small_machines_cut_images_into_bands():
    bands = {spec.bands(on) for name, on in TARGETS.items() for spec in specs(len(name), 10, on)}
    assert len(bands) > 2


@pytest.mark.parametrize(
    ("stride", "dilation", "size", "in_place"),
    [(1, 1, 14, True), (2, 1, 35, True), (3, 1, 35, False), (1, 9, 33, True), (1, 30, 200, False)],
)
def test_which_windows_are_read_in_place(stride, dilation, size, in_place):
    spec = ConvSpec(1, 4, size, size, 4, (3, 3), (stride,) * 2, (dilation,) * 4, (dilation,) * 2, 4)
    assert WindowsInPlace.of(spec, NATIVE).applies is in_place


def test_a_line_shorter_than_half_a_vector_is_not_read_in_place():
    spec = ConvSpec(1, 4, 1, 2, 4, (1, 1), pads=(0, 3, 0, 3), groups=4)
    assert not WindowsInPlace.of(spec, NATIVE).applies


def block(size: int, inputs: int, outputs: int, density: float, *, tail: str = "") -> onnx.ModelProto:
    """1x1, ReLU, depthwise 3x3, ReLU6; `tail`: "output" or "reader" of what lies between."""
    r = np.random.default_rng(5)
    w = r.standard_normal((outputs, inputs, 1, 1)).astype(np.float32)
    w[r.random(w.shape) >= density] = 0
    constants = {
        "w": w,
        "b": r.standard_normal(outputs).astype(np.float32),
        "t": r.standard_normal((outputs, 1, 3, 3)).astype(np.float32),
        "c": r.standard_normal(outputs).astype(np.float32),
        "low": np.float32(0),
        "high": np.float32(6),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["m"], name="expand"),
        helper.make_node("Relu", ["m"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "t", "c"], ["d"], name="depthwise", group=outputs, pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["d", "low", "high"], ["y"], name="clip"),
    ]
    outs = ["y"]
    if tail == "output":
        outs.append("r")
    if tail == "reader":
        nodes.append(helper.make_node("GlobalMaxPool", ["r"], ["p"], name="pool"))
        outs.append("p")
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, inputs, size, size])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def agrees(model: onnx.ModelProto) -> None:
    """Compiled, as in ONNX Runtime."""
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": np.random.default_rng(1).standard_normal(shape).astype(np.float32)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    actual = run_models([(model, feeds)])[0]
    for output, expected in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        error = np.linalg.norm(actual[output.name] - expected)
        assert error <= 1e-5 * np.linalg.norm(expected)


def test_a_sparse_expansion_joins_its_depthwise_convolution_and_agrees_with_onnx_runtime():
    model = block(112, 16, 96, 0.1)
    steps = lower(load_onnx(model), NATIVE).steps
    assert [step.schedule for step in steps] == ["sparse_depthwise"]
    assert steps[0].nodes == ("expand", "relu", "depthwise", "clip")
    assert steps[0].details["nonzeros"] < 0.2 * steps[0].details["weights"]
    assert steps[0].details["chosen_by"] == "cost"
    agrees(model)


@pytest.mark.parametrize("tail", ["output", "reader"])
def test_what_something_else_reads_is_kept(tail):
    model = block(112, 16, 96, 0.1, tail=tail)
    assert "sparse_depthwise" not in [step.schedule for step in lower(load_onnx(model), NATIVE).steps]
    agrees(model)


def test_pairs_are_not_taken_where_they_would_cost_more():
    relu = Epilogue(True, activation="relu")
    first = ConvSpec(1, 512, 7, 7, 1024, (1, 1), epilogue=relu)
    second = ConvSpec(1, 1024, 7, 7, 1024, (3, 3), pads=(1, 1, 1, 1), groups=1024, epilogue=relu)
    weights = np.zeros((1024, 512, 1, 1), np.float32)
    weights[:, ::2] = 1
    found = choose_pair(first, weights, second, NATIVE)
    assert found is not None and found.choice.chosen is found.apart
