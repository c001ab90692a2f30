"""Passes that keep what a network computes and make it simpler to read: one small pass a file."""

from passes.simplify.canonicalize import Canonicalize
from passes.simplify.eliminate_dead import EliminateDead
from passes.simplify.eliminate_identities import EliminateIdentities
from passes.simplify.fill_constants import FillConstants
from passes.simplify.fold_batchnorm import FoldBatchNorm
from passes.simplify.fold_constants import FoldConstants
from passes.simplify.simplify import Simplify

__all__ = [
    "Canonicalize",
    "EliminateDead",
    "EliminateIdentities",
    "FillConstants",
    "FoldBatchNorm",
    "FoldConstants",
    "Simplify",
]
