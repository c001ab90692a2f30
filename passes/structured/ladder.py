"""How far each group can be pruned, and in what order: the discrete steps that a budget chooses from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from passes.coupling.groups import Group

NORMALIZATIONS = ("mean", "max", "sum", "gaussian", "none")
"""What the scores of a group are divided by before groups are compared; gaussian: its mean comes off first."""


@dataclass(frozen=True)
class Ladder:
    """The steps of one group, least important first.

    blocks: per block, unit ids in ascending order of score. scores: the mean score of the units that each
    step takes, ascending. allowed: numbers of steps that respect rounding and minimal width, ascending, 0 first.
    """

    group: Group
    blocks: tuple[np.ndarray, ...]
    scores: np.ndarray
    allowed: np.ndarray

    def removed(self, steps: int) -> np.ndarray:
        """The units that go when `steps` steps are taken."""
        taken = [b[: steps * s] for b, s in zip(self.blocks, self.group.step, strict=True)]
        return np.concatenate(taken) if taken else np.empty(0, np.int64)

    def floor(self, steps: int) -> int:
        """The largest allowed number of steps that is at most `steps`."""
        return int(self.allowed[np.searchsorted(self.allowed, steps, side="right") - 1])

    def next(self, steps: int) -> int | None:
        """The smallest allowed number of steps above `steps`."""
        index = int(np.searchsorted(self.allowed, steps, side="right"))
        return int(self.allowed[index]) if index < len(self.allowed) else None


def build_ladders(
    groups: Sequence[Group],
    scores: np.ndarray,
    *,
    normalize: str,
    round_to: int,
    min_channels: int,
    max_ratio: float = 1.0,
) -> list[Ladder]:
    """One ladder for each group whose units all have scores (others cannot be ranked and stay whole).

    max_ratio: the largest share of a group's units that may go.
    """
    ladders = []
    for group in groups:
        own = [scores[block] for block in group.blocks]
        joined = np.concatenate(own)
        if np.isnan(joined).any():
            continue
        offset = joined.mean() if normalize == "gaussian" else 0.0
        scale = _scale(joined, normalize)
        blocks = tuple(b[np.argsort(s, kind="stable")] for b, s in zip(group.blocks, own, strict=True))
        per_step = [np.sort(s)[: group.size * w].reshape(group.size, w) for s, w in zip(own, group.step, strict=True)]
        means = (np.concatenate(per_step, axis=1).mean(axis=1) - offset) / scale
        ladders.append(Ladder(group, blocks, means, _allowed(group, round_to, min_channels, max_ratio)))
    return ladders


def _scale(scores: np.ndarray, normalize: str) -> float:
    """What scores are divided by; 1 where that would be nothing."""
    scales = {"mean": scores.mean(), "max": scores.max(), "sum": scores.sum(), "gaussian": scores.std()}
    scale = float(scales.get(normalize, 1.0))
    return scale if scale > 0 else 1.0


def _allowed(group: Group, round_to: int, min_channels: int, max_ratio: float) -> np.ndarray:
    steps = np.arange(group.size + 1)
    remaining = group.units - steps * sum(group.step)
    whole = np.all([len(b) - steps * s >= 1 for b, s in zip(group.blocks, group.step, strict=True)], axis=0)
    whole &= group.size - steps >= group.minimum
    whole &= steps <= max_ratio * group.size
    fine = whole & (remaining >= min_channels) & (remaining % round_to == 0)
    fine[0] = True
    return steps[fine]
