"""Structured pruning over dependency groups."""

from passes.structured.layers import GroupChange, LayerChange
from passes.structured.prune import Prune, PruneReport

__all__ = ["GroupChange", "LayerChange", "Prune", "PruneReport"]
