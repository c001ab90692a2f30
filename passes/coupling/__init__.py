"""Dependency groups: rules per operator, the solver, the groups and their certificate."""

from passes.coupling.carried import Carried, carried
from passes.coupling.certify import certify
from passes.coupling.extents import extent_rule
from passes.coupling.groups import Fixed, Group, Groups, Member, dependency_groups
from passes.coupling.solver import coupling_rule
from passes.coupling.transform import permute, random_permutation, restrict

__all__ = [
    "Carried",
    "Fixed",
    "Group",
    "Groups",
    "Member",
    "carried",
    "certify",
    "coupling_rule",
    "dependency_groups",
    "extent_rule",
    "permute",
    "random_permutation",
    "restrict",
]
