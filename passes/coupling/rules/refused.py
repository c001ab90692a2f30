"""The standard operators that pin all they touch, and why, which the report says."""

from __future__ import annotations

from compiler.ir import Node
from passes.coupling.solver import Coupling, coupling_rule

_SEQUENCES = "holds a sequence or an optional, which has no axes"
_TEXT = "reads text or files"
_RANDOM = "draws a random number for each position"
_SIZES = "computes a tensor whose extents, and positions, its operands or attributes spell"
_LOSSES = "a training loss, which reads labels"
_ORDER = "the order or number of its results depends on every position of its operands"

REFUSED: dict[str, str] = {
    op: reason
    for reason, ops in {
        _SEQUENCES: (
            *("ConcatFromSequence", "Optional", "OptionalGetElement", "OptionalHasElement", "SequenceAt"),
            *("SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceLength"),
            "SplitToSequence",
        ),
        _TEXT: ("ImageDecoder", "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"),
        _RANDOM: ("Bernoulli", "Multinomial", "RandomNormalLike", "RandomUniformLike"),
        _SIZES: ("BlackmanWindow", "EyeLike", "HammingWindow", "HannWindow", "MelWeightMatrix"),
        _LOSSES: ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"),
        _ORDER: ("NonMaxSuppression", "NonZero", "Unique"),
    }.items()
    for op in ops
}
"""Operator -> reason."""


@coupling_rule(*REFUSED)
def refused(c: Coupling, node: Node) -> None:
    """Pin every operand."""
    c.refuse(node, f"{node.op}: {REFUSED[node.op]}")
