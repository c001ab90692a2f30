"""Cholesky's factor of a large symmetric matrix in the matrix's own memory, block by block.

The factor takes the place of the lower triangle; the upper one stays, so that the matrix can be put back. Golub and Van
Loan, "Matrix Computations", 4.2.9 (the left-looking block algorithm).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class BlockCholesky:
    """L with L L' = a, for a [n, n], in a's lower triangle. parts: consecutive rows of a block, all of them."""

    def __init__(self, a: np.ndarray, parts: Sequence[slice]) -> None:
        self._a = a
        self._parts = parts
        self._diagonal = [a[p, p].copy() for p in parts]
        self._inverses: list[np.ndarray] = []

    def run(self) -> None:
        """Factor; LinAlgError where the matrix is not positive definite."""
        a = self._a
        for part in self._parts:
            before, after = slice(0, part.start), slice(part.stop, len(a))
            a[part.start :, part] -= a[part.start :, before] @ a[part, before].T
            corner = np.linalg.cholesky(a[part, part].astype(np.float64))
            self._inverses.append(np.linalg.inv(corner).astype(a.dtype))
            a[part, part] = corner
            a[after, part] = a[after, part] @ self._inverses[-1].T

    def solve(self, b: np.ndarray) -> np.ndarray:
        """a^-1 b for b [n, m]."""
        a, z = self._a, b.astype(self._a.dtype)
        blocks = list(zip(self._parts, self._inverses, strict=True))
        for part, inverse in blocks:
            z[part] = inverse @ (z[part] - a[part, : part.start] @ z[: part.start])
        for part, inverse in reversed(blocks):
            z[part] = inverse.T @ (z[part] - a[part.stop :, part].T @ z[part.stop :])
        return z

    def inverse_blocks(self, size: int) -> np.ndarray:
        """Blocks of `size` on the diagonal of a^-1 = L^-T L^-1, [n / size, size, size]; L^-1 takes the place of L."""
        a, found = self._a, []
        for number in reversed(range(len(self._parts))):
            part, inverse = self._parts[number], self._inverses[number]
            below = a[part.stop :, part] @ inverse
            for row in self._parts[number + 1 :]:
                a[row, part] = -(a[row, part.stop : row.stop] @ below[: row.stop - part.stop])
            a[part, part] = inverse
            column = a[part.start :, part]
            index = np.arange(column.shape[1]).reshape(-1, size)
            found.append((column.T @ column)[index[:, :, None], index[:, None, :]])
        return np.concatenate(found[::-1])

    def undo(self) -> None:
        """Put the matrix back as it was."""
        for part, corner in zip(self._parts, self._diagonal, strict=True):
            self._a[part.stop :, part] = self._a[part, part.stop :].T
            self._a[part, part] = corner
