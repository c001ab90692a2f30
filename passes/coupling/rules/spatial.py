"""Operators on feature maps that are no convolutions: channels pass, space is fixed."""

from __future__ import annotations

import numpy as np

from compiler.ir import Node
from passes.coupling.counts import number_of
from passes.coupling.extents import Kept, constant_operand, extent_rule
from passes.coupling.kinds import HEAD, HEAD_DIM, PRODUCT
from passes.coupling.partition import Points
from passes.coupling.rules.convolution import convolve, fix_space
from passes.coupling.solver import Coupling, Labels, Layout, coupling_rule


def _map(points: Points | None, axis: int, rank: int) -> Labels | None:
    return None if points is None else points.reshape([-1 if a == axis else 1 for a in range(rank)])


@coupling_rule("DepthToSpace")
def depth_to_space(c: Coupling, node: Node) -> None:
    """The channels that become the pixels of one block make one channel: runs (CRD) or strides (DCR) of them."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    fix_space(c, x, node)
    channels = c.plain(x, 1)
    if channels is not None:
        area = int(node.attribute("blocksize")) ** 2
        pixels = channels.reshape(-1, area).T if node.attribute("mode", "DCR") == "CRD" else channels.reshape(area, -1)
        c.partition.union(pixels[:1], pixels)
        channels = pixels[0]
    c.set(y, [c.axis(x, 0), _map(channels, 1, 4), None, None])


@coupling_rule("SpaceToDepth")
def space_to_depth(c: Coupling, node: Node) -> None:
    """Every channel becomes one for each pixel of a block: block after block (DCR), or channel after channel (CRD)."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    fix_space(c, x, node)
    channels = c.plain(x, 1)
    if channels is not None:
        spread = np.repeat if node.attribute("mode", "DCR") == "CRD" else np.tile
        channels = spread(channels, int(node.attribute("blocksize")) ** 2)
    c.set(y, [c.axis(x, 0), _map(channels, 1, 4), None, None])


@coupling_rule("Col2Im")
def col2im(c: Coupling, node: Node) -> None:
    """x[N, C k, L]: the k positions of a channel's patch lie together."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None and x.shape is not None and y.shape is not None
    c.pin_axis(x, 2, node, "Col2Im places the patches along this axis")
    c.decondition(x, 2)
    channels = c.plain(x, 1)
    count = y.shape[1]
    if channels is not None and not isinstance(count, int):
        c.pin(channels, node, "the number of channels is not known")
        channels = None
    elif channels is not None and isinstance(count, int):
        patches = channels.reshape(count, -1)
        c.partition.union(patches[:, :1], patches)
        channels = patches[:, 0]
    c.set(y, [_map(c.plain(x, 0), 0, len(y.shape)), _map(channels, 1, len(y.shape)), *[None] * (len(y.shape) - 2)])


@coupling_rule("GridSample")
def grid_sample(c: Coupling, node: Node) -> None:
    """Samples x[N, C, ...] where grid[N, ..., 2] says: the points of the grid are the space of the result."""
    x, grid, y = node.inputs[0], node.inputs[1], node.outputs[0]
    assert x is not None and grid is not None
    fix_space(c, x, node)
    last = (grid.rank or 1) - 1
    c.pin_axis(grid, last, node, "GridSample reads coordinates along this axis")
    for axis in range(1, last):  # each image is sampled at points of its own
        c.loosen(grid, axis, [0])
    samples = c.plain(x, 0)
    c.set_plain(grid, 0, samples, node)
    points = [None if t is None else np.moveaxis(t, last, 1) for t in c.decondition(grid, last)[1:last]]
    channels = c.axis(x, 1)
    if channels is not None and channels.shape[0] > 1:  # deformable attention: each image is a head
        c.mark(channels, 1, HEAD_DIM)
    for axis, labels in enumerate(points, 2):
        if labels is not None and labels.shape[0] > 1:
            c.mark(labels, axis, PRODUCT)
    c.mark(_map(samples, 0, y.rank or 0), 0, HEAD)
    c.set(y, [_map(samples, 0, y.rank or 0), channels, *points])


@coupling_rule("RoiAlign", "MaxRoiPool")
def regions(c: Coupling, node: Node) -> None:
    """Channels pass; the result has a row for each region."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    fix_space(c, x, node)
    c.pin_axis(x, 0, node, "regions name their image")
    for value in node.inputs[1:]:
        if value is not None:
            c.pin_value(value, node, "regions of the image are told apart")
    c.set(y, [None, _map(c.plain(x, 1), 1, 4), None, None])


@coupling_rule("AffineGrid", "Det")
def matrices(c: Coupling, node: Node) -> None:
    """Batches of small matrices whose rows and columns have meanings of their own."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    rank = x.rank or 0
    for axis in range(rank - 2, rank):
        c.pin_axis(x, axis, node, f"{node.op} tells rows and columns apart")
        c.decondition(x, axis)
    if node.op == "AffineGrid":
        c.pin_axis(x, 0, node, "the size of the grid is an operand")
        c.set(y, [None] * (y.rank or 0))
    else:
        c.set(y, [None if t is None else t.squeeze((rank - 2, rank - 1)) for t in c.layout(x)[:-2]])


@coupling_rule("DeformConv")
def deformable_convolution(c: Coupling, node: Node) -> None:
    """A convolution whose samples move by offset[N, 2 k g, ...]; each of g runs of channels has its own offsets."""
    x, weight, offset, mask = node.inputs[0], node.inputs[1], node.inputs[2], node.input(4)
    assert x is not None and weight is not None and offset is not None
    runs = int(node.attribute("offset_group", 1))
    channels = c.plain(x, 1)
    if channels is not None and runs > 1:
        if runs == len(channels):
            c.pin(channels, node, "each channel has offsets of its own")
        else:
            c.balance(channels, np.arange(len(channels)) // (len(channels) // runs), node)
    for value in (offset, mask):
        if value is not None:
            for axis in range(1, value.rank or 0):
                c.pin_axis(value, axis, node, "DeformConv reads where to sample along this axis")
            c.set_plain(value, 0, c.plain(x, 0), node)
    convolve(c, node, x, weight, [node.input(3)])


@coupling_rule("MaxUnpool")
def max_unpool(c: Coupling, node: Node) -> None:
    """Values go back to where a MaxPool found them; places are counted through the channels, which must agree."""
    x, places, shape, y = node.inputs[0], node.inputs[1], node.input(2), node.outputs[0]
    assert x is not None and places is not None
    if shape is not None and not shape.is_constant:
        c.refuse(node, "MaxUnpool to a shape that is computed at run time")
        return
    source = places.producer
    if source is None or source.op != "MaxPool" or places is not source.outputs[1]:
        c.refuse(node, "MaxUnpool of places that are not a MaxPool's own")
        return
    layout: Layout = []
    for value in (x, places):
        fix_space(c, value, node)
    for axis in range(2):
        layout.append(c.tie(c.axis(x, axis), c.axis(places, axis), node))
    c.set(y, [*layout, *[None] * ((y.rank or 0) - 2)])


@extent_rule("MaxUnpool")
def max_unpool_extents(new: Node, old: Node, kept: Kept) -> None:
    """An explicit shape names the channels too."""
    shape, y = old.input(2), old.outputs[0]
    if shape is not None and kept.touches(y):
        wanted = [int(n) for n in shape.numpy()]
        new.inputs[2] = constant_operand(shape, [kept.count(y, 1) if a == 1 else n for a, n in enumerate(wanted)])


@coupling_rule("Tile")
def tile(c: Coupling, node: Node) -> None:
    """Positions occur again; an axis that grows from 1 gains positions that are free to go."""
    x, repeats, y = node.inputs[0], node.inputs[1], node.outputs[0]
    assert x is not None and x.shape is not None and repeats is not None
    rank = len(x.shape)
    times = [number_of(item) for item in c.counts.of(repeats) or (None,) * rank]
    for axis, count in enumerate(times):
        if count is None:
            c.pin_axis(x, axis, node, "Tile repeats this axis as often as is computed at run time")
            c.decondition(x, axis)
    layout: Layout = []
    for axis, labels in enumerate(c.layout(x)):
        count = times[axis]
        if count is not None and x.shape[axis] == 1 and count > 1 and repeats.is_constant:
            layout.append(c.fresh(count, axis, rank))
        elif labels is None or count is None:
            layout.append(None)
        else:
            layout.append(np.tile(labels, [n or 1 if d > 1 else 1 for n, d in zip(times, labels.shape, strict=True)]))
    c.set(y, layout)


@extent_rule("Tile")
def tile_extents(new: Node, old: Node, kept: Kept) -> None:
    """Axes that grew from 1 are as long as what remains of them."""
    x, repeats, y = old.inputs[0], old.inputs[1], old.outputs[0]
    assert x is not None and x.shape is not None and repeats is not None
    if kept.touches(y) and repeats.is_constant:
        times = [int(n) for n in repeats.numpy()]
        wanted = [kept.count(y, a) if d == 1 and times[a] > 1 else times[a] for a, d in enumerate(x.shape)]
        new.inputs[1] = constant_operand(repeats, wanted)


@coupling_rule("CenterCropPad")
def center_crop_pad(c: Coupling, node: Node) -> None:
    """Axes that keep their extent pass; those that are cropped or padded are fixed."""
    x, y, target = node.inputs[0], node.outputs[0], node.inputs[1]
    assert x is not None and x.shape is not None and target is not None and y.shape is not None
    if not target.is_constant:
        c.refuse(node, "CenterCropPad to a shape that is computed at run time")
        return
    changed = [a for a in _target_axes(node) if x.shape[a] != y.shape[a] or not isinstance(x.shape[a], int)]
    for axis in changed:
        c.pin_axis(x, axis, node, "CenterCropPad crops or pads this axis")
        c.decondition(x, axis)
    c.set(y, [None if a in changed else labels for a, labels in enumerate(c.layout(x))])


def _target_axes(node: Node) -> list[int]:
    x = node.inputs[0]
    assert x is not None
    rank = x.rank or 0
    return [int(a) % rank for a in node.attribute("axes", range(rank))]


@extent_rule("CenterCropPad")
def center_crop_pad_extents(new: Node, old: Node, kept: Kept) -> None:
    """The target names axes that pass, too."""
    target, y = old.inputs[1], old.outputs[0]
    assert target is not None
    if kept.touches(y) and target.is_constant:
        wanted = [
            int(n) if kept.labels(y, a) is None else kept.count(y, a)
            for a, n in zip(_target_axes(old), target.numpy(), strict=True)
        ]
        new.inputs[1] = constant_operand(target, wanted)
