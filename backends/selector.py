"""What each layer of a network gets: by cost, or as measurements say; and for which layers there was a choice."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from backends.pairs import choose_pair
from backends.schedules.specs import ConvSpec, MatMulSpec
from backends.selection import Choice, choose_conv, choose_matmul
from backends.target import Target


@dataclass(frozen=True)
class Request:
    """A layer that a schedule was chosen for: its shape, its constant operand, the choice."""

    spec: ConvSpec | MatMulSpec
    weights: np.ndarray
    choice: Choice


@dataclass
class Settled:
    """What was chosen for equal layers. label: the candidate's; other: what it is measured against in the network, if
    that is something; nodes: names of the layers' nodes."""

    label: str
    other: str | None = None
    nodes: set[str] = field(default_factory=set)


class Selector:
    """Chooses the schedules of a network's layers by cost, or as `preferred` says, and remembers them.

    preferred: for the key of layers, the label of the candidate to take. requests: layers that can be measured alone,
    by key. settled: all that there was a choice for. nodes: the names of the nodes whose layer is being chosen for.
    """

    def __init__(self, target: Target, preferred: Mapping[str, str] | None = None) -> None:
        self.target = target
        self.preferred = dict(preferred or {})
        self.requests: dict[str, Request] = {}
        self.settled: dict[str, Settled] = {}
        self.nodes: tuple[str, ...] = ()

    def conv(self, spec: ConvSpec, weights: np.ndarray, target: Target | None = None) -> Choice:
        """The schedule of a convolution with these weights [out, in // groups, kh, kw].

        target: where it is not the selector's own, but the same for another type of numbers; so below.
        """
        target = target or self.target
        return self._settle_layer(spec, weights, choose_conv(spec, weights, target), target)

    def matmul(self, spec: MatMulSpec, weights: np.ndarray | None, target: Target | None = None) -> Choice:
        """The schedule of a matrix product whose constant operand, if it has one, is `weights` as it is stored."""
        target = target or self.target
        choice = choose_matmul(spec, weights, target)
        return choice if weights is None else self._settle_layer(spec, weights, choice, target)

    def pair(
        self, first: ConvSpec, weights: np.ndarray, second: ConvSpec, target: Target | None = None
    ) -> Choice | None:
        """The kernel of a 1x1 convolution with these weights and a depthwise one after it; None: two kernels."""
        target = target or self.target
        found = choose_pair(first, weights, second, target)
        if found is None:
            return None
        key, choice = self._settle((first, second), weights, found.choice, target)
        together = choice.chosen is not found.apart
        self.settled[key].other = (found.apart if together else choice.others[0]).label
        return choice if together else None

    def _settle_layer(self, spec: ConvSpec | MatMulSpec, weights: np.ndarray, choice: Choice, target: Target) -> Choice:
        if not choice.others:
            return choice
        key, choice = self._settle(spec, weights, choice, target)
        self.requests[key] = Request(spec, weights, choice)
        return choice

    def _settle(self, spec: object, weights: np.ndarray, choice: Choice, target: Target) -> tuple[str, Choice]:
        zeros = np.packbits(np.asarray(weights) != 0).tobytes()
        machine = dataclasses.replace(target, threads=1)
        key = hashlib.sha256(repr((spec, machine)).encode() + zeros).hexdigest()
        wanted = self.preferred.get(key)
        every = (choice.chosen, *choice.others)
        found = next((c for c in every if c.label == wanted), None)
        if found is not None:
            others = tuple(c for c in every if c is not found)
            choice = dataclasses.replace(choice, chosen=found, others=others, measured=True)
        self.settled.setdefault(key, Settled(choice.chosen.label)).nodes.update(self.nodes)
        return key, choice
