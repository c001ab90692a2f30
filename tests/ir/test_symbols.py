"""Arithmetic on extents: what is said of symbols holds for every number that they may stand for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.ir.symbols import Extent, exact_quotients, number, product

LEAVES = [number(n) for n in range(4)] + [Extent.of(s) for s in ("N", "H", "x.1")]


@st.composite
def extents(draw: st.DrawFn) -> tuple[Extent, str]:
    """An extent, and the same arithmetic as a Python expression."""
    leaf = draw(st.sampled_from(LEAVES))
    found, text = leaf, str(leaf.dim).replace("x.1", "x")
    for _ in range(draw(st.integers(0, 4))):
        other = draw(st.sampled_from(LEAVES))
        spelt = str(other.dim).replace("x.1", "x")
        match draw(st.sampled_from(("plus", "minus", "times", "floor", "min"))):
            case "plus":
                found, text = found.plus(other), f"({text} + {spelt})"
            case "minus":
                found, text = found.minus(other), f"({text} - {spelt})"
            case "times":
                found, text = found.times(other), f"({text} * {spelt})"
            case "floor":
                by = draw(st.integers(1, 4))
                found, text = found.floor_divided(by), f"({text} // {by})"
            case "min":
                found, text = found.minimum(other), f"min({text}, {spelt})"
    return found, text


def value(extent: Extent, numbers: dict[str, int]) -> int:
    """The extent in a run; its own text is Python, but for the symbols' names."""
    text = str(extent.dim).replace("x.1", "x")
    return eval(text, {"floordiv": lambda a, b: a // b, "min": min}, {"x": numbers["x.1"], **numbers})


NUMBERS = st.fixed_dictionaries({"N": st.integers(0, 7), "H": st.integers(0, 7), "x.1": st.integers(0, 7)})


@given(extents(), NUMBERS)
def test_arithmetic_is_that_of_numbers(made: tuple[Extent, str], numbers: dict[str, int]) -> None:
    extent, text = made
    expected = eval(text, {"min": min}, {"x": numbers["x.1"], **numbers})
    assert value(extent, numbers) == expected
    assert not extent.at_least(2) or expected >= 2
    assert extent.content == 0 or expected % extent.content == 0


@given(extents())
def test_a_text_reads_as_what_it_prints(made: tuple[Extent, str]) -> None:
    assert Extent.of(made[0].dim) == made[0]


@given(extents(), extents())
def test_a_product_divides(a: tuple[Extent, str], b: tuple[Extent, str]) -> None:
    if b[0].terms:
        assert a[0].times(b[0]).divided_by(b[0]) == a[0]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("N+N", "2*N"),
        ("past_length+1", "1+past_length"),
        ("S-1", "-1+S"),
        ("2*floordiv(H+1,2)", "floordiv(1+H,2)*2"),
    ],
)
def test_equal_extents_read_alike(left: str, right: str) -> None:
    assert Extent.of(left) == Extent.of(right)


@pytest.mark.parametrize("name", ["batch-size", "a b", "floor(H/2)", "", "N*", "4*a b", "max(1,N)"])
def test_other_names_are_symbols(name: str) -> None:
    assert Extent.of(name).symbols == {name}
    assert Extent.of(name).dim == name


def test_bounds() -> None:
    h, n = Extent.of("H"), Extent.of("N")
    assert h.minus(h.floor_divided(2).times(number(2))).at_least(0)
    assert h.minus(h.minimum(number(3))).at_least(0)
    assert h.plus(number(1)).minimum(number(1)) == number(1)
    assert not h.minus(number(1)).at_least(0)
    assert not h.minus(n).at_least(0)
    assert not Extent.of(None).at_least(0)


def test_quotients_are_exact_where_products_agree() -> None:
    """H, W cut in windows of 2 x 3: the Reshape holds only where both divide."""
    before = [Extent.of("N"), Extent.of("H"), Extent.of("W+1")]
    after = [Extent.of(d) for d in ("N", "floordiv(H,2)", 2, "floordiv(W+1,3)", 3)]
    exact = exact_quotients(after, before)
    assert product(e.substitute(exact) for e in before) == product(after)
    both = [Extent.of("floordiv(H,2)")]
    assert exact_quotients(both, both) == {}
    assert math.prod([2, 3]) == product([number(2), number(3)]).number
