"""Least squares from second moments, streamed: H = x'x and c = x'(y - x w0), with ridge towards w0."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from passes.reconstruction.cholesky import BlockCholesky

DAMPING = 0.01
"""The ridge, as a share of the mean of H's diagonal."""

_TRIES = 4
_LARGE = 6144
"""Above this many inputs all is kept in float32 and worked on in place: 16,384 inputs take 1 GiB."""
_CHUNK = 1 << 24
"""Elements of inputs that are looked at at a time."""
_STEPS, _CLOSE = 200, 1e-6
"""Of conjugate gradients: at most so many, until what is left of the right side is so small a share of it."""


class Regression:
    """Moments of x [blocks, rows, inputs] and y [blocks, rows, outputs], rows added batch by batch.

    centered: fit a constant too, by taking means off. No rows are added after the first question.
    """

    def __init__(self, blocks: int, inputs: int, outputs: int, *, centered: bool) -> None:
        dtype = np.float64 if inputs <= _LARGE else np.float32
        self.centered = centered
        self.rows = 0
        self._ready = False
        self._h = np.zeros((blocks, inputs, inputs), dtype)
        self._c = np.zeros((blocks, inputs, outputs), dtype)
        self._x = np.zeros((blocks, inputs), np.float64)
        self._y = np.zeros((blocks, outputs), np.float64)
        self._square = 0.0

    def add(self, x: np.ndarray, y: np.ndarray | None = None) -> None:
        """Add rows; y None where only `inverse_blocks` is wanted."""
        assert not self._ready, "rows are added before anything is solved"
        x = x.astype(self._h.dtype, copy=False)
        self.rows += x.shape[1]
        transposed = x.swapaxes(1, 2)
        for part in _parts(x.shape[2]):
            self._h[:, part] += transposed[:, part] @ x
        self._x += x.sum(1, dtype=np.float64)
        if y is not None:
            self._c += transposed @ y.astype(self._c.dtype, copy=False)
            self._y += y.sum(1, dtype=np.float64)
            self._square += float(np.square(y, dtype=np.float64).sum())

    def error(self, weights: np.ndarray, constant: np.ndarray | float | None = 0.0) -> float:
        """|x w + constant - y| / |y| over all rows, for weights [blocks, inputs, outputs].

        constant: [blocks, outputs], or a number for all; None: the best one, and |y| without its mean.
        """
        h = self._covariance()
        through = np.einsum("bi,bio->bo", self._x, weights)
        quadratic = self.rows * float((weights * (h @ weights.astype(h.dtype, copy=False))).sum())
        quadratic += float(np.square(through).sum()) / self.rows if self.centered else 0.0
        square = quadratic - 2 * float((self._c * weights).sum()) + self._square
        rest = self._y - through
        norm = self._square
        if constant is None:
            square -= float(np.square(rest).sum()) / self.rows
            norm -= float(np.square(self._y).sum()) / self.rows
        else:
            square += float((self.rows * np.square(constant) - 2 * constant * rest).sum())
        return math.sqrt(max(square, 0.0) / norm) if norm > 0 else 0.0

    def solve(
        self, start: np.ndarray, damping: float = DAMPING, *, free: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """(weights [blocks, inputs, outputs], constant [blocks, outputs]), near `start`; None where H is singular.

        free: which weights may change, bool of the same shape; all by default.
        """
        h = self._covariance()
        mean_x, mean_y = self._x / self.rows, self._y / self.rows
        wanted = self._c / self.rows
        if self.centered:
            wanted -= (mean_x[:, :, None] * mean_y[:, None]).astype(wanted.dtype)
        wanted -= h @ start.astype(h.dtype)
        work = _solved if free is None or free.all() else partial(_solved_within, free=free)
        change = self._damped(lambda h: work(h, wanted), damping)
        if change is None:
            return None
        weights = start + change
        return weights, mean_y - np.einsum("bi,bio->bo", mean_x, weights)

    def inverse_blocks(self, size: int = 1, damping: float = DAMPING) -> np.ndarray | None:
        """The blocks on the diagonal of damped H's inverse, [blocks, inputs / size, size, size]; None if singular."""
        self._covariance()
        return self._damped(lambda h: _inverse_blocks(h, size), damping)

    def _covariance(self) -> np.ndarray:
        """H as a mean over rows, about its mean where that is taken off."""
        if not self._ready:
            self._ready = True
            self._h /= self.rows
            mean = (self._x / self.rows).astype(self._h.dtype)
            for part in _parts(mean.shape[1]) if self.centered else ():
                self._h[:, part] -= mean[:, part, None] * mean[:, None]
        return self._h

    def _damped(self, work: Callable[[np.ndarray], np.ndarray], damping: float) -> np.ndarray | None:
        """work(damped H), with ten times the damping where H is not positive definite, a few times over."""
        h, places = self._h, np.arange(self._h.shape[1])
        diagonal = h[:, places, places]
        scale = diagonal.mean(1, keepdims=True)
        try:
            for attempt in range(_TRIES):
                h[:, places, places] = diagonal + damping * 10**attempt * np.where(scale > 0, scale, 1.0)
                try:
                    found = work(h)
                except np.linalg.LinAlgError:
                    continue
                if np.isfinite(found).all():
                    return found
        finally:
            h[:, places, places] = diagonal
        return None


def chunks(rows: np.ndarray, inputs: int) -> Iterator[np.ndarray]:
    """Rows in parts whose inputs are not too many to hold at a time."""
    size = max(1, _CHUNK // max(1, inputs))
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _parts(width: int, size: int = 1024) -> list[slice]:
    """Blocks of rows of a large matrix; a small one whole."""
    if width <= _LARGE:
        return [slice(0, width)]
    return [slice(start, min(start + size, width)) for start in range(0, width, size)]


def _solved(h: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    if h.shape[1] <= _LARGE:
        np.linalg.cholesky(h)  # positive definite, or another round of damping
        return np.linalg.solve(h, wanted)
    return np.stack([_blockwise(m, partial(BlockCholesky.solve, b=b)) for m, b in zip(h, wanted, strict=True)])


def _solved_within(h: np.ndarray, wanted: np.ndarray, free: np.ndarray) -> np.ndarray:
    """For each column of `wanted`, the solution over the places that are free; 0 elsewhere.

    Conjugate gradients, preconditioned by the diagonal, on all columns at once: each has places of its own, and with
    them a matrix of its own, which none of them needs to see.
    """
    diagonal = np.einsum("bii->bi", h)[:, :, None]
    if not (diagonal > 0).all():
        raise np.linalg.LinAlgError("a diagonal element is not positive")
    found = np.zeros_like(wanted)
    rest = np.where(free, wanted, 0).astype(wanted.dtype)
    enough = _CLOSE**2 * np.square(rest, dtype=np.float64).sum(1, keepdims=True)
    scaled = rest / diagonal
    towards, size = scaled, (rest * scaled).sum(1, keepdims=True)
    for _ in range(_STEPS):
        active = np.square(rest, dtype=np.float64).sum(1, keepdims=True) > enough
        if not active.any():
            break
        curved = np.where(free, h @ towards, 0)
        bend = (towards * curved).sum(1, keepdims=True)
        if (bend[active] <= 0).any():
            raise np.linalg.LinAlgError("not positive definite")
        step = np.where(active, size / np.where(bend > 0, bend, 1), 0).astype(wanted.dtype)
        found += step * towards
        rest -= step * curved
        scaled = rest / diagonal
        before, size = size, (rest * scaled).sum(1, keepdims=True)
        towards = scaled + np.where(active, size / np.where(before > 0, before, 1), 0).astype(wanted.dtype) * towards
    return found


def _inverse_blocks(h: np.ndarray, size: int) -> np.ndarray:
    if h.shape[1] <= _LARGE:
        np.linalg.cholesky(h)
        index = np.arange(h.shape[1]).reshape(-1, size)
        return np.linalg.inv(h)[:, index[:, :, None], index[:, None, :]]
    return np.stack([_blockwise(m, partial(BlockCholesky.inverse_blocks, size=size), size) for m in h])


def _blockwise(matrix: np.ndarray, work: Callable[[BlockCholesky], np.ndarray], size: int = 1) -> np.ndarray:
    factor = BlockCholesky(matrix, _parts(len(matrix), size * max(1, 1024 // size)))
    try:
        factor.run()
        return work(factor)
    finally:
        factor.undo()
