"""Sparsity: patterns of zeros, masks, how zeros are shared out between layers, and the pass `sparsify`."""

from passes.sparsity.masks import mask
from passes.sparsity.patterns import NM, Blocks, Pattern, parse_pattern
from passes.sparsity.report import SparsifyReport, WeightChange, WeightSparsity, sparsity_of
from passes.sparsity.sparsify import Sparsify

__all__ = [
    "NM",
    "Blocks",
    "Pattern",
    "Sparsify",
    "SparsifyReport",
    "WeightChange",
    "WeightSparsity",
    "mask",
    "parse_pattern",
    "sparsity_of",
]
