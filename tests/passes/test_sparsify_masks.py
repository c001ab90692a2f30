"""Masks, and how zeros are shared out, against slow and plain computations of the same."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compiler.ir import SecateurError
from passes.sparsity import NM, Blocks, mask, parse_pattern
from passes.sparsity.distribution import erk_zeros, global_zeros, uniform_zeros
from passes.sparsity.masks import block_mask, block_scores, run_mask
from passes.sparsity.structure import structures

SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))
SCORES = SHAPES.flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 0.25, 1, 2, 3, 7]))
)
"""Few values, so that many are equal."""
BLOCKS = st.builds(Blocks, st.sampled_from([1, 2, 4, 16]), st.sampled_from([1, 2, 3, 4]))


def places(shape: tuple[int, ...], blocks: Blocks) -> list[tuple]:
    """The index of each block, in C order."""
    groups, outputs, inputs, taps = shape
    return [
        (g, slice(o, o + blocks.outputs), slice(i, i + blocks.inputs), t)
        for g, o, i, t in itertools.product(
            range(groups), range(0, outputs, blocks.outputs), range(0, inputs, blocks.inputs), range(taps)
        )
    ]


def rank(part: np.ndarray) -> float:
    known = part[part > -np.inf].astype(np.float64)
    return float(np.float32(known.sum() / part.size)) if known.size else -math.inf


def best_first(ranks: list[float]) -> list[int]:
    """Positions by falling rank, of equal ones the first first."""
    return sorted(range(len(ranks)), key=lambda k: (-ranks[k], k))


def as_near_as_can_be(sizes: list[int], wanted: int) -> int:
    """How many of the sizes to take from the front."""
    sums = [0, *itertools.accumulate(sizes)]
    return min(range(len(sums)), key=lambda k: (abs(sums[k] - wanted), k))


def expected(scores: np.ndarray, blocks: Blocks, zeros: int) -> np.ndarray:
    where = places(scores.shape, blocks)
    worst_first = best_first([rank(scores[p]) for p in where])[::-1]
    count = as_near_as_can_be([scores[where[k]].size for k in worst_first], zeros)
    stays = np.ones(scores.shape, bool)
    for k in worst_first[: min(count, len(where) - 1)]:
        stays[where[k]] = False
    return stays


@given(SCORES, BLOCKS, st.floats(0, 1))
def test_the_lowest_blocks_go(scores: np.ndarray, blocks: Blocks, share: float) -> None:
    zeros = round(share * scores.size)
    np.testing.assert_array_equal(block_mask(scores, blocks, zeros), expected(scores, blocks, zeros))


@given(SCORES, st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8), (3, 5)]), st.sampled_from(["in", "out"]))
def test_runs_keep_their_best(scores: np.ndarray, nm: tuple[int, int], along: str) -> None:
    n, m = nm
    axis = 2 if along == "in" else 1
    stays = np.moveaxis(run_mask(scores, NM(n, m, along)), axis, -1)
    rows = np.moveaxis(scores, axis, -1)
    for row, kept in zip(rows.reshape(-1, rows.shape[-1]), stays.reshape(-1, rows.shape[-1]), strict=True):
        for start in range(0, len(row), m):
            run = row[start : start + m].tolist()
            assert np.flatnonzero(kept[start : start + m]).tolist() == sorted(best_first(run)[:n])


@given(st.lists(SCORES, min_size=1, max_size=4), BLOCKS, st.floats(0, 1), st.sampled_from([np.float32, np.float64]))
def test_one_ranking_of_all_layers(layers: list[np.ndarray], blocks: Blocks, share: float, dtype: type) -> None:
    layers = [scores.astype(dtype) for scores in layers]
    zeros = round(share * sum(s.size for s in layers))
    units = []  # (rank, layer, size), the best of each layer left out
    for number, scores in enumerate(layers):
        sizes = [scores[p].size for p in places(scores.shape, blocks)]
        ranks = [rank(scores[p]) for p in places(scores.shape, blocks)]
        units += [(ranks[k], number, sizes[k], k) for k in best_first(ranks)[1:]]
    units.sort(key=lambda u: (u[0], -u[1], -u[3]))
    count = as_near_as_can_be([u[2] for u in units], zeros)
    wanted = [sum(u[2] for u in units[:count] if u[1] == number) for number in range(len(layers))]
    found = global_zeros(lambda: (block_scores(s, blocks) for s in layers), zeros)
    assert found == wanted
    for scores, gone in zip(layers, found, strict=True):
        assert (~block_mask(scores, blocks, gone)).sum() == gone


def test_global_ranking_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    layers = [np.abs(rng.standard_normal((1, 40, 30, 3))).astype(np.float32) * k for k in (1, 3, 0.4)]
    bound = np.sort(np.concatenate([a.ravel() for a in layers]))[7000]
    found = global_zeros(lambda: (block_scores(a, Blocks()) for a in layers), 7000)
    assert found == [int((a < bound).sum()) for a in layers]
    assert sum(found) == 7000


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9, 0.99])
def test_erk_gives_densities_by_shape(sparsity: float) -> None:
    shapes = [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 1, 1), (64, 64, 5, 5), (10, 64), (7, 2)]
    sizes = np.array([math.prod(s) for s in shapes])
    raw = np.array([sum(s) / math.prod(s) for s in shapes])
    low, high = 0.0, 1e6
    for _ in range(200):  # the scale at which the densities, capped at 1, make up the whole
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if (np.minimum(1, middle * raw) * sizes).sum() < (1 - sparsity) * sizes.sum()
            else (low, middle)
        )
    np.testing.assert_allclose(erk_zeros(shapes, sparsity), sizes * (1 - np.minimum(1, low * raw)), atol=0.51)
    assert abs(sum(erk_zeros(shapes, sparsity)) - sparsity * sizes.sum()) <= len(shapes) / 2


def test_uniform_is_the_same_share_of_each() -> None:
    assert uniform_zeros([1000, 30, 7], 0.9) == [900, 27, 6]


def test_of_equal_scores_the_first_stay() -> None:
    assert mask(np.ones((4, 2, 1)), "unstructured", 0.5).ravel().tolist() == [True] * 4 + [False] * 4
    assert mask(np.ones((4, 2, 1)), "2x1", 0.5)[:, :, 0].tolist() == [[True, True]] * 2 + [[False, False]] * 2
    assert mask(np.ones((1, 6, 1)), "2:4").ravel().tolist() == [True, True, False, False, True, True]
    assert mask(np.ones((5, 1, 1)), "1:4@out").ravel().tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("pattern", ["unstructured", "4x1", "3x2", "2:4"])
def test_something_always_stays(pattern: str) -> None:
    scores = np.arange(30, dtype=np.float64).reshape(6, 5, 1)
    sparsity = None if ":" in pattern else 0.999
    assert mask(scores, pattern, sparsity)[-1, -1, 0]


@pytest.mark.parametrize("sparsity", [None, -0.1, 1, 1.5, math.nan])
def test_masks_need_a_sparsity(sparsity: float | None) -> None:
    with pytest.raises(SecateurError, match=r"E_SPARSITY.*at least 0 and less than 1"):
        mask(np.ones((4, 4, 1)), "4x1", sparsity)


def test_scores_are_numbers() -> None:
    with pytest.raises(SecateurError, match="E_SCORES"):
        mask(np.array([[[1.0], [math.nan]]]), "unstructured", 0.5)


@pytest.mark.parametrize("text", ["unstructured", "2:4", "1:4", "4:8@out", "4x1", "1x4", "16x1"])
def test_patterns_are_written_as_they_are_read(text: str) -> None:
    assert str(parse_pattern(text)) == text


def test_other_spellings() -> None:
    assert parse_pattern("1x1") == Blocks()
    assert str(parse_pattern("2:4@in")) == "2:4"
    assert parse_pattern(Blocks(2, 2)) == Blocks(2, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3:2", "leaves every weight"),
        ("4:4", "leaves every weight"),
        ("0:4", "would leave nothing"),
        ("0x1", "blocks of no weights"),
        ("4x0", "blocks of no weights"),
        ("2:4@up", "is no pattern"),
        ("blocks", "is no pattern.*write unstructured"),
        ("4x", "is no pattern"),
        ("-2:4", "is no pattern"),
    ],
)
def test_what_is_no_pattern(text: str, message: str) -> None:
    with pytest.raises(SecateurError, match=f"(?s)E_SPARSITY_PATTERN.*{message}"):
        parse_pattern(text)


RNG = np.random.default_rng(3)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "1:2", "2:8", "2:4@out", "4x1", "2x1", "16x1", "1x4", "4x4", "8x2"])
@pytest.mark.parametrize("shape", [(1, 64, 32, 1), (2, 20, 24, 9), (1, 35, 18, 4)])
def test_structures_are_recognised(pattern: str, shape: tuple[int, ...]) -> None:
    scores = RNG.random(shape)
    stays = mask(scores, pattern, None if ":" in pattern else 0.7)
    assert structures(stays) == (pattern,)


def test_structures_of_random_zeros() -> None:
    assert structures(RNG.random((1, 64, 64, 9)) < 0.1) == ("unstructured",)
    assert structures(RNG.random((1, 64, 64, 1)) < 0.9) == ("unstructured",)


def test_structures_that_hold_at_once() -> None:
    stays = mask(RNG.random((1, 16, 32, 1)), "2:4").repeat(4, axis=1)
    assert structures(stays) == ("2:4", "4x1")
