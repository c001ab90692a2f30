"""From solved couplings to dependency groups.

Two units are interchangeable when they occupy the same axes, in the same cells, equally often; a
class of interchangeable units is a permutation symmetry. Classes that constraints tie together
(the groups of a convolution must stay equally wide) form one group with several blocks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

import passes.coupling.rules  # noqa: F401  (registers the rules)
from compiler.ir import Graph, Node, Value
from passes.coupling.counts import Number
from passes.coupling.extents import UnitLayout
from passes.coupling.kinds import ATTENTION, group_kinds
from passes.coupling.partition import Partition
from passes.coupling.readers import readers
from passes.coupling.solver import Coupling, Labels, Layout, Pin, Place
from passes.coupling.terms import Term

_MAX_SEARCH = 12


@dataclass(frozen=True)
class Member:
    """One axis of one constant that a group moves.

    positions: how many positions of the axis (in one row, where it is conditional) belong to the group.
    nodes: those that read the constant or a view of it.
    """

    value: Value
    axis: int
    positions: int
    nodes: tuple[Node, ...] = ()

    def __str__(self) -> str:
        return f"{self.value.name}[{self.axis}]"


@dataclass(frozen=True)
class Group:
    """A dependency group: a permutation symmetry of the network.

    kind: what one unit is; see `passes.coupling.kinds`.
    blocks: unit ids; the units of one block may be exchanged for each other. One step of pruning takes
    `step[b]` units of every block b, which keeps the constraint "balanced in len(blocks) blocks".
    members: the constants' axes that the group moves, in graph order. minimum: how many steps must stay.
    """

    name: str
    kind: str
    blocks: tuple[np.ndarray, ...]
    step: tuple[int, ...]
    members: tuple[Member, ...]
    minimum: int = 0

    @property
    def size(self) -> int:
        """How many steps the group holds (its width, for a group of one block)."""
        return min(len(b) // s for b, s in zip(self.blocks, self.step, strict=True))

    @property
    def units(self) -> int:
        """How many units the group holds in all."""
        return sum(len(b) for b in self.blocks)

    @property
    def balanced(self) -> int:
        """The number of blocks that must stay balanced; 1 when unconstrained."""
        return len(self.blocks)

    def __str__(self) -> str:
        return f"{self.name}: {self.units} {self.kind}s{self.constraints}; {', '.join(map(str, self.members))}"

    @property
    def constraints(self) -> str:
        """In words, each after a comma."""
        balanced = f", balanced in {self.balanced} blocks" if self.balanced > 1 else ""
        if max(self.step, default=1) > 1:
            balanced += f", removed {sum(self.step)} at a time"
        return balanced + (f", of which {self.minimum * sum(self.step)} must stay" if self.minimum else "")


@dataclass(frozen=True)
class Fixed:
    """An axis of a constant of which `positions` positions cannot move, and why."""

    value: Value
    axis: int
    positions: int
    reason: str

    def __str__(self) -> str:
        return f"{self.value.name}[{self.axis}]: {self.positions} fixed: {self.reason}"


@dataclass(frozen=True)
class Groups(Sequence[Group]):
    """The dependency groups of a graph, and the layout of units over its tensors.

    layouts: per value and axis, unit ids (-1 where fixed) or None. unit_count: number of units.
    fixed: what cannot move, with reasons.
    """

    graph: Graph
    groups: tuple[Group, ...]
    layouts: dict[Value, UnitLayout] = field(repr=False)
    unit_count: int
    fixed: tuple[Fixed, ...] = field(repr=False)
    spellings: tuple[tuple[Number, Value, int], ...] = field(default=(), repr=False)
    """Numbers inside shape arithmetic that spell the extent of (value, axis), and shrink with it."""
    terms: tuple[Term, ...] = field(default=(), repr=False)
    """Terms of sums that go with the unit that weighs them."""

    def unit_of(self, term: Term) -> int:
        """The unit that weighs a term; -1 where that is fixed."""
        labels = self.layouts[term.value][term.axis]
        return -1 if labels is None else int(labels.ravel()[term.position])

    def owned(self) -> dict[Value | Node, int]:
        """The constants and nodes that a term alone needs, and the unit that they go with."""
        found: dict[Value | Node, int] = {}
        for term in self.terms:
            unit = self.unit_of(term)
            if unit >= 0:
                found |= dict.fromkeys((*term.constants, *term.nodes), unit)
        return found

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.groups[index]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def moving(self) -> set[Value]:
        """The constants of which some axis has units, inside bodies too."""
        return {c for c in self.graph.all_constants() if any(t is not None for t in self.layouts.get(c, ()))}

    def __str__(self) -> str:
        lines = [f"{len(self.groups)} dependency groups"]
        lines += [f"  {group}" for group in self.groups]
        lines += [f"  {item}" for item in self.fixed]
        return "\n".join(lines) + "\n"


def dependency_groups(graph: Graph, *, heads: bool = False) -> Groups:
    """Find the dependency groups of a graph whose shapes are inferred.

    heads: let attention lose whole heads (with grouped queries, a key-value head with its query heads) instead of
    channels within each head; the two are alternatives. Operators without a coupling rule pin what they touch.
    Cost is linear in nodes and channels.
    """
    coupling, classes = _search(graph, (), heads)
    if heads:
        coupling, classes = _search(graph, _attention_places(coupling), heads)
    return _collect(graph, coupling, classes)


def _search(graph: Graph, coarse: Collection[Place], heads: bool) -> tuple[Coupling, _Classes]:
    """Solve, and again with other choices where a Reshape chose labels that turned out to be pinned.

    A choice may be dead for its own sake (an operator pins it) or for another's (it meets what another choice fixed).
    Each round advances the first kind in all of the graph, and the second only where there is none of the first, so
    that two Reshapes which must agree do not miss each other; one that has no option left goes back to its first.
    """
    choices: dict[Place, int] = {}
    best: tuple[tuple[int, int], Coupling, _Classes] | None = None
    exhausted: set[Place] = set()
    for _ in range(_MAX_SEARCH):
        coupling = Coupling(graph, choices, coarse, heads)
        coupling.solve()
        classes = _Classes(coupling)
        dead = [place for place, (labels, _) in coupling.decisions.items() if not classes.alive(labels)]
        score = len(dead), -classes.alive_units
        if best is None or score < best[0]:
            best = (score, coupling, classes)
        waiting = [place for place in dead if place not in exhausted]
        own = [place for place in waiting if classes.pinned_by_operator(coupling.decisions[place][0])]
        if not waiting:
            break
        for place in own or waiting:
            choices[place] = choices.get(place, 0) + 1
            if choices[place] == coupling.decisions[place][1]:
                choices[place] = 0
                exhausted.add(place)
    assert best is not None
    return best[1], best[2]


def _attention_places(coupling: Coupling) -> frozenset[Place]:
    """The Reshapes whose labels belong to attention: those that may let go of whole heads."""
    find = coupling.partition.find
    marked = [find(points).ravel() for points, kind in coupling.kinds if kind in ATTENTION]
    if not marked:
        return frozenset()
    roots = np.unique(np.concatenate(marked))
    return frozenset(p for p, (labels, _) in coupling.decisions.items() if np.isin(find(labels), roots).any())


class _Classes:
    """Interchangeable units of a solved coupling, and how balance ties classes into groups."""

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        self.pin = coupling.pin_of_point()
        signature = _signatures(coupling)
        roots = np.unique(np.concatenate([[], *self._used_roots()]).astype(np.int64))
        free = roots[self.pin[roots] == 0]
        _, first, inverse, counts = np.unique(
            signature[free], return_index=True, return_inverse=True, return_counts=True
        )
        by_first = np.argsort(first)  # classes in the order of their first unit, not of their hash
        inverse, counts = np.argsort(by_first)[inverse], counts[by_first]
        self.class_of = np.full(len(coupling.partition), -1, np.int64)
        self.class_of[free] = inverse
        self.sizes = counts
        self.units = np.split(free[np.argsort(inverse, kind="stable")], np.cumsum(counts)[:-1]) if len(free) else []
        self.bundles = self._bundle()
        usable = [k for members, steps in self.bundles if _steps(counts, members, steps) > 1 for k in members]
        self._is_usable = np.zeros(len(counts) + 1, bool)  # the last is for what belongs to no class
        self._is_usable[usable] = True
        self.alive_units = int(counts[usable].sum())

    def alive(self, labels: np.ndarray) -> bool:
        """True when some unit of `labels` can be pruned."""
        return bool(self._is_usable[self.class_of[self.coupling.partition.find(labels)]].any())

    def pinned_by_operator(self, labels: np.ndarray) -> bool:
        """True when units of `labels` are pinned by what an operator does, not by what they meet."""
        pins = np.unique(self.pin[self.coupling.partition.find(labels)])
        return any(not self.coupling.pins[p - 1].by_meeting for p in pins.tolist() if p)

    def _used_roots(self) -> Iterator[np.ndarray]:
        for _, _, labels in _distinct_labels(self.coupling):
            yield self.coupling.partition.find(labels).ravel()

    def _bundle(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Groups as (classes, units of each class that one step takes); unbalanceable ones are left out."""
        constraints = [(involved, matrix) for involved, matrix in self._constraints() if len(matrix) > 1]
        ties = Partition()
        classes = ties.fresh(len(self.sizes))
        of_class: dict[int, list[int]] = {}
        for number, (involved, matrix) in enumerate(constraints):
            uneven = involved[(matrix != matrix[0]).any(axis=0)]
            ties.union(classes[uneven[:1]], classes[uneven])
            for k in involved.tolist():
                of_class.setdefault(k, []).append(number)
        members: dict[int, list[int]] = {}
        for k, root in enumerate(ties.find(classes).tolist()):
            members.setdefault(root, []).append(k)
        found = []
        for group in members.values():
            sizes = self.sizes[group]
            own = [constraints[n] for n in sorted({n for k in group for n in of_class.get(k, ())})]
            for steps in (np.ones(len(group), np.int64), sizes // math.gcd(*sizes.tolist())):
                if all(_is_even(involved, matrix, np.array(group), steps) for involved, matrix in own):
                    found.append((tuple(group), tuple(int(s) for s in steps)))
                    break
        return found

    def _constraints(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each constraint, the contents of its cells (see `_contents`), which must shrink alike."""
        find = self.coupling.partition.find
        for _, axis, labels in _distinct_labels(self.coupling):
            if labels.size != labels.shape[axis]:
                rows = np.moveaxis(find(labels), axis, -1).reshape(-1, labels.shape[axis])
                yield self._contents(rows)
        for balance in self.coupling.balances:
            order = np.argsort(balance.cells, kind="stable")
            yield self._contents(find(balance.labels)[order].reshape(int(balance.cells.max()) + 1, -1))

    def _contents(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(classes that occur, how many positions of each cell one unit of each occupies [distinct cells, classes])."""
        involved, columns = np.unique(self.class_of[rows], return_inverse=True)
        counts = np.zeros((len(rows), len(involved)), np.int64)
        np.add.at(counts, (np.arange(len(rows))[:, None], columns.reshape(rows.shape)), 1)
        free = involved >= 0
        involved, counts = involved[free], counts[:, free]
        return involved, np.unique(counts // np.maximum(self.sizes[involved], 1), axis=0)


def _is_even(involved: np.ndarray, matrix: np.ndarray, group: np.ndarray, steps: np.ndarray) -> bool:
    """True when one step of a group takes equally much from every cell of a constraint."""
    order = np.argsort(group)
    place = np.searchsorted(group, involved, sorter=order).clip(max=len(group) - 1)
    taken = np.where(group[order[place]] == involved, steps[order[place]], 0)
    return len(np.unique(matrix @ taken)) == 1


def _steps(sizes: np.ndarray, classes: tuple[int, ...], steps: tuple[int, ...]) -> int:
    return min(int(sizes[k]) // s for k, s in zip(classes, steps, strict=True))


def _mix(numbers: np.ndarray | int) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): spreads integers over 64 bits."""
    z = np.asarray(numbers, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _signatures(coupling: Coupling) -> np.ndarray:
    """A hash per unit of the multiset of (axis, cell) that it occupies."""
    signature = np.zeros(len(coupling.partition), np.uint64)
    find = coupling.partition.find
    contents: np.ndarray | None = None
    axis_id = 0
    with np.errstate(over="ignore"):
        for layout, axis, labels in _distinct_labels(coupling):
            axis_id += 1
            salt = _mix(axis_id)
            roots = find(labels)
            cell = _cells(labels, axis)
            np.add.at(signature, roots, np.broadcast_to(_mix(cell ^ salt), roots.shape))
            for other in (a for a, d in enumerate(cell.shape) if d > 1):
                row_labels = layout[other]
                if row_labels is not None:
                    contents = _row_contents(coupling) if contents is None else contents
                    _add_row_contents(signature, find, row_labels, roots, other, salt, contents)
        for balance in coupling.balances:
            axis_id += 1
            np.add.at(signature, find(balance.labels), _mix(balance.cells.astype(np.uint64) ^ _mix(axis_id)))
    return signature


def _distinct_labels(coupling: Coupling) -> Iterator[tuple[Layout, int, Labels]]:
    """Every array of labels once, with the first layout and axis that hold it."""
    seen: set[int] = set()
    for layout in coupling.layouts().values():
        for axis, labels in enumerate(layout):
            if labels is not None and id(labels) not in seen:
                seen.add(id(labels))
                yield layout, axis, labels


def _cells(labels: Labels, axis: int) -> np.ndarray:
    """The number of each cell: of each place on the axes that condition labels."""
    cells = [1 if a == axis else d for a, d in enumerate(labels.shape)]
    return np.arange(math.prod(cells), dtype=np.uint64).reshape(cells)


def _add_row_contents(  # type: ignore[no-untyped-def]
    signature: np.ndarray, find, row_labels: Labels, roots: np.ndarray, axis: int, salt: np.ndarray, keys: np.ndarray
) -> None:
    """Rows that condition other labels are interchangeable only when what they hold is."""
    others = tuple(a for a in range(roots.ndim) if a != axis)
    contents = _mix(keys[roots]).sum(axis=others, dtype=np.uint64)
    wide = np.broadcast_to(
        contents.reshape([-1 if a == axis else 1 for a in range(roots.ndim)]), np.broadcast_shapes(row_labels.shape)
    )
    np.add.at(signature, find(row_labels), _mix(wide ^ salt))


def _row_contents(coupling: Coupling) -> np.ndarray:
    """What makes a unit the counterpart of one in another row, a key per unit.

    A unit that lives in one row only (a hidden unit of one expert) moves with its row: its counterparts are those at
    the same places of the other rows, in every tensor. Any other unit is its own only counterpart.
    """
    find = coupling.partition.find
    keys = coupling.pin_of_point().astype(np.uint64)
    shared = np.zeros(len(keys), bool)
    row_of = np.zeros(len(keys), np.int64)
    for number, (layout, axis, labels) in enumerate(_distinct_labels(coupling)):
        roots = find(labels)
        salt = _mix(_mix(number + 1))
        rows = [a for a, d in enumerate(labels.shape) if d > 1 and a != axis]
        places: np.ndarray = np.arange(labels.shape[axis], dtype=np.uint64).reshape(
            [-1 if a == axis else 1 for a in range(labels.ndim)]
        )
        if len(rows) == 1 and layout[rows[0]] is not None:
            index = np.broadcast_to(_cells(labels, axis).astype(np.int64), labels.shape)
            row_of[roots] = index
            np.logical_or.at(shared, roots, row_of[roots] != index)
        else:
            places = places * np.uint64(math.prod(labels.shape)) + _cells(labels, axis)
        np.add.at(keys, roots, np.broadcast_to(_mix(places ^ salt), roots.shape))
    for number, balance in enumerate(coupling.balances):
        np.add.at(keys, find(balance.labels), _mix(balance.cells.astype(np.uint64) ^ ~_mix(_mix(number + 1))))
    keys[shared] = _mix(np.flatnonzero(shared))
    return keys


def _collect(graph: Graph, coupling: Coupling, classes: _Classes) -> Groups:
    """Number the units that can be pruned, and describe groups and what is fixed."""
    find = coupling.partition.find
    usable = [(k, s) for k, s in classes.bundles if _steps(classes.sizes, k, s) > 1]
    unit_of = np.full(len(coupling.partition), -1, np.int64)
    group_of_unit: list[int] = []
    blocks: list[tuple[np.ndarray, ...]] = []
    for index, (members, _) in enumerate(usable):
        made = []
        for k in members:
            ids = np.arange(len(group_of_unit), len(group_of_unit) + len(classes.units[k]))
            unit_of[classes.units[k]] = ids
            group_of_unit += [index] * len(ids)
            made.append(ids)
        blocks.append(tuple(made))
    layouts: dict[Value, UnitLayout] = {}
    cache: dict[tuple[int, int], np.ndarray | None] = {}
    for value, layout in coupling.layouts().items():
        layouts[value] = []
        for axis, labels in enumerate(layout):
            if labels is None:
                layouts[value].append(None)
                continue
            key = id(labels), axis
            if key not in cache:
                units = unit_of[find(labels)]
                cache[key] = _collapse(units, axis) if (units >= 0).any() else None
            layouts[value].append(cache[key])
    members_of, fixed = _members(graph, coupling, classes, layouts, np.array(group_of_unit, np.int64))
    kinds = group_kinds(coupling, unit_of, np.array(group_of_unit, np.int64), members_of)
    minima = _minima(coupling, unit_of, np.array(group_of_unit, np.int64), [s for _, s in usable])
    groups = [
        Group(
            name=str(members_of[i][0]) if i in members_of else f"group{i}",
            kind=kinds[i],
            blocks=b,
            step=s,
            members=tuple(members_of.get(i, ())),
            minimum=minima.get(i, 0),
        )
        for i, (b, (_, s)) in enumerate(zip(blocks, usable, strict=True))
    ]
    order = {c: i for i, c in enumerate(graph.all_constants())}
    groups.sort(key=lambda g: order[g.members[0].value] if g.members else len(order))
    spellings = tuple((n, s[0], s[1]) for n, s in coupling.spellings.items() if s is not None and s[2] is not None)
    terms = tuple(coupling.terms)
    return Groups(graph, tuple(_distinct(groups)), layouts, len(group_of_unit), tuple(fixed), spellings, terms)


def _collapse(units: np.ndarray, axis: int) -> np.ndarray:
    """Units without the conditions that turned out to make no difference."""
    for other in range(units.ndim):
        if other != axis and units.shape[other] > 1:
            first = units.take([0], axis=other)
            if np.array_equal(np.broadcast_to(first, units.shape), units):
                units = first
    return units


def _minima(
    coupling: Coupling, unit_of: np.ndarray, group_of: np.ndarray, steps: Sequence[tuple[int, ...]]
) -> dict[int, int]:
    """How many steps of a group must stay so that every axis keeps the positions that a node picks from it.

    Groups that share an axis each keep their share.
    """
    minima: dict[int, int] = {}
    for least in coupling.least:
        units = unit_of[coupling.partition.find(least.labels)]
        moving = units[units >= 0]
        needed = least.count - (len(units) - len(moving))
        for group, positions in zip(*np.unique(group_of[moving], return_counts=True), strict=True):
            per_step = positions * sum(steps[group]) / np.count_nonzero(group_of == group)
            share = math.ceil(needed * positions / len(moving))
            minima[int(group)] = max(minima.get(int(group), 0), math.ceil(share / per_step))
    return minima


def _distinct(groups: list[Group]) -> Iterator[Group]:
    """Groups that begin at the same axis (the parts of a Split) are numbered apart: `w[0]`, `w[0]#2`."""
    seen: Counter[str] = Counter()
    for group in groups:
        seen[group.name] += 1
        number = seen[group.name]
        yield group if number == 1 else replace(group, name=f"{group.name}#{number}")


def _members(
    graph: Graph, coupling: Coupling, classes: _Classes, layouts: dict[Value, UnitLayout], group_of: np.ndarray
) -> tuple[dict[int, list[Member]], list[Fixed]]:
    uses = {value: tuple(node for node, _ in found) for value, found in readers(graph).items()}
    members: dict[int, list[Member]] = {}
    fixed: list[Fixed] = []
    for value in graph.all_constants():
        for axis, labels in enumerate(coupling.layouts().get(value, ())):
            if labels is None:
                continue
            units = layouts[value][axis]
            if units is not None:
                groups, counts = np.unique(group_of[units[units >= 0]], return_counts=True)
                rows = units.size // units.shape[axis]
                for g, n in zip(groups.tolist(), counts.tolist(), strict=True):
                    members.setdefault(g, []).append(Member(value, axis, -(-n // rows), uses.get(value, ())))
            roots = coupling.partition.find(labels)
            if units is not None:
                roots = roots[np.broadcast_to(units, roots.shape) < 0]
            fixed += _explain(value, axis, np.unique(roots), coupling, classes)
    return members, fixed


def _explain(value: Value, axis: int, roots: np.ndarray, coupling: Coupling, classes: _Classes) -> Iterator[Fixed]:
    pins, counts = np.unique(classes.pin[roots], return_counts=True)
    for pin, count in zip(pins.tolist(), counts.tolist(), strict=True):
        why: Pin | str = coupling.pins[pin - 1] if pin else "no other unit is interchangeable, or balance forbids it"
        yield Fixed(value, axis, count, str(why))
