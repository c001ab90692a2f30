"""Structured pruning: drop the least important units of the dependency groups.

Follows "Structurally Prune Anything" (Wang et al., 2024, arXiv:2403.18955): score parameters, aggregate over
coupled channels, rank, and remove whole units everywhere at once.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np

from compiler.ir import Cost, Graph, SecateurError, graph_cost
from passes.coupling.groups import Fixed, Group, Groups, dependency_groups
from passes.coupling.transform import restrict
from passes.importance import criterion, unit_scores
from passes.pipeline import Context, Pass, register_pass
from passes.structured.budget import METRICS, choose_steps, keep_flags
from passes.structured.ladder import NORMALIZATIONS, build_ladders

SCOPES = ("global", "local")


@dataclass(frozen=True)
class GroupChange:
    """Width of one group before and after, in units."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class PruneReport:
    """What a prune did. requested and reached: the share of the metric that was to go, and that went."""

    metric: str
    requested: float
    reached: float
    before: Cost
    after: Cost
    groups: tuple[GroupChange, ...]
    unranked: tuple[str, ...]
    fixed: tuple[Fixed, ...]
    selection: tuple[Groups, np.ndarray] = field(repr=False)
    """The groups of the unpruned graph, and one flag a unit: what `check.pruning_error` needs."""


@register_pass("prune")
@dataclass(frozen=True)
class Prune(Pass):
    """Remove a share of the network's cost, unit by unit.

    ratio: share of `metric` to remove, in (0, 1). metric: macs or params. criterion: how parameters are scored
    (l1, l2, bn_scale, random, …). scope: take the same share of each group (local) or rank over the whole network
    (global). normalize: scores of a group are divided by their mean or max, or not (none), before groups are
    compared. round_to: widths that change become multiples of this. min_channels: no group becomes narrower.
    ignore, only: patterns (shell style) of groups, constants, nodes or kinds ("expert") to spare, or to restrict
    pruning to.
    heads: attention loses whole heads instead of channels within each head. seed: for criteria that draw
    random numbers.
    """

    ratio: float = 0.5
    metric: str = "macs"
    criterion: str = "l1"
    scope: str = "local"
    normalize: str = "mean"
    round_to: int = 1
    min_channels: int = 1
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    heads: bool = False
    seed: int = 0
    changes_function: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (isinstance(self.ratio, int | float) and math.isfinite(self.ratio) and 0 < self.ratio < 1):
            raise SecateurError(
                "E_RATIO",
                f"the ratio must be more than 0 and less than 1, not {self.ratio}",
                where="prune(ratio=…)",
                hint="ratio=0.5 removes half of the metric",
            )
        _one_of("metric", self.metric, tuple(METRICS))
        _one_of("scope", self.scope, SCOPES)
        _one_of("normalize", self.normalize, NORMALIZATIONS)
        for name in ("round_to", "min_channels"):
            if getattr(self, name) < 1:
                raise SecateurError("E_OPTION_VALUE", f"{name} must be at least 1", where=f"prune({name}=…)")

    def run(self, graph: Graph, context: Context) -> Graph:
        chosen = criterion(self.criterion, self.seed)
        context.progress("grouping", 0, 3)
        groups = dependency_groups(graph, heads=self.heads)
        context.progress("scoring", 1, 3)
        candidates = select_groups(groups, self.ignore, self.only)
        ladders = build_ladders(
            candidates,
            unit_scores(groups, chosen),
            normalize=self.normalize,
            round_to=self.round_to,
            min_channels=self.min_channels,
        )
        if not ladders:
            raise SecateurError(
                "E_NOTHING_TO_PRUNE",
                f"criterion {self.criterion!r} ranks none of the {len(candidates)} groups that may be pruned",
                hint="`secateur groups MODEL` shows the groups and what is fixed; bn_scale needs BatchNormalization",
            )
        context.progress("choosing", 2, 3)
        metric = METRICS[self.metric](groups)
        steps = choose_steps(ladders, groups, metric, self.ratio, self.scope)
        keep = keep_flags(groups, ladders, steps)
        pruned = restrict(groups, keep)
        context.progress("pruned", 3, 3)
        ranked = {ladder.group.name for ladder in ladders}
        changes = tuple(
            GroupChange(ladder.group.name, ladder.group.units, ladder.group.units - n * sum(ladder.group.step))
            for ladder, n in zip(ladders, steps, strict=True)
        )
        before, after = graph_cost(graph), graph_cost(pruned)
        report = PruneReport(
            metric=self.metric,
            requested=self.ratio,
            reached=1 - getattr(after, self.metric) / getattr(before, self.metric),
            before=before,
            after=after,
            groups=changes,
            unranked=tuple(g.name for g in groups if g.name not in ranked),
            fixed=groups.fixed,
            selection=(groups, keep),
        )
        context.report(self.name, report)
        return pruned


def select_groups(groups: Groups, ignore: tuple[str, ...], only: tuple[str, ...]) -> list[Group]:
    """The groups that the patterns leave; E_PATTERN for a pattern that matches nothing."""
    for pattern in (*ignore, *only):
        if not any(_matches(g, pattern) for g in groups):
            names = sorted({n for g in groups for n in _names(g)})
            close = difflib.get_close_matches(pattern.strip("*"), names, 3)
            raise SecateurError(
                "E_PATTERN",
                f"the pattern {pattern!r} matches no group, constant, node or kind",
                hint=f"did you mean {', '.join(close)}?" if close else "`secateur groups MODEL` lists the names",
            )
    return [
        g for g in groups if not any(_matches(g, p) for p in ignore) and (not only or any(_matches(g, p) for p in only))
    ]


def _names(group: Group) -> set[str]:
    found = {group.name, group.kind}
    for member in group.members:
        found.add(member.value.name)
        found.update(n.name for n in member.nodes)
    return found


def _matches(group: Group, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in _names(group))


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        close = difflib.get_close_matches(value, known, 1)
        raise SecateurError(
            "E_OPTION_VALUE",
            f"{option} cannot be {value!r}",
            where=f"prune({option}=…)",
            hint=f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(known)}",
        )
