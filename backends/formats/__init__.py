"""Formats: how kernels read sparse weights. Every encoding decodes to exactly the matrix that it came from."""

from backends.formats.block_csr import BlockCSR
from backends.formats.nm import NM, find_nm
from backends.formats.pattern_csr import PatternCSR
from backends.formats.row_groups import RowGroups

__all__ = ["NM", "BlockCSR", "PatternCSR", "RowGroups", "find_nm"]
