"""Choosing how many steps of each ladder to take so that a cost falls by a given ratio."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from compiler.ir import Node, SecateurError, Value, node_macs
from compiler.ir.cost import COST_RULES, is_parameter
from passes.coupling.extents import Kept
from passes.coupling.groups import Groups
from passes.structured.ladder import Ladder

TOLERANCE = 0.002
"""The search stops when the ratio is this near (absolute)."""
_MAX_REFINEMENTS = 200

Metric = Callable[[np.ndarray], int]
"""From one keep flag a unit to the cost of what stays."""


def macs_metric(groups: Groups) -> Metric:
    """Multiply-accumulates of what stays."""
    nodes = [n for n in groups.graph.nodes if (n.domain, n.op) in COST_RULES]
    rest = sum(node_macs(n) for n in groups.graph.nodes if (n.domain, n.op) not in COST_RULES)

    def macs(keep: np.ndarray) -> int:
        kept = Kept(groups.layouts, keep)
        return rest + sum(node_macs(n, _shapes(n, kept)) for n in nodes)

    return macs


def params_metric(groups: Groups) -> Metric:
    """Parameters of what stays."""
    constants = [c for c in groups.graph.constants() if is_parameter(c)]

    def params(keep: np.ndarray) -> int:
        kept = Kept(groups.layouts, keep)
        return sum(math.prod(kept.shape(c)) for c in constants)

    return params


METRICS: dict[str, Callable[[Groups], Metric]] = {"macs": macs_metric, "params": params_metric}


def _shapes(node: Node, kept: Kept) -> dict[Value, tuple[int, ...]]:
    return {v: kept.shape(v) for v in (*node.inputs, *node.outputs) if v is not None and v.shape is not None}


def choose_steps(ladders: Sequence[Ladder], groups: Groups, metric: Metric, ratio: float, scope: str) -> list[int]:
    """Steps to take of each ladder so that the metric falls by `ratio`, as nearly as the steps allow.

    scope "global" takes the least important steps of the whole network first; "local" takes the same share
    of every group. Raises E_RATIO_UNREACHABLE when even the whole of every ladder is too little.
    """
    full = metric(np.ones(groups.unit_count, bool))

    def fallen(steps: Sequence[int]) -> float:
        return 1 - metric(keep_flags(groups, ladders, steps)) / full

    order = _order(ladders)
    size = len(order) if scope == "global" else max((len(ladder.scores) for ladder in ladders), default=0) * 4

    def at(position: int) -> list[int]:
        if scope == "local":
            return [ladder.floor(position * len(ladder.scores) // size) for ladder in ladders]
        wanted = np.bincount(order[:position], minlength=len(ladders))
        return [ladder.floor(int(n)) for ladder, n in zip(ladders, wanted, strict=True)]

    most = fallen(at(size)) if size else 0.0
    if most < ratio - TOLERANCE:
        raise SecateurError(
            "E_RATIO_UNREACHABLE",
            f"a ratio of {ratio:g} cannot be reached: at most {max(most, 0):.4f} can go",
            hint="lower the ratio, min_channels or round_to, or ignore less; `secateur groups` shows what is fixed",
        )
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if fallen(at(middle)) >= ratio:
            high = middle
        else:
            low = middle + 1
    over, under = at(low), at(max(0, low - 1))
    refined = _refine(under, ladders, fallen, ratio)
    return min((over, refined), key=lambda steps: abs(fallen(steps) - ratio))


def _order(ladders: Sequence[Ladder]) -> np.ndarray:
    """Ladder index of every step, least important step first."""
    if not ladders:
        return np.empty(0, np.int64)
    owner = np.concatenate([np.full(len(ladder.scores), i) for i, ladder in enumerate(ladders)])
    return owner[np.argsort(np.concatenate([ladder.scores for ladder in ladders]), kind="stable")]


def _refine(
    steps: list[int], ladders: Sequence[Ladder], fallen: Callable[[Sequence[int]], float], ratio: float
) -> list[int]:
    """Take further steps, least important first, while each brings the ratio nearer."""
    steps, gap, tries = list(steps), abs(fallen(steps) - ratio), 0
    improved = True
    while improved and gap > TOLERANCE and tries < _MAX_REFINEMENTS:
        improved = False
        ahead = [(ladder.scores[n - 1], i, n) for i, ladder in enumerate(ladders) if (n := ladder.next(steps[i]))]
        for _, i, target in sorted(ahead):
            tries += 1
            trial = [*steps[:i], target, *steps[i + 1 :]]
            distance = abs(fallen(trial) - ratio)
            if distance < gap:
                steps, gap, improved = trial, distance, True
                break
            if tries >= _MAX_REFINEMENTS:
                break
    return steps


def keep_flags(groups: Groups, ladders: Sequence[Ladder], steps: Sequence[int]) -> np.ndarray:
    """One flag a unit: False for those that the chosen steps remove."""
    keep = np.ones(groups.unit_count, bool)
    for ladder, count in zip(ladders, steps, strict=True):
        keep[ladder.removed(count)] = False
    return keep

