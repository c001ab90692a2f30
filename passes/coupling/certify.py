"""The permutation certificate: an exact test of the coupling analysis on the user's own model.

Every group is permuted at random in all its members and both networks are run; the outputs agree to
rounding exactly when no member was missed. (It cannot see a group that is larger than needed.) A body of If, Loop
or Scan that holds members is run alone as well, so that a branch which the data does not take is proven too.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compiler.ir import CheckFailed, Graph
from compiler.ir.bodies import Run, runs
from compiler.ir.execute import random_inputs, relative_difference
from passes.coupling.groups import Groups
from passes.coupling.transform import permute, random_permutation

TOLERANCE = 1e-4
"""Largest relative difference (norm of the difference over the norm) that rounding may cause."""


def certify(
    graph: Graph,
    groups: Groups,
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    seed: int = 0,
    tolerance: float = TOLERANCE,
) -> float:
    """Prove `groups` on `graph`; returns the largest relative difference of any output, of the graph or of a body.

    inputs: the data to run on (noise when omitted). Raises CheckFailed `E_CERTIFICATE`, naming the groups
    at fault, when the outputs differ by more than `tolerance`, `E_CERTIFICATE_VACUOUS` when the model's
    outputs do not depend on the order of channels at all, so that nothing would be proven, and `E_BODY` when a body
    that holds members cannot be run on this data.
    """
    if groups.graph is not graph:
        raise CheckFailed(
            "E_CERTIFICATE", "these groups belong to another graph", hint="compute dependency_groups(graph) again"
        )
    if not groups:
        return 0.0
    rng = np.random.default_rng(seed)
    data = dict(inputs) if inputs is not None else random_inputs(graph, seed)
    trial = _Trial(graph, runs(graph, data, groups.moving()))
    source = random_permutation(groups, rng)
    worst = trial.difference(permute(groups, source))
    if not worst <= tolerance:
        guilty = [
            g.name
            for g in groups
            if trial.difference(permute(groups, random_permutation(groups, rng, only=g))) > tolerance
        ]
        raise CheckFailed(
            "E_CERTIFICATE",
            f"permuting the groups changes the outputs by {worst:.2e} (relative), more than {tolerance:.0e}",
            where=", ".join(guilty[:8]) or "no single group alone",
            hint="a coupling rule is wrong for this model; please report it with the model's structure",
        )
    broken = permute(groups, source, {g.members[0].value for g in groups if g.members})
    if trial.difference(broken) <= max(worst, 1e-7):
        raise CheckFailed(
            "E_CERTIFICATE_VACUOUS",
            "the outputs do not change even when channels are permuted in one member only",
            hint="the weights make all channels alike (constants, zeros?), so this model proves nothing",
        )
    return worst


class _Trial:
    """What a graph and its bodies compute, for graphs of the same structure to be compared with."""

    def __init__(self, graph: Graph, found: list[Run]) -> None:
        self._expected = [(run, run.execute(graph, optimize=False)) for run in found]

    def difference(self, changed: Graph) -> float:
        """The largest relative difference of any output."""
        return max(relative_difference(run.execute(changed, optimize=False), e) for run, e in self._expected)
