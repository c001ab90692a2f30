"""Every operator family against ONNX Runtime, over shapes and attributes that hypothesis picks.

Cases are compiled in batches, without artifacts: linking is what takes the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import helper

from tests.backends.inprocess import run_models
from tests.backends.networks import assert_same, network, reference, single

Case = tuple[onnx.ModelProto, dict[str, np.ndarray]]
BATCH = 6
EXAMPLES = 3
PHASES = (Phase.explicit, Phase.generate)
"""No shrinking: each attempt would compile and link again, and the message names the one case that fails."""


def floats(draw: Any, *shape: int) -> np.ndarray:
    seed = draw(st.integers(0, 2**32 - 1))
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check(cases: list[Case]) -> None:
    """All cases give what ONNX Runtime gives."""
    for (model, feeds), actual in zip(cases, run_models(cases), strict=True):
        assert_same(reference(model, feeds), actual, onnx.printer.to_text(model.graph.node[0]))


def batches(case: Callable[..., Case]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test over a few lists of cases."""
    composite = st.composite(case)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        return settings(max_examples=EXAMPLES, deadline=None, phases=PHASES)(
            given(cases=st.lists(composite(), min_size=BATCH, max_size=BATCH))(test)
        )

    return decorate


def convolution(draw: Any) -> Case:
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    per_group, outputs = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    if draw(st.booleans()):
        per_group = 1  # depthwise
    kernel = [draw(st.integers(1, 3)) for _ in range(rank)]
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, 2)) for _ in range(rank)],
        "dilations": [draw(st.integers(1, 2)) for _ in range(rank)],
        "group": groups,
    }
    if draw(st.booleans()):
        attributes["pads"] = [draw(st.integers(0, k // 2)) for k in kernel * 2]
    else:
        attributes["auto_pad"] = draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]))
        if attributes["auto_pad"] != "VALID":
            attributes["dilations"] = [1] * rank
    x = floats(draw, draw(st.integers(1, 2)), per_group * groups, *(draw(st.integers(5, 19)) for _ in range(rank)))
    constants = {"w": floats(draw, outputs * groups, per_group, *kernel)}
    if draw(st.booleans()):
        constants["b"] = floats(draw, outputs * groups)
    return single("Conv", {"x": x}, constants, **attributes), {"x": x}


@batches(convolution)
def test_convolution(cases: list[Case]) -> None:
    check(cases)


def transposed_convolution(draw: Any) -> Case:
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    groups = draw(st.sampled_from([1, 2]))
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    strides = [draw(st.integers(1, 3)) for _ in range(rank)]
    x = floats(draw, 1, 2 * groups, *(draw(st.integers(3, 8)) for _ in range(rank)))
    attributes: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "group": groups}
    if draw(st.booleans()):
        attributes["pads"] = [draw(st.integers(0, k // 2)) for k in kernel * 2]
    if draw(st.booleans()):
        attributes["output_padding"] = [draw(st.integers(0, s - 1)) for s in strides]
    constants = {"w": floats(draw, 2 * groups, draw(st.integers(1, 5)), *kernel)}
    return single("ConvTranspose", {"x": x}, constants, **attributes), {"x": x}


@batches(transposed_convolution)
def test_transposed_convolution(cases: list[Case]) -> None:
    check(cases)


def convolution_with_computed_weights(draw: Any) -> Case:
    x, w = floats(draw, 1, 3, 9, 9), floats(draw, 4, 3, 3, 3)
    return single("Conv", {"x": x, "w": w}, {}, pads=[draw(st.integers(0, 1))] * 4), {"x": x, "w": w}


@batches(convolution_with_computed_weights)
def test_convolution_with_computed_weights(cases: list[Case]) -> None:
    check(cases)


ACTIVATIONS = (
    "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish", "Sigmoid", "Tanh", "Softplus", "Softsign",
    "ThresholdedRelu", "Gelu", "Mish", "Identity",
)  # fmt: skip


def fused_convolution(draw: Any) -> Case:
    """Conv, BatchNormalization?, Add of a constant or of another tensor?, activation?"""
    channels, size = draw(st.integers(1, 20)), draw(st.integers(4, 15))
    x = floats(draw, 1, channels, size, size)
    constants = {"w": floats(draw, channels, channels, 3, 3) * np.float32(0.2)}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1])]
    inputs, last = {"x": x}, "c"
    if draw(st.booleans()):
        for name in ("scale", "bias", "mean"):
            constants[name] = floats(draw, channels)
        constants["var"] = np.abs(floats(draw, channels)) + np.float32(0.5)
        nodes.append(helper.make_node("BatchNormalization", [last, "scale", "bias", "mean", "var"], ["n"]))
        last = "n"
    addend = draw(st.sampled_from(["", "constant", "input", "self"]))
    if addend:
        if addend == "constant":
            constants["r"] = floats(draw, channels, 1, 1)
        elif addend == "input":
            inputs["r"] = floats(draw, *x.shape)
        nodes.append(helper.make_node("Add", ["x" if addend == "self" else "r", last], ["a"]))
        last = "a"
    act = draw(st.sampled_from([*ACTIVATIONS, "Silu", "Clip", "both"]))
    if act == "Silu":
        nodes += [helper.make_node("Sigmoid", [last], ["s"]), helper.make_node("Mul", [last, "s"], ["y"])]
    elif act == "Clip":
        constants |= {"low": np.float32(-0.5).reshape(()), "high": np.float32(0.7).reshape(())}
        nodes.append(helper.make_node("Clip", [last, "low", "high"], ["y"]))
    elif act == "both":  # the sum is read twice: it must not be fused away
        nodes += [helper.make_node("Relu", [last], ["u"]), helper.make_node("Sub", ["u", last], ["y"])]
    else:
        nodes.append(helper.make_node(act, [last], ["y"]))
    return network(nodes, inputs, constants, ["y"], opset=22), inputs


@batches(fused_convolution)
def test_fusion_into_convolutions(cases: list[Case]) -> None:
    check(cases)


def matrix_product(draw: Any) -> Case:
    m, k, n = (draw(st.integers(1, 40)) for _ in range(3))
    batch = draw(st.sampled_from([(), (3,), (2, 3)]))
    a = floats(draw, *batch, m, k)
    b = floats(draw, *draw(st.sampled_from([(), batch, (1,) * len(batch)])), k, n)
    which = draw(st.sampled_from(["both", "a", "b"]))
    if which == "both":
        return single("MatMul", {"a": a, "b": b}), {"a": a, "b": b}
    if which == "a":
        return single("MatMul", {"a": a}, {"b": b}), {"a": a}
    nodes = [helper.make_node("MatMul", ["a", "b"], ["y"])]
    return network(nodes, {"b": b}, {"a": a}, ["y"]), {"b": b}


@batches(matrix_product)
def test_matrix_product(cases: list[Case]) -> None:
    check(cases)


def general_product(draw: Any) -> Case:
    m, k, n = (draw(st.integers(1, 33)) for _ in range(3))
    left, right = draw(st.booleans()), draw(st.booleans())
    a = floats(draw, *((k, m) if left else (m, k)))
    b = floats(draw, *((n, k) if right else (k, n)))
    attributes = {"transA": int(left), "transB": int(right), "alpha": draw(st.sampled_from([1.0, 0.5]))}
    attributes["beta"] = draw(st.sampled_from([1.0, 2.0]))
    feeds, constants = {"a": a}, {"b": b}
    if draw(st.booleans()):
        feeds, constants = {"a": a, "b": b}, {}
    shape = draw(st.sampled_from([None, (n,), (1, n), (m, 1), (m, n), ()]))
    if shape is not None:
        constants["c"] = floats(draw, *shape)
    return single("Gemm", feeds, constants, **attributes), feeds


@batches(general_product)
def test_general_product(cases: list[Case]) -> None:
    check(cases)


def pooling(draw: Any) -> Case:
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    kernel = [draw(st.integers(1, 4)) for _ in range(rank)]
    op = draw(st.sampled_from(["MaxPool", "AveragePool", "LpPool"]))
    attributes: dict[str, Any] = {
        "kernel_shape": kernel,
        "strides": [draw(st.integers(1, k)) for k in kernel],
        "pads": [draw(st.integers(0, k // 2)) for k in kernel * 2],
        "ceil_mode": draw(st.integers(0, 1)) if op != "LpPool" else 0,
    }
    if attributes["ceil_mode"]:  # onnx infers one window too many where the last would start in the padding
        attributes["pads"][rank:] = [0] * rank
    if op == "AveragePool":
        attributes["count_include_pad"] = draw(st.integers(0, 1))
    x = floats(draw, draw(st.integers(1, 2)), draw(st.integers(1, 5)), *(draw(st.integers(5, 17)) for _ in range(rank)))
    return single(op, {"x": x}, outputs=2 if op == "MaxPool" and draw(st.booleans()) else 1, **attributes), {"x": x}


@batches(pooling)
def test_pooling(cases: list[Case]) -> None:
    check(cases)


UNARY = (
    "Abs", "Neg", "Exp", "Erf", "Ceil", "Floor", "Round", "Sign", "Sin", "Cos", "Atan", "Sinh",
    "Reciprocal", *ACTIVATIONS,
)  # fmt: skip


def elementwise(draw: Any) -> Case:
    """A random tree of element-wise operators over broadcast operands."""
    shape = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    inputs = {}
    for name in ("a", "b"):
        own = tuple(1 if draw(st.booleans()) else d for d in shape)
        inputs[name] = floats(draw, *own[draw(st.integers(0, len(shape) - 1)) :])
    inputs["c"] = floats(draw, *shape)
    constants = {"k": floats(draw), "v": floats(draw, shape[-1])}
    names = [*inputs, *constants]
    nodes = []
    for index in range(draw(st.integers(1, 8))):
        result = f"t{index}"
        kind = draw(st.sampled_from(["unary", "binary", "where", "clip"]))
        first = draw(st.sampled_from(names))
        if kind == "unary":
            nodes.append(helper.make_node(draw(st.sampled_from(UNARY)), [first], [result]))
        elif kind == "binary":
            op = draw(st.sampled_from(["Add", "Sub", "Mul", "Max", "Min", "Mean", "PRelu"]))
            second = "k" if op == "PRelu" else draw(st.sampled_from(names))
            nodes.append(helper.make_node(op, [first, second], [result]))
        elif kind == "where":
            nodes.append(
                helper.make_node(draw(st.sampled_from(["Less", "GreaterOrEqual"])), [first, "c"], [f"m{index}"])
            )
            nodes.append(helper.make_node("Where", [f"m{index}", first, draw(st.sampled_from(names))], [result]))
        else:
            nodes.append(helper.make_node("Clip", [first, "", "k"], [result]))
        names.append(result)
    nodes.append(helper.make_node("Add", [names[-1], "c"], ["y"]))
    outputs = ["y", names[draw(st.integers(len(inputs) + len(constants), len(names) - 1))]]
    return network(nodes, inputs, constants, outputs, opset=22), inputs


@batches(elementwise)
def test_elementwise_trees(cases: list[Case]) -> None:
    with np.errstate(all="ignore"):
        check(cases)


def reduction(draw: Any) -> Case:
    op = draw(st.sampled_from([
        "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
        "ReduceLogSumExp", "ArgMax", "ArgMin", "Softmax", "LogSoftmax", "Hardmax", "CumSum", "LpNormalization",
    ]))  # fmt: skip
    shape = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    x = floats(draw, *shape)
    rank = len(shape)
    axes = sorted(draw(st.sets(st.integers(0, rank - 1), min_size=1)))
    if op.startswith("Reduce"):
        constants = {"axes": np.array(axes, np.int64)}
        return single(op, {"x": x}, constants, keepdims=draw(st.integers(0, 1))), {"x": x}
    if op == "CumSum":
        flags = {"exclusive": draw(st.integers(0, 1)), "reverse": draw(st.integers(0, 1))}
        return single(op, {"x": x}, {"axis": np.array(axes[0], np.int64)}, **flags), {"x": x}
    return single(op, {"x": x}, axis=axes[0]), {"x": x}


@batches(reduction)
def test_reductions(cases: list[Case]) -> None:
    check(cases)


def normalization(draw: Any) -> Case:
    n, groups, per_group = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    c = groups * per_group
    x = floats(draw, n, c, draw(st.integers(2, 9)), draw(st.integers(2, 9)))
    op = draw(st.sampled_from([
        "LayerNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization", "LRN",
    ]))  # fmt: skip
    if op == "LRN":
        return single(op, {"x": x}, size=draw(st.sampled_from([1, 3, 5])), alpha=0.2, beta=0.6, bias=1.5), {"x": x}
    if op == "LayerNormalization":
        axis = draw(st.sampled_from([1, 2, 3, -1]))
        shape = x.shape[axis:]
        constants = {"s": floats(draw, *shape), "b": floats(draw, *shape)}
        return single(op, {"x": x}, constants, axis=axis), {"x": x}
    constants = {"s": floats(draw, c), "b": floats(draw, c)}
    if op == "BatchNormalization":
        constants |= {"m": floats(draw, c), "v": np.abs(floats(draw, c)) + np.float32(0.1)}
    extra = {"num_groups": groups} if op == "GroupNormalization" else {}
    return single(op, {"x": x}, constants, **extra), {"x": x}


@batches(normalization)
def test_normalizations(cases: list[Case]) -> None:
    check(cases)


def movement(draw: Any) -> Case:
    """Moving elements: one operator, or two in a row so that views compose."""
    shape = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    x = floats(draw, *shape)
    rank = len(shape)
    op = draw(st.sampled_from(["Transpose", "Slice", "Pad", "Tile", "Expand", "Split", "Concat", "Gather", "Reshape"]))
    if op == "Transpose":
        return single(op, {"x": x}, perm=draw(st.permutations(range(rank)))), {"x": x}
    if op == "Reshape":
        nodes = [
            helper.make_node("Reshape", ["x", "flat"], ["f"]),
            helper.make_node("Slice", ["f", "one", "end"], ["y"]),
            helper.make_node("Identity", ["y"], ["z"]),
        ]
        constants = {"flat": np.array([-1], np.int64), "one": np.array([x.size // 3], np.int64)}
        constants["end"] = np.array([x.size], np.int64)
        return network(nodes, {"x": x}, constants, ["y", "z"]), {"x": x}
    axis = draw(st.integers(0, rank - 1))
    if op == "Slice":
        step = draw(st.sampled_from([1, 1, 2, -1, -2]))
        bounds = sorted(draw(st.tuples(st.integers(0, shape[axis]), st.integers(0, shape[axis]))))
        start, end = (bounds[0], bounds[1] + 1) if step > 0 else (bounds[1], bounds[0] - 1 - 100 * (bounds[0] == 0))
        values = {"s": [start], "e": [end], "a": [axis], "t": [step]}
        constants = {k: np.array(v, np.int64) for k, v in values.items()}
        kept = x.take(range(shape[axis])[slice(start, None if end < -50 else end, step)], axis=axis)
        if kept.size == 0:
            return single("Transpose", {"x": x}), {"x": x}
        return single(op, {"x": x}, constants), {"x": x}
    if op == "Pad":
        mode = draw(st.sampled_from(["constant", "edge", "reflect", "wrap"]))
        pads = [draw(st.integers(0, max(0, d - 1))) for d in shape * 2]
        if mode == "constant" and shape[axis] > 1:
            pads[axis] = -1
        constants = {"pads": np.array(pads, np.int64), "v": np.float32(1.5).reshape(())}
        return single(op, {"x": x}, constants, mode=mode), {"x": x}
    if op == "Tile":
        return single(op, {"x": x}, {"r": np.array([draw(st.integers(1, 3)) for _ in shape], np.int64)}), {"x": x}
    if op == "Expand":
        thin = x[tuple(slice(0, 1) if a == axis else slice(None) for a in range(rank))].copy()
        return single(op, {"x": thin}, {"s": np.array([2, *shape], np.int64)}), {"x": thin}
    if op == "Split":
        cut = draw(st.integers(0, shape[axis]))
        sizes = [s for s in (cut, shape[axis] - cut) if s]
        constants = {"s": np.array(sizes, np.int64)}
        return single(op, {"x": x}, constants, outputs=len(sizes), axis=axis), {"x": x}
    if op == "Gather":
        index = draw(st.sampled_from([np.array(-1), np.array([0, -1, 0]), np.array([[0], [shape[axis] - 1]])]))
        return single(op, {"x": x}, {"i": index.astype(np.int64)}, axis=axis), {"x": x}
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Concat", ["a", "x", "a", "k"], ["j"], axis=axis),
        helper.make_node("Neg", ["x"], ["n"]),
        helper.make_node("Concat", ["n", "j"], ["y"], axis=axis),
    ]
    return network(nodes, {"x": x}, {"k": floats(draw, *shape)}, draw(st.sampled_from([["y"], ["y", "j"]]))), {"x": x}


@batches(movement)
def test_movement(cases: list[Case]) -> None:
    check(cases)


INDEXING = ("Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "TopK", "OneHot", "Trilu")


def indexing(draw: Any) -> Case:
    x = floats(draw, draw(st.integers(2, 6)), draw(st.integers(3, 8)))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    op = draw(st.sampled_from(INDEXING))
    rows, columns = x.shape
    if op == "Gather":
        index = random.integers(-columns, columns, (2, 3))
        return single(op, {"x": x, "i": index}, axis=1), {"x": x, "i": index}
    if op == "GatherElements":
        index = random.integers(-columns, columns, (rows, 4))
        return single(op, {"x": x, "i": index}, axis=1), {"x": x, "i": index}
    if op == "GatherND":
        index = np.stack([random.integers(-rows, rows, 5), random.integers(-columns, columns, 5)], axis=1)
        return single(op, {"x": x, "i": index}), {"x": x, "i": index}
    if op == "ScatterElements":
        index = np.argsort(random.random((rows, columns)), axis=1)[:, :2].astype(np.int64)
        feeds = {"x": x, "i": index, "u": floats(draw, rows, 2)}
        return single(op, feeds, axis=1, reduction=draw(st.sampled_from(["none", "add", "max"]))), feeds
    if op == "ScatterND":
        index = random.permutation(rows)[:2].reshape(2, 1).astype(np.int64)
        feeds = {"x": x, "i": index, "u": floats(draw, 2, columns)}
        return single(op, feeds, reduction=draw(st.sampled_from(["none", "mul", "min"]))), feeds
    if op == "TopK":
        k = np.array([draw(st.integers(1, columns))], np.int64)
        return single(op, {"x": x}, {"k": k}, outputs=2, largest=draw(st.integers(0, 1)), axis=1), {"x": x}
    if op == "OneHot":
        index = random.integers(-4, 4, (3,))
        constants = {"d": np.array(5, np.int64), "v": np.array([0.5, 2.0], np.float32)}
        return single(op, {"i": index}, constants, axis=draw(st.sampled_from([0, 1]))), {"i": index}
    return single(op, {"x": x}, {"k": np.array(draw(st.integers(-3, 3)))}, upper=draw(st.integers(0, 1))), {"x": x}


@batches(indexing)
def test_indexing(cases: list[Case]) -> None:
    check(cases)


def resizing(draw: Any) -> Case:
    x = floats(draw, 1, 2, draw(st.integers(3, 7)), draw(st.integers(3, 7)))
    mode = draw(st.sampled_from(["nearest", "linear", "cubic"]))
    transform = draw(st.sampled_from(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]))
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": transform}
    if mode == "nearest":
        attributes["nearest_mode"] = draw(st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]))
    sizes = np.array([1, 2, draw(st.integers(2, 12)), draw(st.integers(2, 12))], np.int64)
    if draw(st.booleans()):
        factor = np.array([1, 1, 2, draw(st.sampled_from([2, 3]))], np.float32)
        nodes = [helper.make_node("Resize", ["x", "", "f"], ["y"], **attributes)]
        return network(nodes, {"x": x}, {"f": factor}, ["y"]), {"x": x}
    nodes = [helper.make_node("Resize", ["x", "", "", "s"], ["y"], **attributes)]
    return network(nodes, {"x": x}, {"s": sizes}, ["y"]), {"x": x}


@batches(resizing)
def test_resizing(cases: list[Case]) -> None:
    check(cases)


INTEGERS = ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Equal", "Less")


@pytest.mark.parametrize("kind", [np.int32, np.int64])
def test_integers(kind: type) -> None:
    random = np.random.default_rng(0)
    a = random.integers(-50, 50, (3, 40)).astype(kind)
    b = random.integers(1, 9, (40,)).astype(kind)
    cases = [(single(op, {"a": a, "b": b}), {"a": a, "b": b}) for op in INTEGERS]
    cases += [(single("Cast", {"a": a}, to=onnx.TensorProto.FLOAT), {"a": a})]
    cases += [(single("ReduceSum", {"a": a}, {"x": np.array([0])}), {"a": a})]
    check(cases)


def equations() -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    yield "ij,jk->ik", [(3, 4), (4, 5)]
    yield "bhqd,bhkd->bhqk", [(2, 2, 3, 4), (2, 2, 5, 4)]
    yield "bij->bji", [(2, 3, 4)]
    yield "...ij,j", [(2, 3, 4), (4,)]
    yield "ii->i", [(4, 4)]
    yield "i,j->ij", [(4,), (5,)]


def test_einsum() -> None:
    random = np.random.default_rng(0)
    cases = []
    for equation, shapes in equations():
        feeds = {f"x{i}": random.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}
        cases.append((single("Einsum", feeds, equation=equation), feeds))
    check(cases)


def test_shapes_that_are_computed_are_known_at_compile_time() -> None:
    """What exporters make of x.view(x.shape[0], -1): Shape, Gather, Unsqueeze, Concat, Reshape."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["u"]),
        helper.make_node("Concat", ["u", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["r"]),
        helper.make_node("Relu", ["r"], ["y"]),
    ]
    constants = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([-1])}
    check([(network(nodes, {"x": x}, constants, ["y"]), {"x": x})])


def test_outputs_may_be_inputs_constants_and_each_other() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Identity", ["k"], ["b"]),
        helper.make_node("Relu", ["x"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Neg", ["c"], ["e"]),
    ]
    check([(network(nodes, {"x": x}, {"k": np.ones(3, np.float32)}, ["a", "b", "c", "d", "e"]), {"x": x})])
