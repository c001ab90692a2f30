"""Everything from Graph to Graph: passes, dependency groups, pruning, sparsity."""

from passes.coupling import Carried, Group, Groups, carried, certify, dependency_groups
from passes.pipeline import Context, Pass, Pipeline, available_passes, make_pass, parse_passes, register_pass
from passes.simplify import Simplify
from passes.sparsity import Sparsify, sparsity_of
from passes.structured import Prune

__all__ = [
    "Carried",
    "Context",
    "Group",
    "Groups",
    "Pass",
    "Pipeline",
    "Prune",
    "Simplify",
    "Sparsify",
    "available_passes",
    "carried",
    "certify",
    "dependency_groups",
    "make_pass",
    "parse_passes",
    "register_pass",
    "sparsity_of",
]
