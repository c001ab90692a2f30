"""Convolutions and pooling: channels couple, space is fixed."""

from __future__ import annotations

import numpy as np

from compiler.ir import Node, Value
from passes.coupling.extents import Kept, extent_rule
from passes.coupling.partition import Points
from passes.coupling.solver import Coupling, Layout, coupling_rule


def fix_space(c: Coupling, x: Value, node: Node, channel: int = 1) -> None:
    """Pin all axes but the batch and the channels, and make those independent of them: a window mixes neighbours."""
    for axis in (a for a in range(1, x.rank or 0) if a != channel):
        c.pin_axis(x, axis, node, f"{node.op} slides a window along this axis")
        c.decondition(x, axis)


def operands(node: Node) -> tuple[Value, Value]:
    """The data and the weight of a convolution."""
    x, weight = node.inputs[0], node.inputs[3 if node.op == "QLinearConv" else 1]
    assert x is not None and weight is not None
    return x, weight


@coupling_rule("Conv")
def conv(c: Coupling, node: Node) -> None:
    """W[Cout, Cin/g, ...]: input channels meet axis 1, output channels come from axis 0."""
    convolve(c, node, *operands(node), [node.input(2)])


def convolve(
    c: Coupling, node: Node, x: Value, weight: Value, per_output: list[Value | None], channel: int = 1
) -> None:
    """The couplings of a convolution of x, whose channels lie on axis `channel`.

    per_output: operands of one element an output channel, or of one in all.
    """
    fix_space(c, x, node, channel)
    for axis in range(2, weight.rank or 0):
        c.define(weight, axis, None, node)
    groups = int(node.attribute("group", 1))
    channels = c.plain(x, channel)
    if groups == 1:
        c.set_plain(weight, 1, channels, node)
        out = c.plain(weight, 0)
    else:
        out = _grouped(c, node, weight, channels, groups, out_axis=0, in_axis=1)
    _finish(c, node, x, out, per_output, channel)


@coupling_rule("ConvTranspose")
def conv_transpose(c: Coupling, node: Node) -> None:
    """W[Cin, Cout/g, ...]: the axes are exchanged."""
    x, weight = operands(node)
    fix_space(c, x, node)
    for axis in range(2, weight.rank or 0):
        c.define(weight, axis, None, node)
    groups = int(node.attribute("group", 1))
    channels = c.plain(x, 1)
    if groups == 1:
        c.set_plain(weight, 0, channels, node)
        out = c.plain(weight, 1)
    else:
        c.set_plain(weight, 0, channels, node)
        out = _grouped_transpose(c, node, weight, channels, groups)
    _finish(c, node, x, out, [node.input(2)])


def _finish(
    c: Coupling, node: Node, x: Value, out: Points | None, per_output: list[Value | None], channel: int = 1
) -> None:
    y = node.outputs[0]
    for value in per_output:
        if value is not None and value.rank:
            c.set_plain(value, 0, out, node)
    layout: Layout = [c.axis(x, 0), *[None] * ((y.rank or 1) - 1)]
    layout[channel] = None if out is None else out.reshape([-1 if a == channel else 1 for a in range(len(layout))])
    c.set(y, layout)


def _grouped(
    c: Coupling, node: Node, weight: Value, channels: np.ndarray | None, groups: int, out_axis: int, in_axis: int
) -> np.ndarray | None:
    """Output labels of a grouped convolution; None when its channels are fixed."""
    shape = weight.static_shape
    assert shape is not None
    per_out, per_in = shape[out_axis] // groups, shape[in_axis]
    if per_in == 1:  # depthwise: the group itself is what moves, with all outputs it has
        own = c.plain(weight, out_axis)
        if channels is None or own is None:
            c.pin(own, node, "each output reads one fixed input channel")
            c.pin(channels, node, "each output reads one fixed input channel")
            return own
        c.partition.union(np.repeat(channels, per_out), own)
        return own
    own = c.plain(weight, out_axis)
    blocks = np.arange(shape[out_axis]) // per_out
    if channels is None:
        c.define(weight, in_axis, None, node)
    else:
        rows = channels.reshape(groups, per_in)[blocks]
        c.define(weight, in_axis, rows.reshape(rows.shape + (1,) * (len(shape) - 2)), node)
        c.balance(channels, np.arange(len(channels)) // per_in, node)
    if own is not None:
        c.balance(own, blocks, node)
    return own


def _grouped_transpose(
    c: Coupling, node: Node, weight: Value, channels: np.ndarray | None, groups: int
) -> np.ndarray | None:
    """Output labels of a grouped transposed convolution, whose output channels are conditional on its input's group."""
    shape = weight.static_shape
    assert shape is not None
    per_in, per_out = shape[0] // groups, shape[1]
    if per_in == 1 and per_out == 1:
        return channels
    own = c.partition.fresh(groups * per_out)
    if per_in == 1:
        if channels is None:
            c.pin(own, node, "each output reads one fixed input channel")
        else:
            c.partition.union(np.repeat(channels, per_out), own)
        # The weight's rows are the groups; its columns move within their row only if they all move alike.
        c.pin_axis(weight, 1, node, "the outputs of one channel move together")
        return own
    blocks = np.arange(shape[0]) // per_in
    rows = own.reshape(groups, per_out)[blocks]
    if channels is not None:
        c.balance(channels, blocks, node)
    if per_out > 1:
        c.define(weight, 1, rows.reshape(rows.shape + (1,) * (len(shape) - 2)), node)
    else:
        c.pin(own, node, "each output belongs to one group of inputs")
    c.balance(own, np.arange(groups * per_out) // per_out, node)
    return own


@coupling_rule("CausalConvWithState")
def causal_conv(c: Coupling, node: Node) -> None:
    """A depthwise convolution of x[N, C, L] with W[C, 1, k] whose state [N, C, k-1] goes before x."""
    x, weight = operands(node)
    past = node.input(3)
    for value in (x, past):
        if value is not None:
            fix_space(c, value, node)
    c.define(weight, 2, None, node)
    samples, channels = c.plain(x, 0), c.plain(x, 1)
    for value, axis in ((weight, 0), (node.input(2), 0), (past, 1)):
        if value is not None:
            c.set_plain(value, axis, channels, node)
    if past is not None:
        c.set_plain(past, 0, samples, node)
    for value in node.outputs:
        c.set(value, [*c.layout(x)[:2], None])


@coupling_rule("MaxPool", "AveragePool", "LpPool")
def pool(c: Coupling, node: Node) -> None:
    """Batch and channels pass; space is fixed. Places count through the channels: only MaxUnpool may read them."""
    x = node.inputs[0]
    assert x is not None
    fix_space(c, x, node)
    places = [user.op for v in node.outputs[1:] for user, _ in c.graph.consumers().get(v, [])]
    if any(op != "MaxUnpool" for op in places):
        c.pin_axis(x, 1, node, "MaxPool counts places through the channels")
    keep_channels(c, node, x, 1)


@coupling_rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(c: Coupling, node: Node) -> None:
    """A reduction over space, which does not tell positions apart."""
    reduce_space(c, node, 1)


def reduce_space(c: Coupling, node: Node, channel: int) -> None:
    """The couplings of a reduction over all axes but the batch and the channels."""
    x = node.inputs[0]
    assert x is not None
    for axis in range(1, x.rank or 0):
        if axis != channel:
            c.decondition(x, axis)
    keep_channels(c, node, x, channel)


def keep_channels(c: Coupling, node: Node, x: Value, channel: int) -> None:
    """Give every result the batch and the channels of x; its other axes are fixed."""
    layout = [labels if axis in (0, channel) else None for axis, labels in enumerate(c.layout(x))]
    for value in node.outputs:
        c.set(value, layout)


@extent_rule("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv")
def group_extents(new: Node, old: Node, kept: Kept) -> None:
    """Where a group is one input channel, groups go with their channels; otherwise their number stays."""
    x, _ = operands(old)
    groups = int(old.attribute("group", 1))
    channel = -1 if old.attribute("channels_last", 0) else 1
    if groups > 1 and x.shape is not None and x.shape[channel] == groups and kept.mask(x, channel) is not None:
        new.attributes["group"] = kept.count(x, channel)
