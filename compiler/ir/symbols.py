"""Products of numbers and symbolic extents: `N`, `4*N`, 16."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

from compiler.ir.graph import Dim


@dataclass(frozen=True)
class Extent:
    """A product of a number and symbols; an unknown extent is the symbol `?`."""

    number: int
    symbols: tuple[str, ...] = ()

    @classmethod
    def of(cls, dim: Dim) -> Extent:
        """Read an extent of a shape; `4*N` is a product."""
        if isinstance(dim, int):
            return cls(dim)
        factors = (dim or "?").split("*")
        number = reduce(lambda n, f: n * int(f), (f for f in factors if f.isdigit()), 1)
        return cls(number, tuple(sorted(f for f in factors if not f.isdigit())))

    def times(self, other: Extent) -> Extent:
        """The product."""
        return Extent(self.number * other.number, tuple(sorted(self.symbols + other.symbols)))

    def divided_by(self, other: Extent) -> Extent | None:
        """The quotient, or None where it is no product of a number and symbols."""
        rest = Counter(self.symbols)
        rest.subtract(other.symbols)
        if other.number == 0 or self.number % other.number or min(rest.values(), default=0) < 0:
            return None
        return Extent(self.number // other.number, tuple(sorted(rest.elements())))

    @property
    def dim(self) -> Dim:
        """The extent as a shape spells it."""
        if not self.symbols:
            return self.number
        return "*".join([*([str(self.number)] if self.number != 1 else []), *self.symbols])


def product(extents: Iterable[Extent]) -> Extent:
    """The product of all."""
    return reduce(Extent.times, extents, Extent(1))
