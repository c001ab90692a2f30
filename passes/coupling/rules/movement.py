"""Operators that only move elements. Labels go through as data: each rule is an array operation on them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from compiler.ir import Dim, Node, SecateurError, Value
from compiler.ir.symbols import UNKNOWN, Extent, agreement, number, product
from passes.coupling.counts import Count, Item, Items, Number, number_of
from passes.coupling.extents import Kept, constant_operand, extent_rule
from passes.coupling.rules.indexing import indexed
from passes.coupling.solver import Coupling, Labels, Layout, Place, coupling_rule


@coupling_rule("Transpose")
def transpose(c: Coupling, node: Node) -> None:
    """Axes change places, and with them the conditions of labels."""
    x = node.inputs[0]
    assert x is not None
    order = [int(a) for a in node.attribute("perm", range(x.rank or 0)[::-1])]
    layout = c.layout(x)
    c.set(node.outputs[0], [None if (t := layout[a]) is None else t.transpose(order) for a in order])


@coupling_rule("Squeeze", "Unsqueeze", "Reshape", "Flatten")
def reshape(c: Coupling, node: Node) -> None:
    """Any regrouping of extents in row-major order."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    target = node.input(1) if node.op == "Reshape" else None
    after = y.shape or ()
    items: Items = ()
    if target is not None and not target.is_constant:
        items = c.counts.of(target) or (None,) * len(after)
    segments = align(x.shape or (), after, c.facts)
    if segments is None:
        c.refuse(node, f"{node.op} regroups extents that are not known")
        for item in items:
            c.use(item, node)
        return
    layout = regroup(c, node, c.layout(x), x.shape or (), after, segments)
    for axis, item in enumerate(items):
        if number_of(item) != 0 or ([axis], [axis]) not in segments:  # 0 copies the extent of the same axis
            layout[axis] = _spelt(c, node, layout[axis], item, axis)
    c.set(y, layout)


def _spelt(c: Coupling, node: Node, labels: Labels | None, item: Item, axis: int) -> Labels | None:
    """The labels of an axis whose extent an operand spells at run time: the two must shrink together."""
    if isinstance(item, Count):
        counted = c.plain(item.value, item.axis)
        if counted is None and labels is None:
            return None
        if counted is not None and labels is not None and labels.size == labels.shape[axis] == len(counted):
            mine, theirs = c.partition.find(labels.ravel()), c.partition.find(counted)
            if not np.array_equal(np.sort(mine), np.sort(theirs)):  # the same units in any order are as many
                c.partition.union(mine, theirs)
            return labels
        c.pin(counted, node, "its extent is used as a number")
    elif isinstance(item, Number) and item.number > 0:
        return c.spell(item, node.outputs[0], axis, labels, node)
    elif number_of(item) == -1:
        return labels
    if labels is not None:
        c.pin(labels, node, f"{node.op} spells this extent as a number that cannot be changed")
    return None


Segment = tuple[list[int], list[int]]


def align(
    before: tuple[Dim, ...], after: tuple[Dim, ...], facts: dict[str, Extent] | None = None
) -> list[Segment] | None:
    """The finest cut of two shapes into runs of axes with equal products; None when that cannot be known.

    Extents may be symbols; one unknown extent of the result is what the others leave over. facts: see `agreement`.
    """
    left = [Extent.of(d) for d in before]
    right = [Extent.of(d) for d in after]
    named = {symbol for extent in left for symbol in extent.symbols}
    if UNKNOWN in named or product(left) == number(0):
        return None
    exact = agreement(left, right, {} if facts is None else facts)
    if exact is not None:
        return list(_runs([e.substitute(exact) for e in left], [e.substitute(exact) for e in right]))
    unknown = [j for j, extent in enumerate(right) if not extent.symbols <= named]
    if len(unknown) != 1:
        return None
    quotient = product(left).divided_by(product(e for j, e in enumerate(right) if j != unknown[0]))
    if quotient is None:
        return None
    right[unknown[0]] = quotient
    return list(_runs(left, right))


def _runs(left: list[Extent], right: list[Extent]) -> Iterator[Segment]:
    """Cut two factorisations of one product into the shortest runs that agree."""
    i = j = 0
    while i < len(left) or j < len(right):
        run: Segment = ([], [])
        a = b = number(1)
        while not (run[0] or run[1]) or a != b:
            # The side whose product divides the other's goes on; of two that do not, the shorter.
            behind = b.divided_by(a) is not None or (a.divided_by(b) is None and len(run[0]) < len(run[1]))
            if i < len(left) and (j >= len(right) or behind):
                a = a.times(left[i])
                run[0].append(i)
                i += 1
            else:
                b = b.times(right[j])
                run[1].append(j)
                j += 1
        yield run


def regroup(
    c: Coupling,
    node: Node,
    layout: Layout,
    before: tuple[Dim, ...],
    after: tuple[Dim, ...],
    segments: list[Segment],
) -> Layout:
    """The layout after a Reshape whose runs of axes are `segments`."""
    out: Layout = [None] * len(after)
    for run, segment in enumerate(segments):
        left, right = segment
        labelled = [t for a in left if (t := layout[a]) is not None]
        if not labelled:
            continue
        alive = c.choose((node, f"merge {run}"), labelled) if len(labelled) > 1 else 0
        for index, labels in enumerate(labelled):
            if index != alive:
                c.pin(labels, node, f"{node.op} merges this axis with another that moves")
        joint = _move(c, labelled[alive], before, after, segments, segment)
        wide = [a for a in right if joint.shape[a] > 1]
        numeric = [a for a in wide if isinstance(after[a], int)]
        if not numeric:
            c.pin(joint, node, f"{node.op} merges this axis with an extent that is not known")
        elif len(wide) == 1:
            out[wide[0]] = joint
        else:
            axis, joint = _attach(c, (node, f"split {run}"), joint, wide, numeric)
            out[axis] = joint
    return out


def _move(
    c: Coupling,
    labels: Labels,
    before: tuple[Dim, ...],
    after: tuple[Dim, ...],
    segments: list[Segment],
    own: Segment,
) -> Labels:
    """Labels over the new axes: full over the runs that they depend on, 1 over the others.

    Along an axis of extent `k*N`, labels may repeat with period k: so are heads beside a symbolic batch.
    """
    start = labels.ndim
    for left, right in reversed(segments):
        start -= len(left)
        stop = start + len(left)
        if (left, right) == own or any(labels.shape[a] > 1 for a in left):
            labels = _move_run(c, labels, start, [before[a] for a in left], [after[a] for a in right])
        else:
            labels = labels.reshape(*labels.shape[:start], *[1] * len(right), *labels.shape[stop:])
    return labels


def _move_run(c: Coupling, labels: Labels, start: int, before: list[Dim], after: list[Dim]) -> Labels:
    """Labels after the axes from `start` on, of extents `before`, have become axes of extents `after`.

    What comes before the last symbol of a run repeats as often as that says: labels are united over it.
    """
    stop = start + len(before)
    outer, inner = labels.shape[:start], labels.shape[stop:]
    first, full = _repeated(before)
    labels = c.narrow(labels, [1 if start <= a < start + first else None for a in range(labels.ndim)])
    block = np.broadcast_to(labels, (*outer, *[1] * first, *full, *inner)).reshape(*outer, -1, *inner)
    last, wanted = _repeated(after)
    period = math.gcd(math.prod(full), math.prod(wanted))
    if period < block.shape[start]:
        rows = block.reshape(*outer, -1, period, *inner)
        block = rows.take(0, axis=start)
        c.partition.union(np.expand_dims(block, start), rows)
    repeats = [math.prod(wanted) // period if a == start else 1 for a in range(block.ndim)]
    return np.tile(block, repeats).reshape(*outer, *[1] * last, *wanted, *inner)


def _repeated(extents: list[Dim]) -> tuple[int, list[int]]:
    """Where the last symbolic extent stands, and what is known of the extents from there on: k of `k*N`."""
    symbolic = [i for i, d in enumerate(extents) if not isinstance(d, int)]
    first = symbolic[-1] if symbolic else 0
    return first, [Extent.of(d).content for d in extents[first:]]


def _attach(c: Coupling, place: Place, joint: Labels, wide: list[int], numeric: list[int]) -> tuple[int, Labels]:
    """Which of the new axes a run's labels belong to: the one they vary along, else one to be searched for.

    The last axis is tried first (the channels within a head); at coarse places, the first (whole heads). An axis of
    symbolic extent has no labels of its own.
    """
    roots = c.partition.find(joint)
    for axis in numeric:
        first = roots
        for other in wide:
            if other != axis:
                first = first.take([0], axis=other)
        if np.array_equal(np.broadcast_to(first, roots.shape), roots):
            for other in wide:
                if other != axis:
                    joint = joint.take([0], axis=other)
            return axis, joint
    order = numeric if place in c.coarse else numeric[::-1]
    return (order[c.choose(place, [joint] * len(order))] if len(order) > 1 else order[0]), joint


def take(layout: Layout, axis: int, index: np.ndarray) -> Layout:
    """The layout of a tensor indexed along one axis."""
    return [None if t is None else (t.take(index, axis=axis) if t.shape[axis] > 1 else t) for t in layout]


@coupling_rule("Concat")
def concat(c: Coupling, node: Node) -> None:
    """Along its axis, operands follow one another; along the others they meet."""
    concatenate(c, node, [v for v in node.inputs if v is not None])


def concatenate(c: Coupling, node: Node, operands: list[Value]) -> None:
    """The couplings of a concatenation along `axis`, which the node's result holds."""
    y = node.outputs[0]
    rank = y.rank or 0
    axis = int(node.attribute("axis")) % rank
    for value in operands:
        c.decondition(value, axis)
    out: Layout = []
    for a in range(rank):
        if a == axis:
            out.append(_concatenate(c, node, operands, axis, rank))
            continue
        labels = c.axis(operands[0], a)
        for value in operands[1:]:
            labels = c.tie(labels, c.axis(value, a), node)
        out.append(labels)
    c.set(y, out)


def _concatenate(c: Coupling, node: Node, operands: list[Value], axis: int, rank: int) -> Labels | None:
    parts = []
    for value in operands:
        assert value.shape is not None
        labels, extent = c.axis(value, axis), value.shape[axis]
        if labels is None:
            if not isinstance(extent, int):
                for other in operands:
                    c.pin_axis(other, axis, node, "concatenated with a part of unknown extent")
                return None
            labels = c.fresh(extent, axis, rank)
            c.pin(labels, node, f"{value.name!r} is fixed")
        parts.append(labels)
    if all(p.size == 0 for p in parts):
        return None
    shape = np.broadcast_shapes(*[[1 if a == axis else d for a, d in enumerate(p.shape)] for p in parts])
    full = [[p.shape[axis] if a == axis else d for a, d in enumerate(shape)] for p in parts]
    return np.concatenate([np.broadcast_to(p, f) for p, f in zip(parts, full, strict=True)], axis=axis)


@coupling_rule("Split")
def split(c: Coupling, node: Node) -> None:
    """Each output is a run of the input's positions."""
    x, sizes = node.inputs[0], node.input(1)
    assert x is not None and x.shape is not None
    axis = int(node.attribute("axis", 0)) % len(x.shape)
    extents = [v.shape[axis] if v.shape else None for v in node.outputs]
    if (sizes is not None and not sizes.is_constant) or not all(isinstance(e, int) for e in extents):
        c.refuse(node, "Split into sizes that are not known")
        return
    layout, start = c.layout(x), 0
    for value, extent in zip(node.outputs, extents, strict=True):
        assert isinstance(extent, int)
        c.set(value, take(layout, axis, np.arange(start, start + extent)))
        start += extent


@coupling_rule("Slice")
def slice_(c: Coupling, node: Node) -> None:
    """A run of positions along each axis named; unknown bounds pin the axis."""
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None and x.shape is not None
    axes = node.input(3)
    if any(v is not None and not v.is_constant for v in node.inputs[1:]):
        if axes is None or not axes.is_constant:
            c.refuse(node, "Slice with bounds that are computed at run time")
            return
        for axis in (int(a) % len(x.shape) for a in axes.numpy().ravel()):
            c.pin_axis(x, axis, node, "Slice cuts this axis at a place that is computed at run time")
            c.decondition(x, axis)
        cut = {int(a) % len(x.shape) for a in axes.numpy().ravel()}
        c.set(y, [None if a in cut else labels for a, labels in enumerate(c.layout(x))])
        return
    layout = c.layout(x)
    for axis, selection in slice_bounds(node).items():
        extent = x.shape[axis]
        if isinstance(extent, int):
            layout = take(layout, axis, np.arange(extent)[selection])
        elif any(t is not None and t.shape[axis] > 1 for t in layout):
            c.refuse(node, "Slice of an axis of unknown extent")
            return
    c.set(y, layout)


def slice_bounds(node: Node) -> dict[int, slice]:
    """The python slice that a Slice node with constant operands applies to each axis."""
    x = node.inputs[0]
    assert x is not None
    rank = x.rank or 0
    starts, ends, *optional = (
        [] if (v := node.input(i)) is None else [int(n) for n in v.numpy().ravel()] for i in range(1, 5)
    )
    axes = optional[0] or list(range(len(starts)))
    steps = optional[1] or [1] * len(starts)
    found = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        extent = x.shape[axis % rank] if x.shape else None
        stop: int | None = end
        if step < 0 and isinstance(extent, int) and end < -extent:
            stop = None  # ONNX spells "through the first element" as a very negative end
        found[axis % rank] = slice(start, stop, step)
    return found


@coupling_rule("Pad")
def pad(c: Coupling, node: Node) -> None:
    """Constant padding adds positions that are free to go (the zero channels of an option-A shortcut)."""
    x, y, pads_value = node.inputs[0], node.outputs[0], node.input(1)
    assert x is not None and x.shape is not None and pads_value is not None
    axes_value = node.input(3)
    if not pads_value.is_constant or (axes_value is not None and not axes_value.is_constant):
        c.refuse(node, "Pad by amounts that are computed at run time")
        return
    rank = len(x.shape)
    amounts = {a: n for a, n in pad_amounts(node).items() if n != (0, 0)}
    grows = node.attribute("mode", "constant") == "constant" and all(n >= 0 for pair in amounts.values() for n in pair)
    for axis in amounts:
        c.decondition(x, axis)
        if not grows:
            c.pin_axis(x, axis, node, "Pad mirrors, repeats or crops positions of this axis")
    own = {axis: c.plain(x, axis) for axis in amounts}
    layout = c.layout(x)
    for axis, (before, after) in amounts.items():
        labels = own[axis]
        if labels is not None and grows:
            labels = np.concatenate([c.partition.fresh(before), labels, c.partition.fresh(after)])
            layout[axis] = labels.reshape([-1 if a == axis else 1 for a in range(rank)])
        else:
            layout[axis] = None
    c.set(y, layout)


def pad_amounts(node: Node) -> dict[int, tuple[int, int]]:
    """(before, after) for each axis that a Pad node with constant operands names."""
    x, pads, axes_value = node.inputs[0], node.inputs[1], node.input(3)
    assert x is not None and pads is not None
    rank = x.rank or 0
    amounts = [int(n) for n in pads.numpy().ravel()]
    axes = list(range(rank)) if axes_value is None else [int(a) % rank for a in axes_value.numpy().ravel()]
    half = len(amounts) // 2
    return {axis: (amounts[i], amounts[half + i]) for i, axis in enumerate(axes)}


@coupling_rule("Gather")
def gather(c: Coupling, node: Node) -> None:
    """Constant indices re-use positions; those from data tell positions apart, unless they are found anew (TopK)."""
    x, index = node.inputs[0], node.inputs[1]
    assert x is not None and x.shape is not None and index is not None
    axis = int(node.attribute("axis", 0)) % len(x.shape)
    extra, extent = (index.rank or 0) - 1, x.shape[axis]
    if not index.is_constant or not isinstance(extent, int):
        layout, _ = indexed(c, node, x, axis, index)
        c.pin_value(index, node, "these are indices")
        kept = [*layout[:axis], *[None] * (extra + 1), *layout[axis + 1 :]]
        c.set(node.outputs[0], [None if t is None else _widen(t, axis, extra) for t in kept])
        return
    positions = np.asarray(index.numpy(), np.int64).ravel() % extent
    layout = take(c.layout(x), axis, positions)
    if extra < 0:  # a scalar index drops the axis
        c.pick_out(layout.pop(axis), node.outputs[0])
        layout = [None if t is None else t.squeeze(axis) for t in layout]
    elif extra > 0:  # an index of several axes is a Gather and a Reshape
        before = (*x.shape[:axis], len(positions), *x.shape[axis + 1 :])
        after = (*x.shape[:axis], *(index.shape or ()), *x.shape[axis + 1 :])
        segments = [
            *(([a], [a]) for a in range(axis)),
            ([axis], list(range(axis, axis + extra + 1))),
            *(([a], [a + extra]) for a in range(axis + 1, len(before))),
        ]
        layout = regroup(c, node, layout, before, after, segments)
    c.set(node.outputs[0], layout)


def _widen(labels: Labels, axis: int, extra: int) -> Labels:
    """Labels after axis `axis` (of extent 1 in them) has become `extra + 1` axes."""
    shape = labels.shape
    return labels.reshape(*shape[:axis], *[1] * (extra + 1), *shape[axis + 1 :])


@coupling_rule("ConstantOfShape")
def constant_of_shape(c: Coupling, node: Node) -> None:
    """Axes whose extent is read off another tensor shrink with it; all positions hold the same number."""
    y = node.outputs[0]
    rank = y.rank or 0
    items = c.counts.of(node.inputs[0]) or (None,) * rank
    c.set(y, [_counted(c, item, a, rank) for a, item in enumerate(items)])


def _counted(c: Coupling, item: Item, axis: int, rank: int) -> Labels | None:
    """The labels of what a count counts, along another axis."""
    points = c.plain(item.value, item.axis) if isinstance(item, Count) else None
    return None if points is None else points.reshape([-1 if a == axis else 1 for a in range(rank)])


@coupling_rule("Expand")
def expand(c: Coupling, node: Node) -> None:
    """Axes that grow from 1 gain positions that are free to go, or move with what spells them; the others pass."""
    x, target, y = node.inputs[0], node.inputs[1], node.outputs[0]
    assert x is not None and x.shape is not None and target is not None and y.shape is not None
    rank = len(y.shape)
    items = c.counts.of(target) or (None,) * rank
    missing = rank - len(x.shape)
    wanted = (*(1,) * (rank - len(items)), *items)
    layout: Layout = [None] * missing
    layout += [None if t is None else t.reshape((1,) * missing + t.shape) for t in c.layout(x)]
    for axis, (extent, item) in enumerate(zip(y.shape, wanted, strict=True)):
        grown = axis < missing or (x.shape[axis - missing] == 1 and extent != 1)
        if grown:
            layout[axis] = _grown(c, node, axis, item)
        elif not target.is_constant and number_of(item) != 1:
            layout[axis] = _spelt(c, node, layout[axis], item, axis)
    c.set(y, layout)


def _grown(c: Coupling, node: Node, axis: int, item: Item) -> Labels | None:
    """The labels of an axis that grows from 1 to what `item` says."""
    y = node.outputs[0]
    assert y.shape is not None
    rank, extent = len(y.shape), y.shape[axis]
    if isinstance(item, Count):
        return _counted(c, item, axis, rank)
    if not isinstance(extent, int):
        return None
    if isinstance(item, Number):
        return c.spell(item, y, axis, c.fresh(extent, axis, rank), node)
    return c.fresh(extent, axis, rank) if node.inputs[1] is not None and node.inputs[1].is_constant else None


@extent_rule("Reshape")
def reshape_extents(new: Node, old: Node, kept: Kept) -> None:
    """Spell the target's numbers anew; 0 (copy) and -1 (infer) stay as they are."""
    target, y = old.inputs[1], old.outputs[0]
    assert target is not None
    if not kept.touches(y) or not target.is_constant:
        return
    wanted = [int(n) for n in target.numpy()]
    for axis, extent in enumerate(wanted):
        if extent > 0:
            wanted[axis] = kept.count(y, axis)
    new.inputs[1] = constant_operand(target, wanted)


@extent_rule("Expand")
def expand_extents(new: Node, old: Node, kept: Kept) -> None:
    """The target shape follows."""
    target, y = old.inputs[1], old.outputs[0]
    assert target is not None
    if kept.touches(y) and target.is_constant:
        wanted = [int(n) for n in target.numpy()]
        offset = (y.rank or 0) - len(wanted)
        wanted = [n if n == 1 else kept.count(y, a + offset) for a, n in enumerate(wanted)]
        new.inputs[1] = constant_operand(target, wanted)


@extent_rule("Split")
def split_extents(new: Node, old: Node, kept: Kept) -> None:
    """Every part's size is spelt out."""
    x = old.inputs[0]
    assert x is not None
    axis = int(old.attribute("axis", 0)) % (x.rank or 1)
    if not kept.touches(x):
        return
    sizes = np.array([kept.count(v, axis) for v in old.outputs], np.int64)
    new.attributes.pop("num_outputs", None)
    new.inputs = [new.inputs[0], Value(f"{old.outputs[0].name}.sizes", data=sizes)]


@extent_rule("Slice")
def slice_extents(new: Node, old: Node, kept: Kept) -> None:
    """Bounds count the positions that remain before them."""
    x, y = old.inputs[0], old.outputs[0]
    assert x is not None and x.shape is not None and y.shape is not None
    if not kept.touches(x) or any(v is not None and not v.is_constant for v in old.inputs[1:]):
        return
    starts, ends, axes, steps = [], [], [], []
    for axis, selection in slice_bounds(old).items():
        mask = kept.mask(x, axis)
        if mask is None:
            start, stop, step = selection.start, selection.stop, selection.step
            stop = -(2**62) if stop is None else stop
        else:
            positions = np.arange(len(mask))[selection]
            start, stop, step = _slice_of(np.cumsum(mask)[positions[mask[positions]]] - 1, old)
        starts.append(start)
        ends.append(stop)
        axes.append(axis)
        steps.append(step)
    names = [f"{y.name}.{part}" for part in ("starts", "ends", "axes", "steps")]
    operands = [Value(n, data=np.array(v, np.int64)) for n, v in zip(names, (starts, ends, axes, steps), strict=True)]
    new.inputs = [new.inputs[0], *operands]


def _slice_of(positions: np.ndarray, node: Node) -> tuple[int, int, int]:
    """(start, end, step) that selects exactly `positions`, which a strided Slice may not allow."""
    if len(positions) == 0:
        return 0, 0, 1
    step = int(positions[1] - positions[0]) if len(positions) > 1 else 1
    if not np.array_equal(positions, positions[0] + step * np.arange(len(positions))):
        raise SecateurError(
            "E_STRIDED_SLICE",
            "what remains of a strided Slice is not evenly spaced",
            where=node.describe(),
            hint="exclude its channels with ignore=[...]",
        )
    end = int(positions[-1]) + step
    return int(positions[0]), end if end >= 0 else -(2**62), step


@extent_rule("Pad")
def pad_extents(new: Node, old: Node, kept: Kept) -> None:
    """Padding shrinks by the padded positions that went."""
    y, pads, axes_value = old.outputs[0], old.inputs[1], old.input(3)
    assert pads is not None
    rank = y.rank or 0
    axes = list(range(rank)) if axes_value is None else [int(a) % rank for a in axes_value.numpy().ravel()]
    wanted = [int(n) for n in pads.numpy().ravel()]
    changed = False
    for i, axis in enumerate(axes):
        mask = kept.mask(y, axis)
        before, after = wanted[i], wanted[len(axes) + i]
        if mask is not None and (before or after):
            wanted[i] = int(mask[:before].sum())
            wanted[len(axes) + i] = int(mask[len(mask) - after :].sum())
            changed = True
    if changed:
        new.inputs[1] = constant_operand(pads, wanted)


@extent_rule("Gather")
def gather_extents(new: Node, old: Node, kept: Kept) -> None:
    """Indices are renumbered, and those of what went are dropped."""
    x, index = old.inputs[0], old.inputs[1]
    assert x is not None and index is not None
    if x.shape is None:  # what a Loop stacks, say: it has no labels
        return
    axis = int(old.attribute("axis", 0)) % len(x.shape)
    mask = kept.mask(x, axis)
    if mask is None:
        return
    positions = index.numpy().astype(np.int64) % len(mask)
    for place in range(positions.ndim):
        stays = kept.mask(old.outputs[0], axis + place)
        if stays is not None:
            positions = positions.compress(stays, axis=place)
    new.inputs[1] = constant_operand(index, np.cumsum(mask)[positions] - 1)
