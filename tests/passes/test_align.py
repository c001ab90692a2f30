"""Aligning the axes of a Reshape: runs with equal products, numbers and symbols alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.coupling.rules.movement import align

CASES = [
    ((1, 8, 4, 4), (1, 2, 4, 4, 4), [([0], []), ([1], [0, 1, 2]), ([2], [3]), ([3], [4])]),
    (("B", 2, 2, "S", 8), ("B", 4, "unknown", 8), [([0], [0]), ([1, 2], [1]), ([3], [2]), ([4], [3])]),
    (("B", "S", 4, 8), ("unknown", 32), [([0, 1], [0]), ([2, 3], [1])]),
    (("B", "S", 32), ("B", "S", 4, 8), [([0], [0]), ([1], [1]), ([2], [2, 3])]),
    ((6, 4), (4, 6), [([0, 1], [0, 1])]),
    (("N", 8, 2, 2), ("N", 32), [([0], [0]), ([1, 2, 3], [1])]),
    (("N", None), ("N", 5), None),
    (("N", 3), ("M", "K"), None),
    ((2, 0), (0,), None),
    (("N", "2*S", 4), ("2*N*S", 4), [([0, 1], [0]), ([2], [1])]),
    (
        ("N", "H", "W", 8),
        ("N", "floordiv(H,2)", 2, "floordiv(W,2)", 2, 8),
        [([0], [0]), ([1], [1, 2]), ([2], [3, 4]), ([3], [5])],
    ),
    (("floordiv(H,2)", 2, "W"), ("H", "floordiv(W,3)", 3), None),  # 4 x 2 x 3 and 5 x 1 x 3 …: rounded on both sides
    (("N", 8, 16), (1, 2, 4, 16), [([0], []), ([1], [0, 1, 2]), ([2], [3])]),  # holds at a batch of 1 alone
    (("N+1", "N"), ("N", "N+1"), [([0, 1], [0, 1])]),
]


@pytest.mark.parametrize(("before", "after", "runs"), CASES)
def test_cases(before, after, runs) -> None:
    assert align(before, after) == runs


def test_windows_are_put_back_where_they_were_cut() -> None:
    """What the one Reshape shows (4 divides H), the other needs."""
    facts: dict = {}
    cut = ("N", "floordiv(H,4)", 4, "floordiv(W,4)", 4, 8)
    assert align(cut, ("N", "H", "W", 8)) is not None
    assert align((*cut[:-1], 9), ("N", "H", "W", "C"), facts) is None
    assert align(("N", "H", "W", 8), cut, facts) is not None
    back = [([0], [0]), ([1, 2], [1]), ([3, 4], [2]), ([5], [3])]
    assert align((*cut[:-1], 9), ("N", "H", "W", 9), facts) == back


@given(st.lists(st.integers(1, 4), max_size=6), st.randoms(use_true_random=False))
def test_runs_partition_both_shapes_and_agree(factors: list[int], random) -> None:
    def merged() -> tuple[int, ...]:
        shape = [1]
        for factor in factors:
            if random.random() < 0.5:
                shape.append(factor)
            else:
                shape[-1] *= factor
        return tuple(shape)

    before, after = merged(), merged()
    runs = align(before, after)
    assert runs is not None
    assert [a for left, _ in runs for a in left] == list(range(len(before)))
    assert [a for _, right in runs for a in right] == list(range(len(after)))
    for left, right in runs:
        assert math.prod(before[a] for a in left) == math.prod(after[a] for a in right)
    assert np.zeros(before).reshape(after).shape == after
