"""Blocks of rows whose columns are grouped by which rows have a nonzero there.

A block of four rows has fifteen such patterns. A kernel has a loop for each: the pixels of a column are loaded once
for all rows that use them, and nothing is multiplied by zero. The idea is that of Sparse Register Tiling (Wilkinson
et al., "Register Tiling for Unstructured Sparsity in Neural Network Inference", PLDI 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backends.formats.row_groups import RowGroups


@dataclass(frozen=True, eq=False)
class PatternCSR:
    """A matrix [rows, width] in blocks of `block` rows, without stored zeros.

    order: int32 [blocks, block], as in BlockCSR. starts: int32 [blocks * patterns + 1]: the columns of each pattern of
    each block, patterns in the order 1, 2, ..., 2**block - 1 (bit r: row r has a nonzero). columns: int32 [entries].
    firsts: int32 [blocks], the first value of each block. values: float32 [nonzeros of the ordered rows], those of one
    column together, in the order of rows.
    """

    rows: int
    width: int
    block: int
    order: np.ndarray
    starts: np.ndarray
    columns: np.ndarray
    firsts: np.ndarray
    values: np.ndarray

    @property
    def patterns(self) -> int:
        """Patterns of a block, the empty one left out."""
        return (1 << self.block) - 1

    @classmethod
    def encode(cls, matrix: np.ndarray, block: int = 4) -> PatternCSR:
        """The nonzeros of a float32 matrix [rows, columns]."""
        matrix = np.ascontiguousarray(matrix, np.float32)
        rows, width = matrix.shape
        order = RowGroups(matrix).order(block)
        lengths = (matrix != 0)[order].sum(axis=(1, 2))
        order = order[np.argsort(-lengths, kind="stable")]
        blocks, patterns = len(order), (1 << block) - 1
        columns, values, starts, firsts = [], [], np.zeros(blocks * patterns + 1, np.int64), np.zeros(blocks, np.int64)
        total = 0
        for index, members in enumerate(order):
            part = matrix[members]
            code = ((part != 0) << np.arange(block)[:, None]).sum(axis=0)
            used = np.flatnonzero(code)
            used = used[np.argsort(code[used], kind="stable")]
            counts = np.bincount(code[used], minlength=patterns + 1)[1:]
            starts[index * patterns + 1 : (index + 1) * patterns + 1] = counts
            columns.append(used)
            picked = part[:, used].T
            firsts[index] = total
            values.append(picked[picked != 0])
            total += values[-1].size
        return cls(
            rows,
            width,
            block,
            order.astype(np.int32),
            np.cumsum(starts).astype(np.int32),
            np.concatenate(columns).astype(np.int32),
            firsts.astype(np.int32),
            np.concatenate(values),
        )

    def decode(self) -> np.ndarray:
        """The matrix, exactly."""
        matrix = np.zeros((self.rows, self.width), np.float32)
        for index, members in enumerate(self.order):
            at = int(self.firsts[index])
            for pattern in range(1, self.patterns + 1):
                place = index * self.patterns + pattern - 1
                used = [r for r in range(self.block) if pattern >> r & 1]
                columns = self.columns[self.starts[place] : self.starts[place + 1]]
                count = len(columns) * len(used)
                matrix[np.ix_(members[used], columns)] = self.values[at : at + count].reshape(-1, len(used)).T
                at += count
        return matrix

    @property
    def entries(self) -> int:
        """Columns stored, over all blocks."""
        return len(self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of values, columns of two bytes (four where `width` needs them), starts, firsts and order."""
        index = 2 if self.width <= 1 << 16 else 4
        return self.values.nbytes + self.entries * index + self.starts.nbytes + self.firsts.nbytes + self.order.nbytes
