"""The coupling solver: which positions of which axes move together.

Each axis of each tensor gets an array of points (`Labels`), one a position. Coupling rules, one an
operator, walk the graph forwards: they carry labels through (Concat, Split, Reshape and Transpose
are array indexing on them), unite the labels of operands that meet, and pin what an operator tells
apart by position. What remains free is a permutation symmetry of the network, which is what a
dependency group is.

Labels have the rank of their tensor: extent n along their own axis and 1 along the others, or n_b
along another axis b when the meaning of a position depends on where one stands along b (conditional
labels; a Reshape of C into g x C/g makes them, and so does the weight of a grouped convolution). An
axis without labels (None) is fixed: nothing there may move.

The unit-by-unit view of coupling follows "Structurally Prune Anything" (Wang et al., 2024,
arXiv:2403.18955); the permutation view and conditional labels are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from compiler.ir import Dim, Graph, Node, Value, subgraphs
from compiler.ir.symbols import Extent
from passes.coupling.counts import Count, Counts, Item, Number
from passes.coupling.kinds import EXPERT
from passes.coupling.partition import Partition, Points
from passes.coupling.positions import Positions
from passes.coupling.terms import gated_terms

Labels = np.ndarray
"""Point ids of one axis, broadcast over the tensor's rank (see the module's text)."""

Layout = list["Labels | None"]
"""The labels of each axis of a tensor."""


@dataclass(frozen=True)
class Pin:
    """Why units may not move: the node (None for the model's boundary) and the reason.

    by_meeting: no operator tells them apart; they meet something that is fixed.
    """

    node: Node | None
    reason: str
    by_meeting: bool = False

    def __str__(self) -> str:
        return f"{self.reason} ({self.node.describe()})" if self.node is not None else self.reason


@dataclass(frozen=True)
class Balance:
    """A constraint: each cell of an axis must lose equally many positions. `cells[p]` is the cell of position p."""

    labels: Points
    cells: np.ndarray
    node: Node


@dataclass(frozen=True)
class Least:
    """A constraint: at least `count` positions of an axis stay, since a node picks as many."""

    labels: Points
    count: int
    node: Node


Place = tuple[Node, str]
"""Where a rule has a choice: the node, and which of its choices."""

CouplingRule = Callable[["Coupling", Node], None]

COUPLING_RULES: dict[tuple[str, str], CouplingRule] = {}


def coupling_rule(*ops: str, domain: str = "") -> Callable[[CouplingRule], CouplingRule]:
    """Register how operators couple the axes of their operands and results."""

    def register(rule: CouplingRule) -> CouplingRule:
        for op in ops:
            COUPLING_RULES[domain, op] = rule
        return rule

    return register


class Coupling:
    """The state of one solve, and what rules use to express couplings.

    choices: which option to take where a rule has several. coarse: the places that prefer the largest unit (whole
    heads). heads: fused attention operators lose whole heads.
    """

    def __init__(
        self,
        graph: Graph,
        choices: dict[Place, int] | None = None,
        coarse: Collection[Place] = (),
        heads: bool = False,
    ) -> None:
        self.graph = graph
        self.coarse = coarse
        self.heads = heads
        self.partition = Partition()
        self.balances: list[Balance] = []
        self.least: list[Least] = []
        self.pins: list[Pin] = []
        self.decisions: dict[Place, tuple[Labels, int]] = {}
        self.kinds: list[tuple[Points, str]] = []  # points as [rows, positions]
        self.counts = Counts()
        self.facts: dict[str, Extent] = {}
        self.positions = Positions()
        self.terms = gated_terms(graph)
        self._picks = {term.picked: term for term in self.terms}
        self.spellings: dict[Number, tuple[Value, int, Labels | None] | None] = {}
        self._choices = choices or {}
        self._pinned: list[tuple[Points, int]] = []
        self._layouts: dict[Value, Layout] = {}
        self._unset: dict[Value, set[int]] = {}
        self._read = _read_values(graph)

    def solve(self) -> None:
        """Apply the rule of every node in order, then fix the outputs."""
        self._solve(self.graph)
        for value in self.graph.outputs:
            self.pin(self.positions.of(value), None, f"model output {value.name!r} holds its positions")
            self.fix(value, None, f"model output {value.name!r}")

    def _solve(self, graph: Graph) -> None:
        for value in graph.inputs:
            self._layouts[value] = [None] * (value.rank or 0)
        for node in graph.nodes:
            for used in self.counts.follow(node):
                self.use(used, node)
            for points in self.positions.follow(node):
                self.pin(points, node, "its positions are used as numbers")
            if self.counts.knows(node.outputs[0]):
                self._layouts[node.outputs[0]] = [None] * (node.outputs[0].rank or 0)
                continue
            rule = COUPLING_RULES.get((node.domain, node.op))
            ranked = all(v is None or v.rank is not None for v in self._seen(node))
            if rule is None or not (ranked or subgraphs(node)):
                self.refuse(node, f"no coupling rule for {node.qualified_op}" if rule is None else "unknown rank")
            else:
                rule(self, node)
            for value in node.outputs:
                self._layouts.setdefault(value, [None] * (value.rank or 0))

    # What rules read

    def layout(self, value: Value) -> Layout:
        """The labels of every axis; a constant's axes get fresh labels on first use."""
        return [self.axis(value, a) for a in range(value.rank or 0)]

    def axis(self, value: Value, axis: int) -> Labels | None:
        """The labels of one axis, or None where it is fixed or of extent 1."""
        layout = self._open(value)
        if axis in self._unset.get(value, ()):
            self._unset[value].discard(axis)
            extent = value.shape[axis] if value.shape else None
            if isinstance(extent, int) and extent > 1:
                layout[axis] = along(self.partition.fresh(extent), axis, len(layout))
        return layout[axis]

    def plain(self, value: Value, axis: int) -> Points | None:
        """The labels of one axis as a 1-D array; conditional labels are first united over their conditions."""
        labels = self.axis(value, axis)
        if labels is None:
            return None
        if labels.size != labels.shape[axis]:
            moved = np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis])
            self.partition.union(moved[:1], moved)
            labels = along(moved[0], axis, labels.ndim)
            self._layouts[value][axis] = labels
        return labels.ravel()

    def decondition(self, value: Value, axis: int) -> Layout:
        """The layout after every axis's labels have been made independent of `axis`."""
        layout = self.layout(value)
        for a, labels in enumerate(layout):
            if labels is not None and a != axis and labels.shape[axis] > 1:
                first = np.take(labels, [0], axis=axis)
                self.partition.union(first, labels)
                self._layouts[value][a] = first
        return list(self._layouts[value])

    def is_open(self, value: Value, axis: int) -> bool:
        """True for an axis of a constant about which no rule has said anything yet."""
        self._open(value)
        return axis in self._unset.get(value, ())

    def loosen(self, value: Value, axis: int, conditions: Sequence[int]) -> None:
        """Give an open axis of a constant labels of its own for every position of `conditions`."""
        shape = value.static_shape
        if shape is None or not self.is_open(value, axis) or shape[axis] == 1:
            return
        self._unset[value].discard(axis)
        extents = [d if a == axis or a in conditions else 1 for a, d in enumerate(shape)]
        self._layouts[value][axis] = self.partition.fresh(tuple(extents))

    def narrow(self, labels: Labels, extents: Sequence[Dim]) -> Labels:
        """Labels made independent of the axes where `extents` is 1, by uniting what they hold there."""
        for axis, extent in enumerate(extents):
            if extent == 1 and labels.shape[axis] > 1:
                first = labels.take([0], axis=axis)
                self.partition.union(first, labels)
                labels = first
        return labels

    # What rules write

    def set(self, value: Value, layout: Layout) -> None:
        """Give a node's output its layout. A position that is left alone on its axis is told apart, so it is pinned."""
        if value.shape is None:  # a result that nobody asked for
            return
        shape = value.shape
        for extent, labels in zip(shape, layout, strict=True):
            if extent == 1:
                self.pick_out(labels, value)
        self._layouts[value] = [None if d == 1 else labels for d, labels in zip(shape, layout, strict=True)]

    def pick_out(self, labels: Labels | None, value: Value) -> None:
        """One position of an axis becomes `value`, so it is told apart, unless that weighs a term that goes with it."""
        term = self._picks.get(value)
        if labels is None or term is None or labels.size > 1:
            self.pin(labels, value.producer, "one position of this axis is picked out")
        elif term.position == 0:
            points = self.plain(term.value, term.axis)
            self.keep_at_least(points, 1, term.node)
            self.mark(points, 0, EXPERT)

    def set_plain(self, value: Value, axis: int, points: Points | None, node: Node) -> None:
        """Give one axis of a value unconditional labels, tying them to those it has, if any."""
        rank = value.rank or 0
        self.define(value, axis, None if points is None else along(points, axis, rank), node)

    def define(self, value: Value, axis: int, labels: Labels | None, node: Node) -> None:
        """Say what the labels of one axis of an operand are; united with what is known already."""
        layout = self._open(value)
        if value.shape is not None and value.shape[axis] == 1:
            return
        if axis in self._unset.get(value, ()):
            self._unset[value].discard(axis)
            if labels is None:  # the axis of this constant is matched by a fixed one
                return
            layout[axis] = labels
            return
        layout[axis] = self.tie(layout[axis], labels, node)

    def tie(
        self, a: Labels | None, b: Labels | None, node: Node, why: str = "the other operand is fixed"
    ) -> Labels | None:
        """Unite two label arrays of equal rank position by position; a fixed side pins the other."""
        if a is None or b is None:
            for side in (a, b):
                if side is not None:
                    self.pin(side, node, why, by_meeting=True)
            return None
        self.partition.union(a, b)
        return a if a.size <= b.size else b

    def fresh(self, extent: int, axis: int, rank: int) -> Labels:
        """New labels for an axis of `extent` positions."""
        return along(self.partition.fresh(extent), axis, rank)

    def pin(self, labels: Points | None, node: Node | None, reason: str, by_meeting: bool = False) -> None:
        """Forbid the units of `labels` to move or go."""
        if labels is not None:
            self.pins.append(Pin(node, reason, by_meeting))
            self._pinned.append((labels.ravel(), len(self.pins)))

    def pin_axis(self, value: Value, axis: int, node: Node | None, reason: str) -> None:
        """Pin one axis of a value."""
        self.pin(self.axis(value, axis), node, reason)

    def pin_value(self, value: Value, node: Node | None, reason: str) -> None:
        """Pin every axis of a value."""
        for axis in range(len(self._open(value))):
            self.pin_axis(value, axis, node, reason)

    def fix(self, value: Value, node: Node | None, reason: str) -> None:
        """Pin a value at a boundary, and what its elements count or are positions of."""
        self.pin_value(value, node, reason)
        self.pin(self.positions.of(value), node, reason)
        for item in self.counts.of(value) or ():
            self.use(item, node)

    def balance(self, points: Points, cells: np.ndarray, node: Node) -> None:
        """Require that each cell of an axis loses equally many positions."""
        self.balances.append(Balance(points, cells, node))

    def keep_at_least(self, points: Points | None, count: int, node: Node) -> None:
        """Require that `count` positions of an axis stay."""
        if points is not None:
            self.least.append(Least(points, count, node))

    def refuse(self, node: Node, reason: str) -> None:
        """The answer to what is not understood: pin everything the node reads; its results are fixed."""
        for value in (v for v in node.inputs if v is not None):
            self.pin_value(value, node, reason)
        for body in subgraphs(node):
            for value in (*body.outer_values(), *body.all_constants()):
                self.fix(value, node, reason)

    def enter(self, body: Graph, node: Node) -> None:
        """Solve a body of a node, whose boundary is fixed: what it reads from outside, its operands and its results."""
        for value in body.outer_values():
            self.fix(value, node, f"a body of {node.op} reads this from outside")
        facts = dict(self.facts)
        self._solve(body)
        self.facts = facts  # what a body shows need not hold where it does not run
        for value in body.outputs:
            self.fix(value, node, f"a body of {node.op} gives this out")

    def use(self, item: Item, node: Node | None) -> None:
        """An extent, or a number that spells one, is used as it is: what it counts may not change."""
        if isinstance(item, Count):
            self.pin_axis(item.value, item.axis, node, "its extent is used as a number")
        elif isinstance(item, Number):
            earlier = self.spellings.get(item)
            self.spellings[item] = None
            if earlier is not None:
                self.pin(earlier[2], node, "its extent is used as a number")

    def spell(self, item: Number, value: Value, axis: int, labels: Labels | None, node: Node) -> Labels | None:
        """Let a number spell the extent of an axis, to be rewritten when that shrinks; it can spell one extent only."""
        if item not in self.spellings:
            self.spellings[item] = value, axis, labels
            return labels
        earlier = self.spellings[item]
        known = None if earlier is None else earlier[2]
        if known is None or labels is None or known.size != labels.size or labels.size != labels.shape[axis]:
            for side in (known, labels):
                self.pin(side, node, "one number spells this extent and one that is fixed")
            return None
        self.partition.union(known.ravel(), labels.ravel())
        return labels

    def choose(self, place: Place, options: list[Labels]) -> int:
        """The index of one of several labels that a Reshape may let live; `dependency_groups` searches for the best."""
        index = self._choices.get(place, 0) % len(options)
        self.decisions[place] = (options[index], len(options))
        return index

    def mark(self, labels: Labels | None, axis: int, kind: str) -> None:
        """Say what moves along an axis (see `passes.coupling.kinds`); messages and reports use it."""
        if labels is not None:
            self.kinds.append((np.moveaxis(labels, axis, -1).reshape(-1, labels.shape[axis]), kind))

    # The result

    def layouts(self) -> dict[Value, Layout]:
        """The labels of every value that was reached; constant axes never asked for stay None."""
        return self._layouts

    def pin_of_point(self) -> np.ndarray:
        """For each point, 0 when its unit is free, else 1 + the index in `pins` of the first pin of its unit."""
        none = len(self.pins) + 1
        first = np.full(len(self.partition), none, np.int64)
        for points, index in reversed(self._pinned):
            np.minimum.at(first, self.partition.find(points), index)
        first = first[self.partition.roots()]
        return np.where(first == none, 0, first)

    def _seen(self, node: Node) -> list[Value | None]:
        """What a node reads, and those of its results that somebody reads."""
        return [*node.inputs, *(v for v in node.outputs if v in self._read)]

    def _open(self, value: Value) -> Layout:
        if value not in self._layouts:
            rank = value.rank or 0
            self._layouts[value] = [None] * rank
            if value.is_constant:
                self._unset[value] = set(range(rank))
        return self._layouts[value]


def _read_values(graph: Graph) -> set[Value]:
    """What nodes, in bodies too, or the caller read; the other results need no shape."""
    read = set(graph.outputs)
    for node in graph.nodes:
        read.update(v for v in node.inputs if v is not None)
        read.update(*(_read_values(body) for body in subgraphs(node)))
    return read


def along(points: Points, axis: int, rank: int) -> Labels:
    """A 1-D array as labels of `axis` in a tensor of `rank`."""
    return points.reshape([-1 if a == axis else 1 for a in range(rank)])
