"""The runtime's operators that pin all they touch, and why, which the report says."""

from __future__ import annotations

from compiler.ir import Node
from compiler.ir.contrib import CONTRIB_DOMAIN
from passes.coupling.solver import Coupling, coupling_rule

_LOOPS = "runs a network of its own until a text ends"
_CACHED = "its cache has a layout of its own"
_PACKED = "its weight is stored in a packed form"
_ROUTED = "routes tokens by the place of an expert, or stores experts in a packed form"
_STREAMS = "mixes several residual streams that lie on one axis"
_TEXT = "reads text, or hashes of it"
_POSITIONS = "the place of each position counts"
_RESAMPLES = "resamples space"
_STATES = "carries states through time"

REFUSED: dict[str, str] = {
    op: reason
    for reason, ops in {
        _LOOPS: ("BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch"),
        _CACHED: ("DecoderMaskedMultiHeadAttention", "SparseAttention"),
        _PACKED: ("GatherBlockQuantized", "GatherPacked", "MatMulBnb4", "MatMulFpQ4", "SparseToDenseMatMul"),
        _ROUTED: ("MoEGroupRouter", "QMoE"),
        _STREAMS: ("BranchwiseRMSNorm", "EngramGate", "HyperConnectionPostMix", "HyperConnectionPreMix"),
        _TEXT: (
            *("BifurcationDetector", "MurmurHash3", "NGramHashMapping", "NGramRepeatBlock", "Tokenizer"),
            *("VarlenNGramHashMapping", "WordConvEmbedding"),
        ),
        _POSITIONS: (
            *("CDist", "DynamicTimeWarping", "ExpandDims", "GatherND", "Inverse", "MRotaryEmbedding", "Pad", "Range"),
            *("SampleOp", "UnfoldTensor", "Unique"),
        ),
        _RESAMPLES: ("ConvTransposeWithDynamicPads", "CropAndResize", "GridSample", "MaxpoolWithMask"),
        _STATES: (
            *("AttnLSTM", "CausalConvWithState", "DynamicQuantizeLSTM", "GatedDeltaNet", "LinearAttentionGate"),
            "VarlenCausalConvWithState",
        ),
    }.items()
    for op in ops
}
"""Operator -> reason."""


@coupling_rule(*REFUSED, domain=CONTRIB_DOMAIN)
def refused(c: Coupling, node: Node) -> None:
    """Pin every operand."""
    c.refuse(node, f"{node.op}: {REFUSED[node.op]}")
