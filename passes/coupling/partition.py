"""A disjoint-set forest over integer points, vectorised with numpy.

A point is one position along one axis of one tensor; points that must be kept or removed together
are united, and a set of united points is a unit.
"""

from __future__ import annotations

import math

import numpy as np

Points = np.ndarray
"""An integer array of point ids."""


class Partition:
    """Union-find whose every operation takes whole arrays; amortised cost is linear in the points."""

    def __init__(self) -> None:
        self._parent = np.empty(1024, np.int64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def fresh(self, shape: int | tuple[int, ...]) -> Points:
        """New points, each its own unit, as an array of `shape`."""
        shape = (shape,) if isinstance(shape, int) else shape
        count = math.prod(shape)
        if self._size + count > len(self._parent):
            grown = np.empty(max(2 * len(self._parent), self._size + count), np.int64)
            grown[: self._size] = self._parent[: self._size]
            self._parent = grown
        points = np.arange(self._size, self._size + count, dtype=np.int64)
        self._parent[points] = points
        self._size += count
        return points.reshape(shape)

    def find(self, points: Points) -> Points:
        """The representative (the smallest id) of each point's unit."""
        roots = self._parent[points]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[points] = roots
        return roots

    def union(self, a: Points, b: Points) -> None:
        """Unite a[i] with b[i] for every i, after broadcasting."""
        if a is b:
            return
        left, right = (self.find(side).ravel() for side in np.broadcast_arrays(a, b))
        while True:
            differ = left != right
            if not differ.any():
                return
            left, right = left[differ], right[differ]
            np.minimum.at(self._parent, np.maximum(left, right), np.minimum(left, right))
            left, right = self.find(left), self.find(right)

    def roots(self) -> Points:
        """The representative of every point."""
        return self.find(np.arange(self._size, dtype=np.int64))
