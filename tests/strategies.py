"""Hypothesis strategies: small random networks that are always valid, convolutional for the most part.

`networks()` draws a Graph with static shapes, one input `x` of [N, C, H, W], random weights and activations of
order 1. Every structure that couples channels occurs: residual sums, concatenation, splits, slices, grouped and
depthwise convolutions, channel shuffles, squeeze-and-excitation, transposes, flattening into matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from compiler.ir import ArrayConstant, Graph, Node, Value, infer_shapes, subgraphs, verify
from passes.simplify.eliminate_dead import eliminate_dead

Draw = Callable[[st.SearchStrategy[Any]], Any]
Block = Callable[[Draw, "Builder", Value], Value]

BLOCKS: dict[str, Block] = {}
"""Each takes a feature map [N, C, H, W] and gives one back."""


class Builder:
    """Builds a Graph node by node; every value has its shape at once."""

    def __init__(self, shape: Sequence[int], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.input = Value("x", np.float32, tuple(shape))
        self.nodes: list[Node] = []
        self.maps = [self.input]
        self.constants = 0

    def constant(self, array: np.ndarray, kind: str = "c") -> Value:
        """A constant under a fresh name."""
        self.constants += 1
        return Value(f"{kind}{self.constants}", data=array)

    def normal(self, *shape: int, scale: float = 1.0) -> Value:
        """A random weight."""
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32), "w")

    def uniform(self, low: float, high: float, *shape: int) -> Value:
        """A random weight between two bounds."""
        return self.constant(self.rng.uniform(low, high, shape).astype(np.float32), "w")

    def ints(self, *numbers: int) -> Value:
        """A constant int64 vector: a shape, axes, indices."""
        return self.constant(np.array(numbers, np.int64), "i")

    def op(self, name: str, *inputs: Value | None, results: int = 1, **attributes: Any) -> Any:
        """Append a node; its result, or a list of them when there are several."""
        index = len(self.nodes)
        outputs = [Value(f"{name.lower()}{index}" + (f"_{i}" if i else "")) for i in range(results)]
        self.nodes.append(Node(name, list(inputs), outputs, attributes, name=f"{name}_{index}"))
        sources = list(dict.fromkeys(v for v in inputs if v is not None and not v.is_constant))
        infer_shapes(Graph("step", sources, outputs, [self.nodes[-1]]))
        for value in sources:  # the one-node graph must not pass for their producer
            value.producer = next((n for n in self.nodes if value in n.outputs), None)
        return outputs[0] if results == 1 else outputs

    def graph(self, outputs: Sequence[Value]) -> Graph:
        """The graph of what the outputs need."""
        graph = Graph("net", [self.input], list(outputs), self.nodes)
        eliminate_dead(graph)
        infer_shapes(graph)
        verify(graph)
        return graph


def block(rule: Block) -> Block:
    """Register a block under its function's name."""
    BLOCKS[rule.__name__] = rule
    return rule


def _shape(value: Value) -> tuple[int, ...]:
    assert value.static_shape is not None
    return value.static_shape


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


@block
def conv(draw: Draw, net: Builder, x: Value) -> Value:
    """Any convolution: grouped, strided, dilated, with or without bias."""
    _, channels, height, width = _shape(x)
    kernel = draw(st.sampled_from([1, 3]))
    dilation = draw(st.sampled_from([1, 2])) if kernel == 3 else 1
    pad = draw(st.integers(0, dilation * (kernel // 2)))
    if min(height, width) + 2 * pad < dilation * (kernel - 1) + 1:
        pad = dilation * (kernel // 2)
    groups = draw(st.sampled_from(_divisors(channels)))
    per_group = draw(st.integers(1, max(1, 8 // groups)))
    stride = draw(st.sampled_from([1, 1, 2]))
    return _conv(draw, net, x, groups * per_group, kernel, groups, stride, pad, dilation)


def _conv(
    draw: Draw, net: Builder, x: Value, out: int, kernel: int, groups: int, stride: int, pad: int, dilation: int = 1
) -> Value:
    fan_in = _shape(x)[1] // groups * kernel * kernel
    weight = net.normal(out, _shape(x)[1] // groups, kernel, kernel, scale=(2 / fan_in) ** 0.5)
    bias = [net.normal(out, scale=0.1)] if draw(st.booleans()) else []
    return net.op(
        "Conv",
        x,
        weight,
        *bias,
        kernel_shape=[kernel] * 2,
        group=groups,
        strides=[stride] * 2,
        pads=[pad] * 4,
        dilations=[dilation] * 2,
    )


@block
def depthwise(draw: Draw, net: Builder, x: Value) -> Value:
    """A depthwise convolution, with a channel multiplier now and then."""
    channels = _shape(x)[1]
    multiplier = draw(st.sampled_from([1, 1, 2])) if channels <= 8 else 1
    return _conv(draw, net, x, channels * multiplier, 3, channels, draw(st.sampled_from([1, 2])), 1)


@block
def conv_transpose(draw: Draw, net: Builder, x: Value) -> Value:
    """An upsampling convolution."""
    channels = _shape(x)[1]
    if max(_shape(x)[2:]) > 16:
        return net.op("Relu", x)
    groups = draw(st.sampled_from(_divisors(channels)))
    per_group = draw(st.integers(1, max(1, 6 // groups)))
    stride = draw(st.sampled_from([1, 2]))
    weight = net.normal(channels, per_group, 3, 3, scale=(1 / (channels // groups * 9)) ** 0.5)
    bias = [net.normal(groups * per_group, scale=0.1)] if draw(st.booleans()) else []
    return net.op("ConvTranspose", x, weight, *bias, group=groups, strides=[stride] * 2, pads=[1, 1, 1, 1])


@block
def batch_norm(draw: Draw, net: Builder, x: Value) -> Value:
    """BatchNormalization in inference."""
    c = _shape(x)[1]
    parameters = (net.uniform(0.5, 1.5, c), net.normal(c, scale=0.1), net.normal(c, scale=0.1))
    return net.op("BatchNormalization", x, *parameters, net.uniform(0.5, 1.5, c), epsilon=1e-5)


@block
def activation(draw: Draw, net: Builder, x: Value) -> Value:
    """An element-wise function."""
    name = draw(
        st.sampled_from(["Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish", "PRelu", "Tanh", "Elu", "Dropout"])
    )
    if name == "Clip":
        return net.op("Clip", x, net.constant(np.float32(0)), net.constant(np.float32(6)))
    if name == "PRelu":
        return net.op("PRelu", x, net.uniform(0.1, 0.4, _shape(x)[1], 1, 1))
    return net.op(name, x)


@block
def residual(draw: Draw, net: Builder, x: Value) -> Value:
    """x plus a branch of the same shape, or the sum of two feature maps that happen to agree."""
    others = [v for v in net.maps if v is not x and v.shape == x.shape]
    if others and draw(st.booleans()):
        return net.op(draw(st.sampled_from(["Add", "Sum", "Max"])), x, draw(st.sampled_from(others)))
    branch = _conv(draw, net, x, _shape(x)[1], 3, 1, 1, 1)
    if draw(st.booleans()):
        branch = batch_norm(draw, net, branch)
    return net.op("Add", *((x, branch) if draw(st.booleans()) else (branch, x)))


@block
def affine(draw: Draw, net: Builder, x: Value) -> Value:
    """Explicit scale and shift by constants per channel."""
    c = _shape(x)[1]
    scaled = net.op("Mul", x, net.uniform(0.5, 1.5, *draw(st.sampled_from([(c, 1, 1), (1, c, 1, 1), (1,)]))))
    return net.op(draw(st.sampled_from(["Add", "Sub"])), scaled, net.normal(c, 1, 1, scale=0.1))


@block
def concat(draw: Draw, net: Builder, x: Value) -> Value:
    """Channels of several feature maps, or of x and a branch of it."""
    n, c, *spatial = _shape(x)
    others = [v for v in net.maps if _shape(v)[0] == n and list(_shape(v)[2:]) == spatial and c + _shape(v)[1] <= 16]
    if c > 12 or not others:
        return net.op("Relu", x)
    return net.op("Concat", x, draw(st.sampled_from(others)), axis=draw(st.sampled_from([1, -3])))


@block
def split(draw: Draw, net: Builder, x: Value) -> Value:
    """Two parts of the channels; one goes on, the other may come back."""
    c = _shape(x)[1]
    if c < 2:
        return net.op("Relu", x)
    first = draw(st.integers(1, c - 1))
    parts = net.op("Split", x, net.ints(first, c - first), results=2, axis=1)
    net.maps.append(parts[0])
    return parts[1]


@block
def slice_channels(draw: Draw, net: Builder, x: Value) -> Value:
    """A range of channels, or every second one."""
    c = _shape(x)[1]
    start = draw(st.integers(0, c - 1))
    step = draw(st.sampled_from([1, 1, 2]))
    end = draw(st.sampled_from([c, 2**31 - 1, min(c, start + 2)]))
    return net.op("Slice", x, net.ints(start), net.ints(end), net.ints(1), net.ints(step))


@block
def pool(draw: Draw, net: Builder, x: Value) -> Value:
    """Max or average pooling."""
    if min(_shape(x)[2:]) < 2:
        return net.op("Relu", x)
    stride = draw(st.sampled_from([1, 2]))
    name = draw(st.sampled_from(["MaxPool", "AveragePool"]))
    return net.op(name, x, kernel_shape=[2, 2], strides=[stride] * 2)


@block
def pad(draw: Draw, net: Builder, x: Value) -> Value:
    """Zeros, or a reflection, around the feature map; zeros among the channels too."""
    if max(_shape(x)[2:]) > 16:
        return net.op("Relu", x)
    if min(_shape(x)[2:]) > 1 and draw(st.booleans()):
        return net.op("Pad", x, net.ints(0, 0, 1, 0, 0, 0, 0, 1), mode="reflect")
    extra = draw(st.sampled_from([0, 0, 1]))
    return net.op("Pad", x, net.ints(0, extra, 1, 1, 0, 0, 1, 0))


@block
def resize(draw: Draw, net: Builder, x: Value) -> Value:
    """Nearest upsampling by two."""
    if max(_shape(x)[2:]) > 8:
        return net.op("Relu", x)
    scales = net.constant(np.array([1, 1, 2, 2], np.float32))
    attributes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return net.op("Resize", x, None, scales, **attributes)


@block
def channel_shuffle(draw: Draw, net: Builder, x: Value) -> Value:
    """ShuffleNet's shuffle: channels as a matrix, transposed."""
    n, c, h, w = _shape(x)
    groups = draw(st.sampled_from(_divisors(c)))
    matrix = net.op("Reshape", x, net.ints(n, groups, c // groups, h, w))
    turned = net.op("Transpose", matrix, perm=[0, 2, 1, 3, 4])
    return net.op("Reshape", turned, net.ints(*draw(st.sampled_from([(n, c, h, w), (0, -1, h, w)]))))


@block
def squeeze_excite(draw: Draw, net: Builder, x: Value) -> Value:
    """Each channel scaled by a gate that all channels decide."""
    hidden = draw(st.integers(1, 4))
    pooled = net.op("GlobalAveragePool", x)
    gate = net.op("Relu", _conv(draw, net, pooled, hidden, 1, 1, 1, 0))
    return net.op("Mul", x, net.op("Sigmoid", _conv(draw, net, gate, _shape(x)[1], 1, 1, 1, 0)))


@block
def channels_last(draw: Draw, net: Builder, x: Value) -> Value:
    """Something element-wise in NHWC, between two transposes."""
    turned = net.op("Transpose", x, perm=[0, 2, 3, 1])
    inner = net.op("Add", turned, net.normal(_shape(x)[1], scale=0.1)) if draw(st.booleans()) else turned
    return net.op("Transpose", net.op("Relu", inner), perm=[0, 3, 1, 2])


def _head(draw: Draw, net: Builder, x: Value) -> Value:
    """From a feature map to the output."""
    kind = draw(st.sampled_from(["map", "gap", "flatten", "matmul"]))
    if kind == "map":
        return x
    if kind == "gap":
        x = net.op("GlobalAveragePool", x)
    rows = _shape(x)[0]
    x = net.op("Flatten", x) if draw(st.booleans()) else net.op("Reshape", x, net.ints(rows, -1))
    if kind == "matmul":
        weight = net.normal(_shape(x)[1], 3, scale=_shape(x)[1] ** -0.5)
        return net.op("Add", net.op("MatMul", x, weight), net.normal(3))
    if draw(st.booleans()):
        x = net.op("Relu", _gemm(draw, net, x, draw(st.integers(1, 6))))
    x = _gemm(draw, net, x, draw(st.integers(1, 4)))
    return net.op("Softmax", x, axis=draw(st.sampled_from([1, -1]))) if draw(st.booleans()) else x


def _gemm(draw: Draw, net: Builder, x: Value, features: int) -> Value:
    width = _shape(x)[1]
    transposed = draw(st.booleans())
    weight = net.normal(*((features, width) if transposed else (width, features)), scale=(2 / width) ** 0.5)
    bias = [net.normal(features, scale=0.1)] if draw(st.booleans()) else []
    return net.op("Gemm", x, weight, *bias, transB=int(transposed))


@st.composite
def networks(draw: Draw, max_blocks: int = 8, blocks: Sequence[str] | None = None, heads: bool = True) -> Graph:
    """A random network with static shapes. blocks: which of BLOCKS may occur. heads: classifiers, too."""
    channels, size = draw(st.integers(1, 6)), draw(st.integers(4, 9))
    net = Builder((draw(st.integers(1, 2)), channels, size, size), draw(st.integers(0, 2**32 - 1)))
    names = sorted(BLOCKS) if blocks is None else list(blocks)
    x = net.input
    for _ in range(draw(st.integers(1, max_blocks))):
        x = BLOCKS[draw(st.sampled_from(names))](draw, net, x)
        net.maps.append(x)
        if draw(st.integers(0, 3)) == 0:
            x = draw(st.sampled_from(net.maps))
    outputs = [_head(draw, net, net.maps[-1]) if heads else net.maps[-1]]
    extra = draw(st.sampled_from(net.maps))
    if draw(st.integers(0, 3)) == 0 and extra not in outputs and extra is not net.input:
        outputs.append(extra)
    return net.graph(outputs)


_DEEP = (
    *("conv", "conv", "conv", "residual", "depthwise", "squeeze_excite", "batch_norm", "activation", "channel_shuffle"),
    *("split", "concat", "affine", "channels_last"),
)
"""Blocks that leave groups inside when what goes in and comes out is fixed."""


@st.composite
def networks_with_bodies(draw: Draw, max_bodies: int = 3) -> Graph:
    """A random network of which runs of nodes were moved into branches of If and bodies of Loop, nested or not."""
    graph = draw(networks(max_blocks=10, blocks=_DEEP))
    for number in range(draw(st.integers(1, max_bodies))):
        start = draw(st.integers(0, len(graph.nodes) // 3))
        stop = draw(st.integers(min(start + 1, len(graph.nodes)), len(graph.nodes)))
        if draw(st.booleans()):
            _into_branches(graph, start, stop, f"if{number}", shared=draw(st.booleans()))
        else:
            _into_loop(graph, start, stop, f"loop{number}")
    infer_shapes(graph)
    verify(graph)
    return graph


def _cut(graph: Graph, start: int, stop: int, name: str) -> tuple[list[Node], list[Value], list[Value]]:
    """(the run of nodes, what others read of it, new values in their places); the run is taken out."""
    nodes, later = graph.nodes[start:stop], graph.nodes[stop:]
    made = [v for n in nodes for v in n.outputs]
    read = {v for n in later for v in n.inputs} | {v for n in later for b in subgraphs(n) for v in b.outer_values()}
    given = [v for v in made if v in read or v in graph.outputs]
    results = [Value(v.name, v.dtype, v.shape) for v in given]
    graph.nodes = graph.nodes[:start] + later
    for old, new in zip(given, results, strict=True):
        for part in (graph, *graph.all_bodies()):
            part.replace_value(old, new)
        old.name += f"_{name}_inside"
    return nodes, given, results


def _into_branches(graph: Graph, start: int, stop: int, name: str, shared: bool) -> None:
    """A run of nodes becomes one branch of an If; the other does the same, with the same weights or with others."""
    nodes, given, results = _cut(graph, start, stop, name)
    body = Graph(f"{name}_then", [], given, nodes)
    kept = {v: v for v in body.outer_values()} | ({c: c for c in body.all_constants()} if shared else {})
    other = body._copy(dict(kept))
    other.name = f"{name}_else"
    for part in (other, *other.all_bodies()):
        for value in part.values():
            if value not in kept:
                value.name += f"_{name}"
    for constant in (c for c in other.all_constants() if c not in kept and c.name.startswith("w")):
        constant.data = ArrayConstant(np.asarray(constant.numpy() * np.float32(1.25)))
    total, go = Value(f"{name}_sum", np.float32, ()), Value(f"{name}_go", np.bool_, ())
    zero = Value(f"{name}_zero", data=np.float32(0))
    graph.nodes[start:start] = [
        Node("ReduceSum", [graph.inputs[0]], [total], {"keepdims": 0}),
        Node("Greater", [total, zero], [go]),
        Node("If", [go], results, {"then_branch": body, "else_branch": other}),
    ]


def _into_loop(graph: Graph, start: int, stop: int, name: str) -> None:
    """A run of nodes becomes the body of a Loop that runs once and gives out what it computes, stacked."""
    nodes, given, results = _cut(graph, start, stop, name)
    step, go = Value(f"{name}_i", np.int64, ()), Value(f"{name}_go", np.bool_, ())
    stacked = [Value(f"{v.name}_{name}", v.dtype) for v in results]
    body = Graph(f"{name}_body", [step, go], [go, *given], nodes)
    once, first = Value(f"{name}_n", data=np.int64(1)), Value(f"{name}_axis", data=np.zeros(1, np.int64))
    unstack = [Node("Squeeze", [s, first], [r]) for s, r in zip(stacked, results, strict=True)]
    graph.nodes[start:start] = [Node("Loop", [once, None], stacked, {"body": body}), *unstack]
