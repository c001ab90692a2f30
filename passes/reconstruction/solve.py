"""Least squares from second moments, streamed: H = x'x and c = x'(y - x w0), with ridge towards w0."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

DAMPING = 0.01
"""The ridge, as a share of the mean of H's diagonal."""

_TRIES = 4
_LARGE = 6144
"""Above this many inputs H is kept in float32: 16,384 inputs take 1 GiB."""


class Regression:
    """Moments of x [blocks, rows, inputs] and y [blocks, rows, outputs], rows added batch by batch.

    centered: fit a constant too, by taking means off.
    """

    def __init__(self, blocks: int, inputs: int, outputs: int, *, centered: bool) -> None:
        dtype = np.float64 if inputs <= _LARGE else np.float32
        self.centered = centered
        self.rows = 0
        self._h = np.zeros((blocks, inputs, inputs), dtype)
        self._c = np.zeros((blocks, inputs, outputs), np.float64)
        self._x = np.zeros((blocks, inputs), np.float64)
        self._y = np.zeros((blocks, outputs), np.float64)
        self._square = 0.0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Add rows."""
        x = x.astype(self._h.dtype, copy=False)
        self.rows += x.shape[1]
        transposed = x.swapaxes(1, 2)
        self._h += transposed @ x
        self._c += transposed @ y
        self._x += x.sum(1)
        self._y += y.sum(1)
        self._square += float(np.square(y).sum())

    def error(self, weights: np.ndarray, constant: np.ndarray | float | None = 0.0) -> float:
        """|x w + constant - y| / |y| over all rows, for weights [blocks, inputs, outputs].

        constant: [blocks, outputs], or a number for all; None: the best one, and |y| without its mean.
        """
        quadratic = float((weights * (self._h @ weights.astype(self._h.dtype, copy=False))).sum())
        square = quadratic - 2 * float((self._c * weights).sum()) + self._square
        rest = self._y - np.einsum("bi,bio->bo", self._x, weights)
        norm = self._square
        if constant is None:
            square -= float(np.square(rest).sum()) / self.rows
            norm -= float(np.square(self._y).sum()) / self.rows
        else:
            square += float((self.rows * np.square(constant) - 2 * constant * rest).sum())
        return math.sqrt(max(square, 0.0) / norm) if norm > 0 else 0.0

    def solve(self, start: np.ndarray, damping: float = DAMPING) -> tuple[np.ndarray, np.ndarray] | None:
        """(weights [blocks, inputs, outputs], constant [blocks, outputs]), near `start`; None where H is singular."""
        mean_x, mean_y = self._x / self.rows, self._y / self.rows
        c = self._c / self.rows
        if self.centered:
            c -= mean_x[:, :, None] * mean_y[:, None]
        change = self._apply(lambda h: c - h @ start, damping)
        if change is None:
            return None
        weights = start + change
        return weights, mean_y - np.einsum("bi,bio->bo", mean_x, weights)

    def inverse(self, damping: float = DAMPING) -> np.ndarray:
        """The inverse of damped H, [blocks, inputs, inputs]."""
        found = self._apply(lambda h: np.broadcast_to(np.eye(h.shape[1], dtype=h.dtype), h.shape), damping)
        assert found is not None, "a damped second moment is positive definite"
        return found

    def _apply(self, right: Callable[[np.ndarray], np.ndarray], damping: float) -> np.ndarray | None:
        """Solve H z = right(H), with ten times the damping where H is not positive definite, a few times over."""
        h = self._h / self.rows
        if self.centered:
            mean = (self._x / self.rows).astype(h.dtype)
            h -= mean[:, :, None] * mean[:, None]
        wanted = right(h)
        scale = np.einsum("bii->bi", h).mean(1)
        diagonal = np.arange(h.shape[1])
        for attempt in range(_TRIES):
            h[:, diagonal, diagonal] += (damping * 10**attempt * np.where(scale > 0, scale, 1.0))[:, None]
            try:
                if h.shape[1] <= _LARGE:
                    np.linalg.cholesky(h)  # positive definite, or another round of damping
                found = np.linalg.solve(h, wanted)
            except np.linalg.LinAlgError:
                continue
            if np.isfinite(found).all():
                return found
        return None
