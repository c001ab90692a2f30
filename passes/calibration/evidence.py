"""What a criterion may know of a network beyond its weights, found when first asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from compiler.ir import Graph, Node, Value
from passes.calibration.losses import Function
from passes.calibration.running import observe
from passes.calibration.samples import Samples, no_calibration
from passes.coupling.contractions import contractions
from passes.coupling.groups import Groups, dependency_groups
from passes.coupling.readers import Use, readers

if TYPE_CHECKING:
    from passes.calibration.gradients import Gradients

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Moments:
    """Statistics of each position of an axis over samples and all other axes, in float64.

    count: observations a position. mean, square (the mean of x^2): [positions]. nonzero: the share of observations that
    are not 0. per_sample: the mean of each sample, [samples, positions].
    """

    count: int
    mean: np.ndarray
    square: np.ndarray
    nonzero: np.ndarray
    per_sample: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        """Of the single observations."""
        return np.maximum(self.square - self.mean**2, 0)


@dataclass(frozen=True)
class Contraction:
    """A node that sums over `axis` of the data `x` against `weight_axis` of a constant."""

    node: Node
    x: Value
    axis: int
    weight: Value
    weight_axis: int


class Evidence:
    """The groups of a graph, and on demand its activations and gradients on samples.

    groups: or the graph alone; its groups are then found when they are asked for. samples: calibration data, None where
    there is none. loss, loss_output: what gradients are taken of, and of which output; see
    `passes.calibration.losses.Loss`. progress: called as progress(label, done, total) while data are looked at.
    """

    def __init__(
        self,
        groups: Groups | Graph,
        samples: Samples | None = None,
        loss: str | Function = "cross_entropy",
        *,
        loss_output: str | None = None,
        progress: Progress = lambda label, done, total: None,
    ) -> None:
        self.graph = groups if isinstance(groups, Graph) else groups.graph
        self._groups = None if isinstance(groups, Graph) else groups
        self.loss = loss
        self.loss_output = loss_output
        self.progress = progress
        self._samples = samples
        self._moments: dict[tuple[Value, int], Moments] = {}

    @cached_property
    def groups(self) -> Groups:
        """The dependency groups of the network."""
        return dependency_groups(self.graph) if self._groups is None else self._groups

    @property
    def samples(self) -> Samples:
        """Calibration data; E_NO_CALIBRATION where there is none."""
        if self._samples is None:
            raise no_calibration("this criterion")
        return self._samples

    @cached_property
    def uses(self) -> dict[Value, list[Use]]:
        """For each constant, the (node, operand) pairs that read it or a view of it."""
        return readers(self.graph)

    @cached_property
    def direct(self) -> dict[Value, list[Use]]:
        """For each value, the (node, operand) pairs that read it."""
        return self.graph.consumers()

    @cached_property
    def owned(self) -> dict[Value | Node, int]:
        """The constants and nodes that go with one unit alone."""
        return self.groups.owned()

    def constants(self) -> Iterable[Value]:
        """The constants that have something to lose."""
        for constant in self.graph.all_constants():
            if constant in self.owned or any(t is not None for t in self.groups.layouts.get(constant, ())):
                yield constant

    @cached_property
    def contractions(self) -> list[Contraction]:
        """Every sum of data against a constant."""
        return [
            Contraction(node, x, axis, weight, weight_axis)
            for node in self.graph.nodes
            for x, axis, weight, weight_axis in contractions(node)
        ]

    def moments(self, places: Sequence[tuple[Value, int]]) -> list[Moments]:
        """The statistics of some axes of some values, each found once."""
        wanted = [p for p in dict.fromkeys(places) if p not in self._moments]
        if wanted:
            self._moments.update(_measured(self.graph, wanted, self.samples, self.progress))
        return [self._moments[p] for p in places]

    @cached_property
    def gradients(self) -> Gradients:
        """Gradients of the loss on the samples."""
        from passes.calibration.gradients import Gradients

        return Gradients(self.graph, self._samples, self.loss, output=self.loss_output, progress=self.progress)


def _measured(
    graph: Graph, places: Sequence[tuple[Value, int]], samples: Samples, progress: Progress
) -> dict[tuple[Value, int], Moments]:
    count = dict.fromkeys(places, 0)
    sums: dict[tuple[Value, int], np.ndarray] = {}
    per_sample: dict[tuple[Value, int], list[np.ndarray]] = {p: [] for p in places}
    for done, found in enumerate(observe(graph, [v for v, _ in places], samples)):
        progress("calibrating", done, len(samples.batches))
        for place in places:
            value, axis = place
            array = np.asarray(found[value], np.float64)
            rows = np.moveaxis(array, axis, -1)
            rows = rows.reshape(len(array) if axis != 0 else 1, -1, array.shape[axis])
            count[place] += rows.shape[0] * rows.shape[1]
            totals = np.stack([rows.sum((0, 1)), np.square(rows).sum((0, 1)), (rows != 0).sum((0, 1))])
            sums[place] = sums.get(place, 0) + totals
            per_sample[place].append(rows.mean(1))
    moments = {}
    for place in places:
        mean, square, nonzero = sums[place] / max(1, count[place])
        moments[place] = Moments(count[place], mean, square, nonzero, np.concatenate(per_sample[place]))
    return moments
