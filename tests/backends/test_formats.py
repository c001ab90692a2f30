"""Formats: every encoding gives back exactly the matrix, and puts rows together that belong together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.formats import NM, BlockCSR, PatternCSR, RowGroups, find_nm
from compiler.errors import SecateurError


def sparse(seed: int, rows: int, columns: int, density: float) -> np.ndarray:
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((rows, columns)).astype(np.float32)
    return np.where(generator.random(matrix.shape) < density, matrix, np.float32(0))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 67),
    st.integers(1, 90),
    st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.sampled_from([1, 2, 4]),
)
def test_block_csr_decodes_to_the_matrix(seed, rows, columns, density, block, unroll):
    matrix = sparse(seed, rows, columns, density)
    encoded = BlockCSR.encode(matrix, block, unroll)
    np.testing.assert_array_equal(encoded.decode(), matrix)
    assert set(encoded.order.reshape(-1)) == set(range(rows))
    assert encoded.order.shape == (-(-rows // block), block)
    assert (np.diff(encoded.starts) >= 0).all() and encoded.starts[-1] * unroll == encoded.entries
    assert (np.diff(encoded.starts)[:-1] >= np.diff(encoded.starts)[1:]).all(), "longest first"


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 40),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.05, 0.3, 0.6, 1.0]),
    st.sampled_from([1, 2, 3, 4]),
)
def test_pattern_csr_decodes_to_the_matrix(seed, rows, columns, density, block):
    matrix = sparse(seed, rows, columns, density)
    encoded = PatternCSR.encode(matrix, block)
    np.testing.assert_array_equal(encoded.decode(), matrix)
    assert set(encoded.order.reshape(-1)) == set(range(rows))
    assert len(encoded.starts) == len(encoded.order) * encoded.patterns + 1
    assert encoded.values.size == np.count_nonzero(matrix[encoded.order.reshape(-1)])
    assert encoded.entries == (matrix != 0)[encoded.order].any(axis=1).sum()


def grouped(seed: int, rows: int, groups: int, n: int, m: int) -> np.ndarray:
    """A matrix with n nonzeros, here and there fewer, in every m columns."""
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal((rows, groups, m)).astype(np.float32)
    ranks = np.argsort(np.argsort(generator.random(matrix.shape), axis=2), axis=2)
    return np.where(ranks < n, matrix, np.float32(0)).reshape(rows, groups * m)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.integers(0, 1000), st.integers(1, 40), st.integers(0, 12), st.integers(1, 8), st.integers(0, 30), st.booleans()
)
def test_nm_decodes_to_the_matrix(seed, rows, groups, n, more, hollow):
    matrix = grouped(seed, rows, groups, n, n + more)
    if hollow:
        matrix[::2] = 0
    encoded = NM.encode(matrix, n, n + more)
    np.testing.assert_array_equal(encoded.decode(), matrix)
    assert encoded.entries == rows * groups * n and encoded.nbytes == 5 * encoded.entries


def test_nm_refuses_what_it_cannot_hold():
    matrix = grouped(1, 6, 5, 2, 4)
    for n, m in ((1, 4), (2, 8), (2, 3), (5, 4), (0, 4)):
        with pytest.raises(SecateurError, match="E_FORMAT"):
            NM.encode(matrix, n, m)


def test_nm_is_found_where_hardly_a_zero_would_be_stored():
    assert find_nm([grouped(1, 60, 8, 2, 4), grouped(2, 60, 8, 2, 4)]) == (2, 4)
    assert find_nm([grouped(1, 60, 8, 1, 8)]) == (1, 8)
    assert find_nm([sparse(3, 60, 64, 0.5)]) is None
    assert find_nm([np.ones((4, 64), np.float32)]) is None
    assert find_nm([np.zeros((4, 64), np.float32)]) is None
    assert find_nm([grouped(1, 60, 8, 2, 4)[:, :31]]) is None


def test_plain_rows_store_the_nonzeros_and_nothing_else():
    matrix = sparse(3, 40, 300, 0.1)
    encoded = BlockCSR.encode(matrix)
    assert encoded.entries == np.count_nonzero(matrix)
    assert encoded.fits_bytes and encoded.nbytes == 5 * encoded.entries + 4 * 41 + 4 * 40


@pytest.mark.parametrize("unroll", [1, 4])
def test_deltas_add_up_to_the_columns(unroll):
    matrix = sparse(4, 30, 700, 0.02)
    matrix[::7] = 0
    encoded = BlockCSR.encode(matrix, 2, unroll)
    for first, last in zip(encoded.starts[:-1] * unroll, encoded.starts[1:] * unroll, strict=True):
        np.testing.assert_array_equal(np.cumsum(encoded.deltas[first:last]), encoded.columns[first:last])


def test_columns_far_apart_do_not_fit_bytes():
    matrix = np.zeros((1, 600), np.float32)
    matrix[0, [100, 355]] = 1
    assert BlockCSR.encode(matrix).fits_bytes
    matrix[0, 356], matrix[0, 355] = 1, 0
    assert not BlockCSR.encode(matrix).fits_bytes
    assert BlockCSR.encode(matrix).nbytes == 6 * 2 + 4 * 2 + 4


def test_blocks_of_neighbours_are_kept():
    matrix = np.repeat(sparse(4, 8, 60, 0.2), 4, axis=0) * np.arange(1, 33, dtype=np.float32)[:, None]
    encoded = BlockCSR.encode(matrix, 4)
    assert encoded.entries * 4 == np.count_nonzero(matrix)
    assert (np.diff(encoded.order, axis=1) == 1).all()


@pytest.mark.parametrize("block", [2, 4])
def test_rows_that_coincide_find_each_other(block):
    generator = np.random.default_rng(5)
    matrix = np.repeat(sparse(5, 16, 80, 0.2), block, axis=0)
    shuffled = matrix[generator.permutation(len(matrix))]
    order = RowGroups(shuffled).order(block)
    assert (shuffled != 0)[order].any(axis=1).sum() * block == np.count_nonzero(shuffled)
    natural = np.arange(len(matrix)).reshape(-1, block)
    assert (shuffled != 0)[natural].any(axis=1).sum() * block > np.count_nonzero(shuffled)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 10**6), st.integers(3, 24), st.integers(1, 40), st.floats(0, 0.6), st.sampled_from([2, 4]))
def test_what_cannot_fill_blocks_does_not(seed, rows, width, density, block):
    """The bound holds for rows of which many are alike, as for random ones."""
    generator = np.random.default_rng(seed)
    matrix = sparse(seed, rows, width, density)[generator.integers(0, rows, rows)]
    found = RowGroups(matrix)
    used = np.count_nonzero(found.columns(block)) * block
    share = np.count_nonzero(matrix) / used if used else 0.0
    assert found.can_fill(block, share)


def test_random_rows_cannot_fill_blocks():
    assert not RowGroups(sparse(6, 256, 512, 0.1)).can_fill(4, 0.5)
    assert RowGroups(np.repeat(sparse(7, 64, 512, 0.1), 4, axis=0)).can_fill(4, 0.95)
