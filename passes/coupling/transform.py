"""The two moves on groups: permute their units, or keep only some of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from compiler.ir import Graph, Value, infer_shapes
from compiler.ir.constant import ArrayConstant, Constant, Selection
from passes.coupling.extents import EXTENT_RULES, Kept, UnitLayout
from passes.coupling.groups import Group, Groups
from passes.coupling.terms import Term, drop, repick


def random_permutation(groups: Groups, rng: np.random.Generator, only: Group | None = None) -> np.ndarray:
    """For each unit, the unit that takes its place: one random cycle through every block (of one group).

    A cycle leaves no unit where it was.
    """
    source = np.arange(groups.unit_count)
    for group in groups if only is None else [only]:
        for block in group.blocks:
            cycle = rng.permutation(block)
            source[cycle] = np.roll(cycle, 1)
    return source


def permute(groups: Groups, source: np.ndarray, constants: set[Value] | None = None) -> Graph:
    """The graph with unit u's place taken by unit source[u] in every constant (or only in `constants`).

    By the definition of a group the result computes the same function.
    """
    graph = groups.graph.copy()
    for old, new in _paired_constants(groups.graph, graph):
        layout = groups.layouts.get(old)
        if layout is None or all(t is None for t in layout) or (constants is not None and old not in constants):
            continue
        assert old.data is not None
        new.data = _reorder(old.data, layout, source)
        new.selection = _selection(old, new.data.shape, layout, source, np.ones(groups.unit_count + 1, bool))
    if constants is None:
        _follow_terms(groups, graph, source, np.ones(groups.unit_count + 1, bool))
    return graph


def restrict(groups: Groups, keep: np.ndarray) -> Graph:
    """The graph with only the units whose flag is set; extents that operands spell out follow. Lazy in constants.

    In groups of several blocks what goes is first permuted to the end of its block, so that a Reshape and
    Transpose between the blocks (a channel shuffle) still puts every unit where its readers expect it.
    """
    graph = groups.graph.copy()
    source, flags = _to_the_end(groups, keep)
    kept = Kept(groups.layouts, flags[:-1])
    for old, new in _paired_constants(groups.graph, graph):
        layout = groups.layouts.get(old)
        if layout is None or all(t is None for t in layout):
            continue
        assert old.data is not None
        new.data = _select(_reorder(old.data, layout, source), layout, flags)
        new.shape = new.data.shape
        new.selection = _selection(old, new.data.shape, layout, source, flags)
    picks = {term.pick for term in groups.terms}
    for old_node, new_node in zip(groups.graph.all_nodes(), graph.all_nodes(), strict=True):
        rule = EXTENT_RULES.get((old_node.domain, old_node.op))
        if rule is not None and old_node not in picks:
            rule(new_node, old_node, kept)
    _respell(groups, graph, kept)
    _follow_terms(groups, graph, source, flags)
    _rename_clashes(graph)
    infer_shapes(graph)
    return graph


def origins(groups: Groups, keep: np.ndarray) -> Callable[[Value, int], np.ndarray | None]:
    """A function of a value and its axis: for each position that `restrict` leaves, the position that it was.

    It answers None where what stays differs from row to row.
    """
    source, flags = _to_the_end(groups, keep)

    def origin(value: Value, axis: int) -> np.ndarray | None:
        labels = groups.layouts[value][axis] if value in groups.layouts else None
        if labels is None:
            extent = (value.shape or ())[axis]
            return np.arange(extent) if isinstance(extent, int) else None
        if _conditional(labels, axis):
            return None
        return _positions(labels, axis, source).ravel()[flags[labels].ravel()]

    return origin


def _respell(groups: Groups, graph: Graph, kept: Kept) -> None:
    """Rewrite the numbers in shape arithmetic that spell extents which shrank."""
    twin = dict(zip(groups.graph.all_nodes(), graph.all_nodes(), strict=True))
    for item, value, axis in groups.spellings:
        if kept.labels(value, axis) is None:
            continue
        node = twin[item.node]
        operand = node.inputs[item.operand]
        assert operand is not None
        numbers = np.array(operand.numpy()).reshape(operand.static_shape or ())
        numbers.reshape(-1)[item.position] = kept.count(value, axis)
        node.inputs[item.operand] = Value(operand.name, data=numbers)


def _follow_terms(groups: Groups, graph: Graph, source: np.ndarray, flags: np.ndarray) -> None:
    """Pick the weights of gated terms from where they went, and drop the terms of those that are gone."""
    if not groups.terms:
        return
    twin = dict(zip(groups.graph.all_nodes(), graph.all_nodes(), strict=True))
    places: dict[Term, int] = {}
    gone = []
    for term in groups.terms:
        labels = groups.layouts[term.value][term.axis]
        place, stays = term.position, np.ones(term.position + 1, bool)
        if labels is not None:
            place = int(np.flatnonzero(_positions(labels, term.axis, source).ravel() == term.position)[0])
            stays = flags[labels].ravel()
        if stays[place]:
            places[term] = int(stays[:place].sum())
        else:
            gone.append(term)
    repick(places, twin)
    drop(graph, gone, twin)


def _to_the_end(groups: Groups, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(source of each unit's place, flag of each place; the last flag is for what is fixed)."""
    source, flags = np.arange(groups.unit_count), np.append(keep, True)
    for group in (g for g in groups if g.balanced > 1):
        for block in group.blocks:
            source[block] = np.concatenate([block[keep[block]], block[~keep[block]]])
            flags[block] = np.arange(len(block)) < keep[block].sum()
    return source, flags


def _reorder(data: Constant, layout: UnitLayout, source: np.ndarray) -> Constant:
    """The constant with each place taken by its source; the constant itself when nothing moves."""
    moved = [t is not None and bool((source[t[t >= 0]] != t[t >= 0]).any()) for t in layout]
    if not any(moved):
        return data
    return _gather(data, [None if t is None else _positions(t, a, source) for a, t in enumerate(layout)])


def _paired_constants(old: Graph, new: Graph) -> list[tuple[Value, Value]]:
    return list(zip(old.all_constants(), new.all_constants(), strict=True))


def _conditional(labels: np.ndarray, axis: int) -> bool:
    return labels.size != labels.shape[axis]


def _positions(labels: np.ndarray, axis: int, source: np.ndarray) -> np.ndarray:
    """For each position of an axis, the position whose content comes here; per row where labels are conditional.

    The k-th position of a unit receives the k-th position of its source.
    """
    rows = np.moveaxis(labels, axis, -1)
    flat = rows.reshape(-1, rows.shape[-1])
    wanted = np.where(flat >= 0, source[flat], flat)
    have_order = np.argsort(flat, axis=1, kind="stable")
    want_order = np.argsort(wanted, axis=1, kind="stable")
    result = np.broadcast_to(np.arange(flat.shape[1]), flat.shape).copy()
    np.put_along_axis(result, want_order, have_order, axis=1)
    result = np.where(flat >= 0, result, np.arange(flat.shape[1]))
    return np.moveaxis(result.reshape(rows.shape), -1, axis)


def _gather(data: Constant, index: UnitLayout) -> Constant:
    """Reorder: axes without conditions first (rows), then conditional ones within their row."""
    plain = {a: i.ravel() for a, i in enumerate(index) if i is not None and not _conditional(i, a)}
    taken = data.take(plain) if plain else data
    conditional = {a: i for a, i in enumerate(index) if i is not None and _conditional(i, a)}
    if not conditional:
        return taken
    array = np.asarray(taken.numpy())
    for axis, positions in conditional.items():
        array = np.take_along_axis(array, np.broadcast_to(positions, array.shape), axis)
    return ArrayConstant(array)


class _Positions(Constant):
    """Where the elements that a move leaves of a constant were; found when asked for."""

    def __init__(
        self, before: Selection, shape: tuple[int, ...], layout: UnitLayout, source: np.ndarray, flags: np.ndarray
    ) -> None:
        self.dtype = np.dtype(np.int64)
        self.shape = shape
        self._before = before
        self._move = layout, source, flags

    def numpy(self) -> np.ndarray:
        layout, source, flags = self._move
        return _select(_reorder(self._before.positions, layout, source), layout, flags).numpy()


class _Range(Constant):
    """Every element's own position."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.dtype = np.dtype(np.int64)
        self.shape = shape

    def numpy(self) -> np.ndarray:
        return np.arange(self.size).reshape(self.shape)


def _selection(
    old: Value, shape: tuple[int, ...], layout: UnitLayout, source: np.ndarray, flags: np.ndarray
) -> Selection:
    """What is left of a constant after a move, in terms of the constant before any."""
    assert old.data is not None
    before = old.selection or Selection(old.data.shape, _Range(old.data.shape))
    return Selection(before.shape, _Positions(before, shape, layout, source, flags))


def _select(data: Constant, layout: UnitLayout, flags: np.ndarray) -> Constant:
    """Keep the flagged positions: axes without conditions first, then conditional ones row by row."""
    plain = {
        a: np.flatnonzero(flags[t].ravel()) for a, t in enumerate(layout) if t is not None and not _conditional(t, a)
    }
    taken = data.take(plain) if plain else data
    conditional = {a: t for a, t in enumerate(layout) if t is not None and _conditional(t, a)}
    if not conditional:
        return taken
    array = np.asarray(taken.numpy())
    for axis, labels in conditional.items():
        for other, index in plain.items():
            if labels.shape[other] > 1:
                labels = labels.take(index, axis=other)
        stays = np.moveaxis(flags[labels], axis, -1)
        count = int(stays.sum(axis=-1).flat[0])
        order = np.argsort(~stays, axis=-1, kind="stable")[..., :count]
        positions = np.moveaxis(order, -1, axis)
        shape = [count if a == axis else d for a, d in enumerate(array.shape)]
        array = np.take_along_axis(array, np.broadcast_to(positions, shape), axis)
    return ArrayConstant(array)


def _rename_clashes(graph: Graph) -> None:
    """Give operands that several nodes used to share, and that now differ, names of their own."""
    names = graph.names()
    seen: dict[str, Value] = {}
    for value in graph.all_constants():
        if seen.setdefault(value.name, value) is value:
            continue
        number = itertools.count(1)
        value.name = next(n for i in number if (n := f"{value.name}_{i}") not in names)
        names.add(value.name)
        seen[value.name] = value
