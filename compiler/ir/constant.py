"""Constant data of the IR: in memory, memory-mapped from a file, or a slice or a part of another constant.

Nothing is read until `numpy()` is called, so a model much larger than memory opens at once and a
pruned model is written tensor by tensor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class Constant(ABC):
    """A tensor known at compile time. `dtype` and `shape` are known without reading the data."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @abstractmethod
    def numpy(self) -> np.ndarray:
        """The data, of `dtype` and `shape`; read-only by convention."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense data."""
        return self.size * self.dtype.itemsize

    def sources(self) -> frozenset[Path]:
        """The files that the data is read from when it is asked for."""
        return frozenset()

    def take(self, indices: Mapping[int, np.ndarray]) -> Constant:
        """The slice that keeps `indices[axis]` along each axis named, in that order; lazy."""
        return TakenConstant(self, {axis: np.asarray(index) for axis, index in indices.items()})


@dataclass(frozen=True)
class Selection:
    """Which elements of a constant a pruning has left. shape: what the constant had at first.

    positions: for each element that is left, where it was, counted in C order; int64, in the shape of what is left.
    """

    shape: tuple[int, ...]
    positions: Constant


class ArrayConstant(Constant):
    """Data that is in memory."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = np.asarray(array)
        self.dtype = self._array.dtype
        self.shape = self._array.shape

    def numpy(self) -> np.ndarray:
        return self._array


@dataclass(frozen=True)
class MappedConstant(Constant):
    """Little-endian data at `offset` bytes of `path`, mapped into memory when it is read."""

    path: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        if self.size == 0:
            return np.zeros(self.shape, self.dtype)
        return np.memmap(self.path, dtype=self.dtype, mode="r", offset=self.offset, shape=self.shape)

    def sources(self) -> frozenset[Path]:
        return frozenset({self.path})


class TakenConstant(Constant):
    """A lazy slice of another constant along some of its axes."""

    def __init__(self, base: Constant, indices: dict[int, np.ndarray]) -> None:
        self._base = base
        self._indices = indices
        self.dtype = base.dtype
        self.shape = tuple(len(indices[a]) if a in indices else d for a, d in enumerate(base.shape))

    def numpy(self) -> np.ndarray:
        array = self._base.numpy()
        # The most selective axis first, so that the intermediate copies are small.
        for axis in sorted(self._indices, key=lambda a: len(self._indices[a]) / max(1, self._base.shape[a])):
            array = np.take(array, self._indices[axis], axis=axis)
        return np.ascontiguousarray(array)

    def sources(self) -> frozenset[Path]:
        return self._base.sources()


class MaskedConstant(Constant):
    """Another constant with zeros where a mask is off, put in when it is read; the mask takes one bit an element."""

    def __init__(self, base: Constant, mask: np.ndarray) -> None:
        self._base = base
        self._bits = np.packbits(mask, axis=None)
        self.dtype = base.dtype
        self.shape = base.shape

    def numpy(self) -> np.ndarray:
        result = np.zeros(self.shape, self.dtype)
        mask = np.unpackbits(self._bits, count=self.size).view(bool).reshape(self.shape)
        np.copyto(result, self._base.numpy(), where=mask)
        return result

    def sources(self) -> frozenset[Path]:
        return self._base.sources()
