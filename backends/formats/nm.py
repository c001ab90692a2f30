"""N:M sparsity: at most N nonzeros in every M consecutive columns, each stored with its place among the M, a byte.

Rows are equally long, so that a kernel's loop over a row has no length to look up and branch predictors never miss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compiler.errors import SecateurError

#: Group sizes that are looked for, and the least share of stored values that must be nonzeros.
_SIZES = (4, 8, 16, 32)
_LEAST_FILL = 0.95
#: Rows that are looked at first, and their share of nonzeros below which the others are not.
_FEW, _LEAST_FEW = 16, 0.5


@dataclass(frozen=True, eq=False)
class NM:
    """A matrix [rows, columns] whose columns are groups of `m`, of which `n` are stored.

    offsets: uint8 [rows, columns // m, n], places within a group, ascending but for filling. values: float32 of the
    same shape; a group with fewer nonzeros is filled with zeros.
    """

    width: int
    n: int
    m: int
    offsets: np.ndarray
    values: np.ndarray

    @classmethod
    def encode(cls, matrix: np.ndarray, n: int, m: int) -> NM:
        """The nonzeros of a float32 matrix [rows, columns].

        Raises SecateurError E_FORMAT when columns are no multiple of m, or a group has more than n nonzeros.
        """
        matrix = np.ascontiguousarray(matrix, np.float32)
        rows, width = matrix.shape
        if not 0 < n <= m <= 256 or width % m:
            raise SecateurError("E_FORMAT", f"{width} columns are not groups of {n}:{m}")
        groups = matrix.reshape(rows, width // m, m)
        if groups.size and np.count_nonzero(groups, axis=2).max() > n:
            raise SecateurError("E_FORMAT", f"a group of {m} columns has more than {n} nonzeros")
        # Nonzeros first, each kind in order.
        offsets = np.argsort(groups == 0, axis=2, kind="stable")[:, :, :n]
        return cls(width, n, m, offsets.astype(np.uint8), np.take_along_axis(groups, offsets, 2))

    def decode(self) -> np.ndarray:
        """The matrix, exactly."""
        rows = len(self.values)
        matrix = np.zeros((rows, self.width // self.m, self.m), np.float32)
        np.put_along_axis(matrix, self.offsets.astype(np.int64), self.values, 2)
        return matrix.reshape(rows, self.width)

    @property
    def entries(self) -> int:
        """Values stored, filling included."""
        return self.values.size

    @property
    def nbytes(self) -> int:
        """Bytes of values and offsets."""
        return self.values.nbytes + self.offsets.nbytes


def find_nm(matrices: list[np.ndarray]) -> tuple[int, int] | None:
    """(n, m) that matrices [rows, columns] of equal shape satisfy with hardly a zero stored; the smallest m."""
    width = matrices[0].shape[1]
    for m in _SIZES:
        if width % m:
            continue
        # A few rows tell of most weights that they have no such pattern.
        some = np.count_nonzero(matrices[0][:_FEW].reshape(-1, m), axis=1)
        if some.size == 0 or some.sum() < _LEAST_FEW * some.max() * some.size:
            continue
        counts = [np.count_nonzero(matrix.reshape(len(matrix), -1, m), axis=2) for matrix in matrices]
        n = max((int(count.max()) for count in counts if count.size), default=0)
        if 0 < n < m and sum(count.sum() for count in counts) >= _LEAST_FILL * n * sum(count.size for count in counts):
            return n, m
    return None
