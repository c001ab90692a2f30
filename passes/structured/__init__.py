"""Structured pruning over dependency groups."""

from passes.structured.prune import Prune, PruneReport

__all__ = ["Prune", "PruneReport"]
