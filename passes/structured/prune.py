"""Structured pruning: drop the least important units of the dependency groups.

Follows "Structurally Prune Anything" (Wang et al., 2024, arXiv:2403.18955): score parameters, aggregate over
coupled channels, rank, and remove whole units everywhere at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from compiler.ir import Cost, Graph, SecateurError, graph_cost
from passes.calibration import Evidence, Samples
from passes.calibration.losses import check_loss
from passes.calibration.samples import LABELS
from passes.coupling.groups import Fixed, Groups, dependency_groups
from passes.coupling.transform import restrict
from passes.importance import AGGREGATES, Criterion, criterion, criterion_samples, unit_scores
from passes.pipeline import Context, Pass, register_pass
from passes.reconstruction import MENDS, Mended, mend
from passes.structured.budget import METRICS, PATHS, choose_steps, keep_flags
from passes.structured.ladder import NORMALIZATIONS, Ladder, build_ladders
from passes.structured.layers import GroupChange, LayerChange, Removal, layer_changes, lost_importance
from passes.structured.scopes import fixed_shares, select_groups, without_ends


@dataclass(frozen=True)
class Stage(Removal):
    """One removal, and the graph as it came out, not yet mended."""

    pruned: Graph


@dataclass(frozen=True)
class PruneReport:
    """What a prune did. requested and reached: the share of the metric that was to go, and that went."""

    metric: str
    requested: float
    reached: float
    before: Cost
    after: Cost
    groups: tuple[GroupChange, ...]
    layers: tuple[LayerChange, ...]
    """Every layer of the network; they sum up to `before` and `after`."""
    unranked: tuple[str, ...]
    fixed: tuple[Fixed, ...]
    stages: tuple[Stage, ...] = field(repr=False)
    """One for each step of an iterative pruning."""
    mended: Mended | None = None

    @property
    def selection(self) -> tuple[Groups, np.ndarray]:
        """The groups of the graph before the last stage, and one flag a unit: what `check.pruning_error` needs."""
        return self.stages[-1].groups, self.stages[-1].keep


@register_pass("prune")
@dataclass(frozen=True)
class Prune(Pass):
    """Remove a share of the network's cost, unit by unit.

    ratio: share of `metric` to remove, in (0, 1). metric: macs or params. criterion: how parameters are scored; see
    `passes.importance`. aggregate: how a unit's scores on its members become one (sum, mean, max, prod). scope: take
    the same share of each group (local), rank over the whole network (global) or over each kind of unit (kind), or give
    large layers more to lose (erk). normalize: what scores of a group are divided by (mean, max, sum, none; gaussian
    takes the mean off first) before groups are compared. round_to: widths that change become multiples of this.
    min_channels: no group becomes narrower. max_ratio: no group loses a larger share of its units. shares: scopes of
    layers that lose a share of their own units, ranked among themselves: "PATTERN=0.3" or "PATTERN|PATTERN=0.3" of the
    layers that make the units; the first scope that names a group has it, and the others make up for the rest of the
    ratio. keep_ends: spare what the first layers make and what the last ones read, of every input and output. ignore,
    only: patterns (shell style) of groups, constants, nodes or kinds ("expert") to spare with all that they make and
    read, or to restrict pruning to. heads: attention loses whole heads instead of channels within each head. steps:
    prune in so many stages, scoring anew in between. calibration: data for criteria and mending; see
    `passes.calibration.calibration_samples`. samples: use at most so many of them. labels: the name of the labels among
    them. loss: what criteria over gradients differentiate: cross_entropy, mse, or a function of an output and labels.
    loss_output: the name of the output that it reads, where there are several. mend: none, batchnorm, layers, or auto
    (layers for the criterion obspa); see `passes.reconstruction.mend`. seed: for criteria that draw random numbers, and
    for noise.
    """

    ratio: float = 0.5
    metric: str = "macs"
    criterion: str = "l1"
    aggregate: str = "sum"
    scope: str = "local"
    normalize: str = "mean"
    round_to: int = 1
    min_channels: int = 1
    max_ratio: float = 1.0
    shares: tuple[str, ...] = ()
    keep_ends: bool = False
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    heads: bool = False
    steps: int = 1
    calibration: Any = field(default=None, compare=False)
    samples: int = 512
    labels: str = LABELS
    loss: Any = "cross_entropy"
    loss_output: str | None = None
    mend: str = "auto"
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
        self.one_of("metric", tuple(METRICS))
        self.one_of("scope", tuple(PATHS))
        self.one_of("normalize", NORMALIZATIONS)
        self.one_of("aggregate", AGGREGATES)
        self.one_of("mend", ("auto", *MENDS))
        check_loss(self.loss)
        if not 0 < self.max_ratio <= 1:
            raise SecateurError(
                "E_OPTION_VALUE", "max_ratio must be more than 0 and at most 1", where="prune(max_ratio=…)"
            )
        for name in ("round_to", "min_channels", "steps", "samples"):
            if getattr(self, name) < 1:
                raise SecateurError("E_OPTION_VALUE", f"{name} must be at least 1", where=f"prune({name}=…)")

    def run(self, graph: Graph, context: Context) -> Graph:
        chosen = criterion(self.criterion, self.seed)
        mending = self._mending()
        samples = criterion_samples(
            graph, chosen, self.calibration, limit=self.samples, labels=self.labels, mend=mending
        )
        stages: list[Stage] = []
        ladders: list[Ladder] = []
        mended: Mended | None = None
        current = graph
        each = 1 - (1 - self.ratio) ** (1 / self.steps)
        for _ in range(self.steps):
            stage, found = self._stage(current, chosen, samples, each, context)
            stages.append(stage)
            ladders = ladders or found
            current = stage.pruned
            if mending != "none":
                assert samples is not None
                mended = mend(
                    current,
                    stage.groups,
                    stage.keep,
                    samples,
                    mending,
                    seed=self.seed,
                    progress=lambda done, total: context.progress("reconstructing", done, total),
                )
                current = mended.graph
        context.report(self.name, self._report(graph, current, stages, ladders, mended))
        return current

    def _mending(self) -> str:
        if self.mend != "auto":
            return self.mend
        return "layers" if self.criterion == "obspa" else "none"

    def _stage(
        self, graph: Graph, chosen: Criterion, samples: Samples | None, ratio: float, context: Context
    ) -> tuple[Stage, list[Ladder]]:
        """One removal of `ratio` of the metric."""
        context.progress("grouping", 0, 1)
        groups = dependency_groups(graph, heads=self.heads)
        context.progress("scoring", 0, 1)
        evidence = Evidence(groups, samples, self.loss, loss_output=self.loss_output, progress=context.progress)
        scores = unit_scores(groups, chosen, evidence, aggregate=self.aggregate)
        candidates = select_groups(groups, self.ignore, self.only)
        if self.keep_ends:
            candidates = without_ends(groups, candidates)
        ladders = build_ladders(
            candidates,
            scores,
            normalize=self.normalize,
            round_to=self.round_to,
            min_channels=self.min_channels,
            max_ratio=self.max_ratio,
        )
        if not ladders:
            raise SecateurError(
                "E_NOTHING_TO_PRUNE",
                f"criterion {self.criterion!r} ranks none of the {len(candidates)} groups that may be pruned",
                hint="`secateur groups MODEL` shows the groups and what is fixed; bn_scale needs BatchNormalization",
            )
        context.progress("choosing", 0, 1)
        metric = METRICS[self.metric](groups)
        fixed = fixed_shares(ladders, self.shares, self.steps)
        keep = keep_flags(groups, ladders, choose_steps(ladders, groups, metric, ratio, self.scope, fixed))
        return Stage(groups, keep, scores, restrict(groups, keep)), ladders

    def _report(
        self, graph: Graph, pruned: Graph, stages: list[Stage], ladders: list[Ladder], mended: Mended | None
    ) -> PruneReport:
        first, last = stages[0].groups, stages[-1]
        ranked = [ladder.group for ladder in ladders]
        names = {g.name for g in ranked}
        widths = {g.name: int(sum(last.keep[b].sum() for b in g.blocks)) for g in last.groups}
        before, after = graph_cost(graph), graph_cost(pruned)
        lost = lost_importance(stages)
        changes = tuple(GroupChange(g.name, g.units, widths.get(g.name, 0), lost.get(g.name)) for g in ranked)
        errors = {} if mended is None else mended.errors
        return PruneReport(
            metric=self.metric,
            requested=self.ratio,
            reached=1 - getattr(after, self.metric) / getattr(before, self.metric),
            before=before,
            after=after,
            groups=changes,
            layers=layer_changes(graph, pruned, stages, changes, errors),
            unranked=tuple(g.name for g in first if g.name not in names),
            fixed=first.fixed,
            stages=tuple(stages),
            mended=mended,
        )
