"""Arithmetic on extents: a number, `N`, `4*N`, `S+1`, `floordiv(H+1,2)`, `min(4,S)`.

An extent is a polynomial with integer coefficients over atoms. An atom is a symbol, a quotient by a number rounded
down, or the smaller of two extents. Extents that print alike are equal in every run. A dimension's name that does not
read as such a text is a symbol as a whole.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce

from compiler.ir.graph import Dim

Monomial = tuple[str, ...]
"""The atoms of a product, sorted."""

UNKNOWN = "?"
"""The atom that stands for an extent of which nothing is known; two of them need not be equal."""


@dataclass(frozen=True)
class Extent:
    """A sum of products: (atoms, coefficient) each, sorted, no coefficient 0."""

    terms: tuple[tuple[Monomial, int], ...] = ()

    @classmethod
    def of(cls, dim: Dim) -> Extent:
        """Read an extent of a shape; None is unknown."""
        return number(dim) if isinstance(dim, int) else _read(UNKNOWN if dim is None else dim)

    @property
    def symbols(self) -> frozenset[str]:
        """The atoms that occur."""
        return frozenset(atom for atoms, _ in self.terms for atom in atoms)

    @property
    def number(self) -> int | None:
        """The extent where it is a number."""
        if not self.terms:
            return 0
        return self.terms[0][1] if len(self.terms) == 1 and not self.terms[0][0] else None

    @property
    def content(self) -> int:
        """The largest number that divides the extent whatever its symbols are: 4 of `4*N`, 2 of `2*N+2`."""
        return math.gcd(*(factor for _, factor in self.terms))

    @property
    def dim(self) -> Dim:
        """The extent as a shape spells it."""
        if self.number is not None:
            return self.number
        if self.terms == (((UNKNOWN,), 1),):
            return None
        text = ""
        for atoms, factor in self.terms:
            factors = [] if atoms and factor == 1 else [str(factor)]
            text += "+" * (bool(text) and factor > 0) + "*".join([*factors, *atoms])
        return text

    def plus(self, other: Extent) -> Extent:
        """The sum."""
        return _collect((*self.terms, *other.terms))

    def minus(self, other: Extent) -> Extent:
        """The difference."""
        return _collect((*self.terms, *((atoms, -factor) for atoms, factor in other.terms)))

    def times(self, other: Extent) -> Extent:
        """The product."""
        return _collect((tuple(sorted(a + b)), m * n) for a, m in self.terms for b, n in other.terms)

    def divided_by(self, other: Extent) -> Extent | None:
        """The quotient, or None where the division leaves a rest. Long division by the leading term."""
        if not other.terms:
            return None
        left, found = self, Extent()
        lead, divisor = other._leading()
        while left.terms:
            atoms, factor = left._leading()
            rest = Counter(atoms)
            rest.subtract(lead)
            if factor % divisor or min(rest.values(), default=0) < 0:
                return None
            step = Extent(((tuple(sorted(rest.elements())), factor // divisor),))
            found, left = found.plus(step), left.minus(step.times(other))
        return found

    def floor_divided(self, divisor: int) -> Extent:
        """The quotient by a positive number, rounded down."""
        whole = _collect(
            (atoms, factor // divisor) for atoms, factor in self.terms if not atoms or factor % divisor == 0
        )
        rest = self.minus(whole.times(number(divisor)))
        if rest.number is not None:
            return whole
        common = math.gcd(rest.content, divisor)
        rest = Extent(tuple((atoms, factor // common) for atoms, factor in rest.terms))
        return whole.plus(_atom(f"floordiv({rest.dim},{divisor // common})"))

    def minimum(self, other: Extent) -> Extent:
        """The smaller of the two."""
        if other.minus(self).at_least(0):
            return self
        if self.minus(other).at_least(0):
            return other
        return _atom(f"min({','.join(sorted((str(self.dim), str(other.dim))))})")

    def at_least(self, bound: int) -> bool:
        """True when the extent is proven to be never less than `bound`; symbols are extents, never negative."""
        return UNKNOWN not in self.symbols and _not_negative(self.minus(number(bound)))

    def substitute(self, atoms: Mapping[str, Extent]) -> Extent:
        """The extent with atoms replaced."""
        if not self.symbols & atoms.keys():
            return self
        terms = (
            product([number(factor), *(atoms.get(a, _atom(a)) for a in monomial)]) for monomial, factor in self.terms
        )
        return reduce(Extent.plus, terms)

    def _leading(self) -> tuple[Monomial, int]:
        return max(self.terms, key=lambda term: (len(term[0]), term[0]))


def number(value: int) -> Extent:
    """A number as an extent."""
    return Extent((((), value),)) if value else Extent()


def product(extents: Iterable[Extent]) -> Extent:
    """The product of all."""
    return reduce(Extent.times, extents, number(1))


def exact_quotients(extents: Iterable[Extent], others: Iterable[Extent]) -> dict[str, Extent]:
    """What atoms are if each rounded quotient of them in `extents`, but not in `others`, leaves no rest.

    `H` is `2*floordiv(H,2)`, for one. None of these quotients is larger than the exact one: where the products of
    `extents` and of `others` are equal with the exact ones, they are equal in a run only if no quotient was rounded.
    """
    elsewhere = frozenset[str]().union(*(extent.symbols for extent in others))
    found: dict[str, Extent] = {}
    for extent in extents:
        for atom in extent.symbols - elsewhere if all(factor > 0 for _, factor in extent.terms) else ():
            kind, inside = _inside(atom)
            if kind == "floordiv":
                constant = dict(inside[0].terms).get((), 0)
                rest = inside[0].minus(number(constant))
                if len(rest.terms) == 1 and rest.terms[0][1] == 1 and len(rest.terms[0][0]) == 1:
                    found[rest.terms[0][0][0]] = _atom(atom).times(inside[1]).minus(number(constant))
    return found


def agreement(left: list[Extent], right: list[Extent], facts: dict[str, Extent]) -> dict[str, Extent] | None:
    """What atoms are, given that two lists of extents have equal products (a Reshape of a tensor that is not empty).

    None when that does not follow. facts: what atoms are by what was seen before; what is seen now is added.
    """
    if product(left) == product(right):
        return {}
    rounded = exact_quotients(right, left), exact_quotients(left, right), _ones(left, right)
    for exact in (*rounded, facts, *({**facts, **r} for r in rounded), *({**r, **facts} for r in rounded)):
        if product(e.substitute(exact) for e in left) == product(e.substitute(exact) for e in right):
            for atom, extent in exact.items():
                facts.setdefault(atom, extent)
            return exact
    return None


def _ones(left: list[Extent], right: list[Extent]) -> dict[str, Extent]:
    """The symbols that must be 1 for the products to be equal: a model that was traced at a batch of 1."""
    rest = product(left).divided_by(product(right))
    return {} if rest is None or len(rest.terms) != 1 else dict.fromkeys(rest.symbols, number(1))


def _atom(name: str) -> Extent:
    return Extent((((name,), 1),))


def _collect(terms: Iterable[tuple[Monomial, int]]) -> Extent:
    total: Counter[Monomial] = Counter()
    for atoms, factor in terms:
        total[atoms] += factor
    kept = ((atoms, factor) for atoms, factor in total.items() if factor)
    return Extent(tuple(sorted(kept, key=lambda term: (not term[0], term[0]))))


def _not_negative(extent: Extent) -> bool:
    """Every term is; one that is subtracted is first replaced by what it cannot exceed."""
    for atoms, factor in extent.terms:
        if factor > 0:
            continue
        for index, atom in enumerate(atoms):
            kind, inside = _inside(atom)
            rest = Extent(((atoms[:index] + atoms[index + 1 :], factor),))
            without = extent.minus(Extent(((atoms, factor),)))
            if kind == "floordiv" and rest.content % (by := inside[1].number or 1) == 0:
                if _not_negative(without.plus(Extent(((rest.terms[0][0], factor // by),)).times(inside[0]))):
                    return True
            elif kind == "min" and any(_not_negative(without.plus(rest.times(bound))) for bound in inside):
                return True
        return False
    return all(all(_not_negative(inner) for inner in _bounds(atom)) for atom in extent.symbols)


def _bounds(atom: str) -> tuple[Extent, ...]:
    kind, inside = _inside(atom)
    return inside[:1] if kind == "floordiv" else inside


@lru_cache(4096)
def _inside(atom: str) -> tuple[str, tuple[Extent, ...]]:
    """The function of an atom and its operands; a symbol has none."""
    for kind in ("floordiv", "min"):
        if atom.startswith(f"{kind}(") and atom.endswith(")"):
            parts = _parts(atom[len(kind) + 1 : -1], ",")
            if len(parts) == 2:
                return kind, (_read(parts[0]), _read(parts[1]))
    return "", ()


_NUMBER = re.compile(r"-?\d+")
_NAME = re.compile(r"[^\W\d][\w.:]*")


@lru_cache(4096)
def _read(text: str) -> Extent:
    """The extent that prints as `text`, or a symbol of that name."""
    total = number(0)
    for term in _parts(text, "+"):
        factors = [_factor(factor) for factor in _parts(term, "*")]
        if any(factor is None for factor in factors):
            return _atom(text)
        total = total.plus(product(factor for factor in factors if factor is not None))
    return total


def _factor(text: str) -> Extent | None:
    if _NUMBER.fullmatch(text):
        return number(int(text))
    if _NAME.fullmatch(text):
        return _atom(text)
    kind, inside = _inside(text)
    if kind == "min":
        return inside[0].minimum(inside[1])
    divisor = inside[1].number if inside else None
    return inside[0].floor_divided(divisor) if divisor is not None and divisor > 0 else None


def _parts(text: str, separator: str) -> list[str]:
    """The text cut at the separators outside parentheses; a `-` begins a new term, and stays with it."""
    parts, depth = [""], 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == separator:
            parts.append("")
        elif depth == 0 and character == "-" and separator == "+" and parts[-1]:
            parts.append("-")
        else:
            parts[-1] += character
    return parts
