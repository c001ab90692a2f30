"""Compressed rows of blocks: `block` output channels share their list of columns; block 1 is plain CSR.

The channels of a block need not be neighbours (a kernel looks up where each goes), so those whose nonzeros coincide
are put together; blocks are ordered by length, so that the loop over one is as long as the last one's, which branch
predictors like. Where the channels of a block differ, their missing entries are stored as zeros.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from backends.formats.row_groups import RowGroups


@dataclass(frozen=True, eq=False)
class BlockCSR:
    """A matrix [rows, columns] in blocks of `block` rows by one column.

    order: int32 [blocks, block], the row that each row of a block is; a row that occurs twice in the last block fills
    it up. starts: int32 [blocks + 1], the entries of each block, in units of `unroll` entries. columns: int32
    [entries], ascending within a block but for filling at its end. values: float32 [entries, block].
    """

    rows: int
    width: int
    block: int
    unroll: int
    order: np.ndarray
    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    @classmethod
    def encode(cls, matrix: np.ndarray, block: int = 1, unroll: int = 1) -> BlockCSR:
        """The nonzeros of a float32 matrix [rows, columns]; blocks are filled up to a multiple of `unroll` entries."""
        matrix = np.ascontiguousarray(matrix, np.float32)
        rows, width = matrix.shape
        order = RowGroups(matrix).order(block)
        used = (matrix != 0)[order].any(axis=1)
        lengths = -(-used.sum(axis=1) // unroll) * unroll
        sorting = np.argsort(-lengths, kind="stable")
        order, used, lengths = order[sorting], used[sorting], lengths[sorting]
        columns = np.zeros(int(lengths.sum()), np.int32)
        values = np.zeros((columns.size, block), np.float32)
        ends = np.cumsum(lengths)
        which, column = np.nonzero(used)
        counts = used.sum(axis=1)
        place = np.arange(which.size) - np.repeat(np.cumsum(counts) - counts, counts)
        at = (ends - lengths)[which] + place
        columns[at] = column
        values[at] = matrix[order[which], column[:, None]]
        # Filling repeats the last column with a weight of zero.
        for index in np.flatnonzero((lengths > counts) & (counts > 0)):
            first = int(ends[index] - lengths[index])
            columns[first + counts[index] : first + lengths[index]] = columns[first + counts[index] - 1]
        starts = np.concatenate([[0], ends // unroll]).astype(np.int32)
        return cls(rows, width, block, unroll, order.astype(np.int32), starts, columns, values)

    def decode(self) -> np.ndarray:
        """The matrix, exactly."""
        matrix = np.zeros((self.rows, self.width), np.float32)
        lengths = np.diff(self.starts) * self.unroll
        which = np.repeat(np.arange(len(self.order)), lengths)
        present = self.values != 0
        entry, lane = np.nonzero(present)
        matrix[self.order[which[entry], lane], self.columns[entry]] = self.values[entry, lane]
        return matrix

    @property
    def entries(self) -> int:
        """Blocks of values stored, filling included."""
        return len(self.columns)

    @functools.cached_property
    def deltas(self) -> np.ndarray:
        """int32 [entries]: how far each column is from the one before it in its block, the first from column 0."""
        deltas = np.diff(self.columns, prepend=0)
        begins = self.starts[:-1][np.diff(self.starts) > 0] * self.unroll
        deltas[begins] = self.columns[begins]
        return deltas

    @property
    def fits_bytes(self) -> bool:
        """True if every delta is less than 256."""
        return self.entries == 0 or int(self.deltas.max()) < 1 << 8

    @property
    def nbytes(self) -> int:
        """Bytes of values, columns (deltas of a byte where they fit, else two bytes or four), starts and order."""
        index = 1 if self.fits_bytes else 2 if self.width <= 1 << 16 else 4
        return self.values.nbytes + self.entries * index + self.starts.nbytes + self.order.nbytes
