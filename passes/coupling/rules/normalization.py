"""Normalisations: per-channel parameters meet the channel axis; statistics do not tell positions apart."""

from __future__ import annotations

import numpy as np

from compiler.ir import Node
from passes.coupling.extents import Kept, extent_rule
from passes.coupling.rules.elementwise import broadcast
from passes.coupling.solver import Coupling, coupling_rule


@coupling_rule("BatchNormalization")
def batch_normalization(c: Coupling, node: Node) -> None:
    """Scale, bias, mean and variance have one element a channel."""
    x = node.inputs[0]
    assert x is not None
    if node.attribute("training_mode", 0):
        c.refuse(node, "BatchNormalization in training mode")
        return
    axis = 1 if (x.rank or 0) > 1 else 0
    channels = c.plain(x, axis)
    for parameter in node.inputs[1:5]:
        if parameter is not None:
            c.set_plain(parameter, 0, channels, node)
    c.set(node.outputs[0], c.layout(x))


@coupling_rule("InstanceNormalization")
def instance_normalization(c: Coupling, node: Node) -> None:
    """Statistics over space for each channel: positions within a channel may move among themselves."""
    x = node.inputs[0]
    assert x is not None
    channels = c.plain(x, 1)
    for parameter in node.inputs[1:3]:
        if parameter is not None:
            c.set_plain(parameter, 0, channels, node)
    c.set(node.outputs[0], c.layout(x))


@coupling_rule("GroupNormalization")
def group_normalization(c: Coupling, node: Node) -> None:
    """Statistics over space and over each of `num_groups` runs of channels, which stay equally wide."""
    x = node.inputs[0]
    assert x is not None
    channels = c.plain(x, 1)
    c.decondition(x, 1)
    for parameter in node.inputs[1:3]:
        if parameter is not None:
            c.set_plain(parameter, 0, channels, node)
    groups = int(node.attribute("num_groups"))
    if channels is not None and groups < len(channels):
        c.balance(channels, np.arange(len(channels)) // (len(channels) // groups), node)
    c.set(node.outputs[0], c.layout(x))


@extent_rule("GroupNormalization")
def group_normalization_extents(new: Node, old: Node, kept: Kept) -> None:
    """Where a group is one channel, groups go with their channels; otherwise their number stays."""
    x = old.inputs[0]
    assert x is not None and x.shape is not None
    if x.shape[1] == old.attribute("num_groups") and kept.touches(x):
        new.attributes["num_groups"] = kept.count(x, 1)


@coupling_rule("MeanVarianceNormalization")
def mean_variance_normalization(c: Coupling, node: Node) -> None:
    """Statistics over the axes named, whose positions they do not tell apart."""
    x = node.inputs[0]
    assert x is not None
    for axis in node.attribute("axes", (0, 2, 3)):
        c.decondition(x, int(axis) % max(1, x.rank or 1))
    c.set(node.outputs[0], c.layout(x))


@coupling_rule("LayerNormalization", "RMSNormalization")
def layer_normalization(c: Coupling, node: Node) -> None:
    """Scale and bias broadcast over the trailing axes, all of which the statistics mix."""
    x = node.inputs[0]
    assert x is not None
    rank = x.rank or 0
    first = int(node.attribute("axis", -1)) % max(1, rank)
    for axis in range(first, rank):
        c.decondition(x, axis)
    parameters = [v for v in node.inputs[1:3] if v is not None]
    layout = broadcast(c, node, [x, *parameters], rank)
    c.set(node.outputs[0], layout)
    for value in node.outputs[1:]:
        c.set(value, [*layout[:first], *[None] * (rank - first)])


@coupling_rule("LpNormalization")
def lp_normalization(c: Coupling, node: Node) -> None:
    """Divides by a norm along one axis, which does not tell positions apart."""
    x = node.inputs[0]
    assert x is not None
    c.set(node.outputs[0], c.decondition(x, int(node.attribute("axis", -1)) % max(1, x.rank or 1)))


@coupling_rule("LRN")
def local_response(c: Coupling, node: Node) -> None:
    """Each channel is divided by its neighbours' energy: the channel axis is ordered, so fixed."""
    x = node.inputs[0]
    assert x is not None
    c.plain(x, 1)
    c.pin_axis(x, 1, node, "LRN mixes neighbouring channels")
    c.set(node.outputs[0], c.layout(x))
