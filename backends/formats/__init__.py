"""Formats: how kernels read sparse weights. Every encoding decodes to exactly the matrix that it came from."""

from backends.formats.block_csr import BlockCSR, group_rows
from backends.formats.nm import NM, find_nm
from backends.formats.pattern_csr import PatternCSR

__all__ = ["NM", "BlockCSR", "PatternCSR", "find_nm", "group_rows"]
