"""What moves in a dependency group: the word for one of its units.

channel: of a convolution, or of a stream that normalisations, embeddings or shortcuts share. hidden unit: of a
perceptron's or a recurrent layer. head-dim: a channel within attention heads; head-dim pair: two that turn together
(rotary embeddings). head: a whole attention head; kv-group: a key and value head with the query heads that read it.
expert: one of a stack of weights, with its router column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from passes.coupling.groups import Member
    from passes.coupling.solver import Coupling

CHANNEL = "channel"
HIDDEN_UNIT = "hidden unit"
HEAD_DIM = "head-dim"
PAIR = "head-dim pair"
HEAD = "head"
KV_GROUP = "kv-group"
EXPERT = "expert"
PRODUCT = "product"
"""A mark only: what a product of two activations contracts or yields, where no heads are to be seen."""

ATTENTION = (HEAD, HEAD_DIM, PRODUCT)
"""The marks of what belongs to attention."""

_STRENGTH = (HEAD, HEAD_DIM, EXPERT, HIDDEN_UNIT)
"""Where rules disagree about a group, the first of these counts."""

_SEVERAL = {HEAD: KV_GROUP, HEAD_DIM: PAIR}
"""What a unit is called that takes several positions of a row."""

_PRODUCTS = {
    *("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul", "Einsum", "FusedGemm", "FusedMatMul", "QGemm"),
    *("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits"),
}
_BESIDE_PRODUCTS = {
    *("Add", "Cast", "DequantizeLinear", "Div", "Identity", "Mul", "PRelu", "QuantizeLinear", "Reshape", "Sub"),
    *("ScatterElements", "Transpose", "Where", "BiasGelu", "FastGelu"),
}


def group_kinds(
    coupling: Coupling, unit_of: np.ndarray, group_of: np.ndarray, members: Mapping[int, Sequence[Member]]
) -> dict[int, str]:
    """The kind of every group. unit_of: [points]; group_of: [units]; members: those of each group."""
    marks: dict[int, set[str]] = {}
    several: set[tuple[int, str]] = set()
    for rows, kind in coupling.kinds:
        units = np.sort(unit_of[coupling.partition.find(rows)], axis=1)
        for group in np.unique(group_of[units[units >= 0]]).tolist():
            marks.setdefault(group, set()).add(kind)
        repeated = units[:, 1:][(units[:, 1:] == units[:, :-1]) & (units[:, 1:] >= 0)]
        several.update((group, kind) for group in np.unique(group_of[repeated]).tolist())
    kinds = {}
    for group in range(int(group_of.max(initial=-1)) + 1):
        found = marks.get(group, set())
        kind = next((k for k in _STRENGTH if k in found), None) or _unmarked(members.get(group, ()))
        kinds[group] = _SEVERAL.get(kind, kind) if (group, kind) in several else kind
    return kinds


def _unmarked(members: Sequence[Member]) -> str:
    """Units that only matrix products and element-wise operators touch are those of a perceptron."""
    readers = {node.op for member in members for node in member.nodes}
    return HIDDEN_UNIT if readers & _PRODUCTS and readers <= _PRODUCTS | _BESIDE_PRODUCTS else CHANNEL
