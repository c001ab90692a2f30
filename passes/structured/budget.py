"""Choosing how many steps of each ladder to take so that a cost falls by a given ratio."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

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


def choose_steps(
    ladders: Sequence[Ladder],
    groups: Groups,
    metric: Metric,
    ratio: float,
    scope: str,
    fixed: Mapping[int, int] | None = None,
) -> list[int]:
    """Steps to take of each ladder so that the metric falls by `ratio`, as nearly as the steps allow.

    scope: how the network is walked; see `PATHS`. fixed: ladders whose steps are settled. Raises E_RATIO_UNREACHABLE
    when even the whole of every ladder is too little.
    """
    fixed = fixed or {}
    free = [i for i in range(len(ladders)) if i not in fixed]
    settled = keep_flags(groups, [ladders[i] for i in fixed], list(fixed.values()))
    chosen = _choose([ladders[i] for i in free], groups, metric, ratio, scope, settled)
    steps = {**fixed, **dict(zip(free, chosen, strict=True))}
    return [steps[i] for i in range(len(ladders))]


def _choose(
    ladders: Sequence[Ladder], groups: Groups, metric: Metric, ratio: float, scope: str, settled: np.ndarray
) -> list[int]:
    """The steps of the ladders that are free, beside what is settled."""
    if not ladders:
        return []
    full = metric(np.ones(groups.unit_count, bool))

    def fallen(steps: Sequence[int]) -> float:
        return 1 - metric(keep_flags(groups, ladders, steps) & settled) / full

    caps = np.array([int(ladder.allowed[-1]) for ladder in ladders])
    most = fallen(caps.tolist())
    if most < ratio - TOLERANCE:
        raise SecateurError(
            "E_RATIO_UNREACHABLE",
            f"a ratio of {ratio:g} cannot be reached: at most {max(most, 0):.4f} can go",
            hint="lower the ratio, min_channels or round_to, or ignore less; `secateur groups` shows what is fixed",
        )
    path = PATHS[scope](ladders)
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


def _kind_path(ladders: Sequence[Ladder]) -> tuple[Path, int]:
    """The same share of every kind (channels, heads, hidden units), the least important of each kind first."""
    of_kind: dict[str, list[int]] = {}
    for index, ladder in enumerate(ladders):
        of_kind.setdefault(ladder.group.kind, []).append(index)
    ways = [(members, *_global_path([ladders[i] for i in members])) for members in of_kind.values()]
    finest = 4 * max(length for _, _, length in ways)

    def wanted(position: int) -> np.ndarray:
        steps = np.zeros(len(ladders), np.int64)
        for members, way, length in ways:
            steps[members] = way(position * length // finest)
        return steps

    return wanted, finest


def _erk_path(ladders: Sequence[Ladder]) -> tuple[Path, int]:
    """Erdős–Rényi-kernel densities: wide layers lose a larger share than narrow ones.

    Evci et al., "Rigging the Lottery" (ICML 2020, arXiv:1911.11134): the density of a layer is proportional to
    (n_in + n_out + k_h + k_w) / (n_in n_out k_h k_w), here of the largest weight of each group, and at most 1.
    """
    shapes = [max((m.value.static_shape or (1,) for m in ladder.group.members), key=math.prod) for ladder in ladders]
    density = np.array([sum(shape) / max(1, math.prod(shape)) for shape in shapes])
    density = density / density.min()
    lengths = np.array([len(ladder.scores) for ladder in ladders])
    finest = 4 * int(lengths.max())
    return lambda p: np.floor(np.maximum(0, 1 - (1 - p / finest) * density) * lengths).astype(np.int64), finest


PATHS: dict[str, Callable[[Sequence[Ladder]], tuple[Path, int]]] = {
    "local": _local_path,
    "global": _global_path,
    "kind": _kind_path,
    "erk": _erk_path,
}
"""Ways from the whole network to the most that can go: the same share of each group, the least important first of the
whole network or of each kind of unit, or shares by the layers' sizes."""


def keep_flags(groups: Groups, ladders: Sequence[Ladder], steps: Sequence[int]) -> np.ndarray:
    """One flag a unit: False for those that the chosen steps remove."""
    keep = np.ones(groups.unit_count, bool)
    for ladder, count in zip(ladders, steps, strict=True):
        keep[ladder.removed(count)] = False
    return keep
