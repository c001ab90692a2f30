"""Which rows of a sparse matrix go into one block, and what blocks of them hold, before any value is encoded."""

from __future__ import annotations

import functools

import numpy as np

#: Rows beyond which looking for similar ones takes longer than it saves.
_MOST_ROWS = 8192


class RowGroups:
    """The nonzeros of a matrix [rows, columns]."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.nonzero = np.asarray(matrix) != 0
        self._orders: dict[int, np.ndarray] = {}

    @functools.cached_property
    def counts(self) -> np.ndarray:
        """Nonzeros of each row."""
        counts: np.ndarray = self.nonzero.sum(axis=1)
        return counts

    @functools.cached_property
    def _shared(self) -> np.ndarray:
        """Columns that two rows both use, [rows, rows]."""
        nonzero = self.nonzero.astype(np.float32)
        return nonzero @ nonzero.T

    def order(self, block: int) -> np.ndarray:
        """Row numbers [blocks, block] that put rows whose nonzeros coincide into one block; the last one is filled up.

        The given order is kept unless grouping by similarity (greedily, the longest row first with those that share
        most columns with it) needs at least 2 % fewer blocks of values.
        """
        if block not in self._orders:
            self._orders[block] = self._ordered(block)
        return self._orders[block]

    def columns(self, block: int) -> np.ndarray:
        """Which columns each block of `order` uses, bool [blocks, columns]."""
        used: np.ndarray = self.nonzero[self.order(block)].any(axis=1) if block > 1 else self.nonzero
        return used

    def can_fill(self, block: int, share: float) -> bool:
        """False if no order of rows can make so large a share of the blocks' values nonzero.

        Blocks use at least as many columns as their rows have nonzeros, less those that any two of them share
        (Bonferroni's inequality); and a row shares at most as many with each as with the one that is most like it.
        """
        if block == 1 or not self._grows(block):
            return True
        others = self._shared - np.diag(self._shared.diagonal())
        least = float((self.counts - (block - 1) / 2 * others.max(axis=1)).sum())
        return float(self.counts.sum()) >= share * block * least

    def _grows(self, block: int) -> bool:
        """Whether there is anything to group."""
        return block > 1 and block < len(self.nonzero) <= _MOST_ROWS and bool(self.counts.any())

    def _ordered(self, block: int) -> np.ndarray:
        rows = len(self.nonzero)
        natural = _filled(np.arange(rows), block)
        if not self._grows(block):
            return natural
        plain = int(self.nonzero[natural].any(axis=1).sum())
        if plain * block <= self.counts.sum() * 1.05:
            return natural
        grouped = _filled(self._alike(block), block)
        return grouped if self.nonzero[grouped].any(axis=1).sum() < plain * 0.98 else natural

    def _alike(self, block: int) -> np.ndarray:
        counts, shared = self.counts, self._shared
        left = np.ones(len(counts), bool)
        order: list[int] = []
        for first in np.argsort(-counts, kind="stable"):
            if not left[first]:
                continue
            members = [int(first)]
            left[first] = False
            together = shared[first].copy()
            while len(members) < block and left.any():
                # Least growth of the union: own columns that are not shared yet.
                growth = np.where(left, counts - together, np.inf)
                best = int(np.argmin(growth))
                members.append(best)
                left[best] = False
                together = np.maximum(together, shared[best])
            order += members
        return np.array(order)


def _filled(order: np.ndarray, block: int) -> np.ndarray:
    missing = -len(order) % block
    return np.concatenate([order, np.repeat(order[-1:], missing)]).reshape(-1, block)
