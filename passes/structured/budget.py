"""Choosing how many steps of each ladder to take so that a cost falls by a given ratio."""

from __future__ import annotations

import itertools
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
_CLOSE = 0.005
"""Further than this, steps of different groups are traded against each other."""
_MAX_ROUNDS = 32
_MAX_TRIES = 1500

Metric = Callable[[np.ndarray], int]
"""From one keep flag a unit to the cost of what stays."""


def macs_metric(groups: Groups) -> Metric:
    """Multiply-accumulates of what stays."""
    nodes = [n for n in groups.graph.all_nodes() if (n.domain, n.op) in COST_RULES]
    owned = groups.owned()

    def macs(keep: np.ndarray) -> int:
        kept = Kept(groups.layouts, keep)
        return sum(node_macs(n, _shapes(n, kept)) for n in nodes if n not in owned or keep[owned[n]])

    return macs


def params_metric(groups: Groups) -> Metric:
    """Parameters of what stays."""
    constants = [c for c in groups.graph.all_constants() if is_parameter(c)]
    owned = groups.owned()

    def params(keep: np.ndarray) -> int:
        kept = Kept(groups.layouts, keep)
        return sum(math.prod(kept.shape(c)) for c in constants if c not in owned or keep[owned[c]])

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

    caps = np.array([int(ladder.allowed[-1]) for ladder in ladders])
    most = fallen(caps.tolist())
    if most < ratio - TOLERANCE:
        raise SecateurError(
            "E_RATIO_UNREACHABLE",
            f"a ratio of {ratio:g} cannot be reached: at most {max(most, 0):.4f} can go",
            hint="lower the ratio, min_channels or round_to, or ignore less; `secateur groups` shows what is fixed",
        )
    path = _global_path(ladders) if scope == "global" else _local_path(ladders)
    best, gap = caps.tolist(), abs(most - ratio)
    for _ in range(_MAX_ROUNDS):
        under, over = _bracket(path, ladders, caps, fallen, ratio)
        # A step too coarse for what is left is not taken; the others go on without it.
        trial, coarse = list(under), []
        for i in (i for i, (u, o) in enumerate(zip(under, over, strict=True)) if u != o):
            further = [*trial[:i], over[i], *trial[i + 1 :]]
            if fallen(further) <= ratio:
                trial = further
            else:
                coarse.append(i)
        for steps in (over, trial):
            distance = abs(fallen(steps) - ratio)
            if distance < gap:
                best, gap = list(steps), distance
        if gap <= TOLERANCE or not coarse:
            break
        caps[coarse] = [under[i] for i in coarse]
    return best if gap <= _CLOSE else _polish(best, ladders, fallen, ratio)


def _polish(
    steps: list[int], ladders: Sequence[Ladder], fallen: Callable[[Sequence[int]], float], ratio: float
) -> list[int]:
    """Narrow groups make coarse steps: trade a few steps of one ladder for a few of another, to come nearer."""
    best, gap, tries = steps, abs(fallen(steps) - ratio), 0
    for reach in (1, 2, 3):
        for i, j in itertools.combinations_with_replacement(range(len(ladders)), 2):
            for up, down in itertools.product(range(reach + 1), range(-reach, 1)):
                for a, b in ((up, down), (down, up)):
                    trial = _moved(_moved(steps, ladders, i, a), ladders, j, b)
                    tries += 1
                    distance = abs(fallen(trial) - ratio)
                    if distance < gap:
                        best, gap = trial, distance
                    if gap <= _CLOSE or tries >= _MAX_TRIES:
                        return best
    return best


def _moved(steps: list[int], ladders: Sequence[Ladder], index: int, by: int) -> list[int]:
    """The steps with one ladder moved by some of its allowed numbers of steps."""
    allowed = ladders[index].allowed
    place = int(np.searchsorted(allowed, steps[index])) + by
    return [*steps[:index], int(allowed[np.clip(place, 0, len(allowed) - 1)]), *steps[index + 1 :]]


Path = Callable[[int], np.ndarray]
"""From a position to the steps wanted of each ladder, none of which falls as the position grows."""


def _bracket(
    path: tuple[Path, int],
    ladders: Sequence[Ladder],
    caps: np.ndarray,
    fallen: Callable[[Sequence[int]], float],
    ratio: float,
) -> tuple[list[int], list[int]]:
    """The two neighbouring points of a path between which the ratio is crossed."""
    wanted, length = path

    def at(position: int) -> list[int]:
        return [ladder.floor(int(n)) for ladder, n in zip(ladders, np.minimum(wanted(position), caps), strict=True)]

    low, high = 0, length
    while low < high:
        middle = (low + high) // 2
        if fallen(at(middle)) >= ratio:
            high = middle
        else:
            low = middle + 1
    return at(max(0, low - 1)), at(low)


def _global_path(ladders: Sequence[Ladder]) -> tuple[Path, int]:
    """Step by step, the least important of the whole network first."""
    owner = np.concatenate([np.full(len(ladder.scores), i) for i, ladder in enumerate(ladders)])
    order = owner[np.argsort(np.concatenate([ladder.scores for ladder in ladders]), kind="stable")]
    return lambda position: np.bincount(order[:position], minlength=len(ladders)), len(order)


def _local_path(ladders: Sequence[Ladder]) -> tuple[Path, int]:
    """The same share of every ladder."""
    lengths = np.array([len(ladder.scores) for ladder in ladders])
    finest = 4 * int(lengths.max())
    return lambda position: position * lengths // finest, finest


def keep_flags(groups: Groups, ladders: Sequence[Ladder], steps: Sequence[int]) -> np.ndarray:
    """One flag a unit: False for those that the chosen steps remove."""
    keep = np.ones(groups.unit_count, bool)
    for ladder, count in zip(ladders, steps, strict=True):
        keep[ladder.removed(count)] = False
    return keep
