"""What is sparse in a network, and what a sparsification did: weights, zeros and how they lie, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from compiler.ir import Graph
from passes.reconstruction import Mended
from passes.sparsity.structure import structures
from passes.sparsity.weights import Weight, weights


@dataclass(frozen=True)
class WeightSparsity:
    """One weight of convolutions or products. nodes: what reads it. zeros: None where it is quantised.

    structure: the patterns that its zeros follow exactly, such as "2:4" and "4x1"; "unstructured" where they follow
    none, nothing where there are no zeros.
    """

    name: str
    op: str
    nodes: tuple[str, ...]
    shape: tuple[int, ...]
    zeros: int | None
    structure: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class WeightChange:
    """One weight before and after. zeros: None where it is quantised. spared: why it was left alone, "" otherwise."""

    name: str
    op: str
    nodes: tuple[str, ...]
    shape: tuple[int, ...]
    zeros: tuple[int | None, int | None]
    spared: str = ""

    @classmethod
    def of(cls, weight: Weight, zeros: tuple[int | None, int | None], spared: str) -> WeightChange:
        """The entry of a weight."""
        nodes = tuple(node.name for node in weight.nodes)
        return cls(weight.name, weight.op, nodes, weight.shape, zeros, spared)

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class SparsifyReport:
    """What a sparsification did. requested, reached: shares of zeros among the weights that were not spared.

    before, after: the graphs, the latter not yet mended.
    """

    pattern: str
    requested: float
    weights: tuple[WeightChange, ...]
    """Every weight of convolutions and products, spared or not, in graph order."""
    before: Graph = field(repr=False)
    after: Graph = field(repr=False)
    mended: Mended | None = None

    @property
    def eligible(self) -> tuple[WeightChange, ...]:
        """The weights that were not spared."""
        return tuple(w for w in self.weights if not w.spared)

    @property
    def reached(self) -> float:
        """The share of zeros among the eligible weights."""
        return _share(self.eligible, 1)

    @property
    def overall(self) -> tuple[float, float]:
        """The share of zeros among all weights of convolutions and products but quantised ones, before and after."""
        return _share(self.weights, 0), _share(self.weights, 1)


def _share(changes: tuple[WeightChange, ...], when: int) -> float:
    counted = [(zeros, w.weights) for w in changes if (zeros := w.zeros[when]) is not None]
    return sum(zeros for zeros, _ in counted) / max(1, sum(size for _, size in counted))


def sparsity_of(graph: Graph) -> tuple[WeightSparsity, ...]:
    """The zeros that are in a graph: one entry for each weight of convolutions and products, in graph order.

    Reads all weights, one at a time.
    """
    return tuple(
        WeightSparsity(
            w.name,
            w.op,
            tuple(node.name for node in w.nodes),
            w.shape,
            zeros := w.zeros(),
            structures(w.layouts[0].view(w.value.numpy() != 0)) if zeros and w.layouts else (),
        )
        for w in weights(graph)
    )
