"""The ONNX node tests on the native backend: `make conformance` runs them all, linked into one library.

Inputs that ONNX lets be computed but that a static compiler needs to know (axes, pads, shapes, k) are made
constants of the model first, with the values of the test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

from compiler.errors import SecateurError
from compiler.frontends.onnx import load_onnx
from tests.backends.inprocess import Case, compile_case, execute, link

TYPES = {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}
UNCOVERED = re.compile(
    r"^(adagrad|adam|ai_onnx_ml|attention|bernoulli|blackman|center_crop|col2im|constant_of|deform|det|dequantize|dft"
    r"|dropout_.*mask|dynamicq|einsum_.*str|grid|gru|hamming|hann|if|image_decoder|loop|lstm|max_?unpool|mel|momentum"
    r"|nan|nesterov|nllloss|nonmax|nonzero|optional|qlinear|quantize|flexattention|linear_attention|simple_rnn|basic_deform|random|range|regex|reversesequence|rnn|rotary"
    r"|roialign|scan|sce|sequence|split_to_sequence|stft|string|tensorscatter|tfidf|training_dropout|unique|affine_grid"
    r"|affinegrid|causal)"
)
"""Operators that this backend leaves to others: recurrent, quantised, random, sequences, control flow, training."""

DEVIATIONS = {
    "resize_downsample_scales_linear_align_corners",  # ONNX Runtime's answer differs too, and is ours
    "resize_downsample_scales_cubic_align_corners",
    "batchnorm_example_training_mode",  # training
    "batchnorm_epsilon_training_mode",
    "not_2d",  # opset 1
    "not_3d",
    "not_4d",
    "swiglu",  # a draft opset
    "swiglu_alpha",
}


@dataclass
class NodeTest:
    """A node test's model and its first data set."""

    name: str
    model: onnx.ModelProto
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]
    rtol: float


def node_tests() -> Iterator[NodeTest]:
    """Every node test over supported element types whose data are plain tensors."""
    for test in load_model_tests(kind="node"):
        name = test.name.removeprefix("test_")
        if name in DEVIATIONS or UNCOVERED.match(name) or test.model is None or not test.data_sets:
            continue
        graph = test.model.graph
        tensors = (*graph.input, *graph.output)
        if any(i.type.WhichOneof("value") != "tensor_type" for i in tensors):
            continue
        if any(i.type.tensor_type.elem_type not in TYPES for i in tensors):
            continue
        inputs, outputs = ([np.asarray(a) for a in side] for side in test.data_sets[0])
        yield NodeTest(name, test.model, inputs, outputs, test.rtol)


def bake_integers(test: NodeTest) -> NodeTest:
    """Integer and boolean inputs as constants, so that what shapes depend on is known; and empty optional ones."""
    model = onnx.ModelProto()
    model.CopyFrom(test.model)
    kept = []
    arrays = []
    count = len(test.inputs)
    for index, (info, array) in enumerate(zip(list(model.graph.input), test.inputs, strict=True)):
        known = array.dtype.kind in "ib" or (count > 1 and array.ndim <= 1 and index > 0 and array.size <= 8)
        if known and not (index == 0 and count == 1):
            model.graph.initializer.append(numpy_helper.from_array(array, info.name))
        else:
            kept.append(info)
            arrays.append(array)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return NodeTest(test.name, model, arrays, test.outputs, test.rtol)


def prepare(test: NodeTest, seen: set[str]) -> tuple[NodeTest, Case]:
    """Compile a test as it is, or, where a shape depends on an input, with that input known."""
    try:
        return test, compile_case(load_onnx(test.model), seen)
    except SecateurError:
        baked = bake_integers(test)
        return baked, compile_case(load_onnx(baked.model), seen)


def check(test: NodeTest, results: dict[str, np.ndarray]) -> None:
    """Compare with the recorded outputs, which are in the model's order."""
    for info, expected in zip(test.model.graph.output, test.outputs, strict=True):
        actual = results[info.name]
        assert actual.dtype == expected.dtype and actual.shape == expected.shape, (actual.shape, expected.shape)
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(actual, expected, rtol=max(test.rtol, 1e-3), atol=1e-5)
        else:
            np.testing.assert_array_equal(actual, expected)


def run_batch(tests: list[NodeTest]) -> None:
    """Compile tests together, run each, and report all that fail."""
    prepared, failures = [], []
    seen: set[str] = set()
    for test in tests:
        try:
            prepared.append(prepare(test, seen))
        except Exception as error:
            failures.append(f"{test.name}: {type(error).__name__}: {str(error).splitlines()[0]}")
    libraries = link([case for _, case in prepared])
    for (test, case), library in zip(prepared, libraries, strict=True):
        feeds = dict(zip([i.name for i in test.model.graph.input], test.inputs, strict=True))
        try:
            check(test, execute(case, library, feeds))
        except Exception as error:
            failures.append(f"{test.name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    assert not failures, f"{len(failures)} of {len(tests)} failed:\n" + "\n".join(failures)


def test_all_node_tests() -> None:
    tests = list(node_tests())
    print(f"{len(tests)} node tests")
    run_batch(tests)
