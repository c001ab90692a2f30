"""Operators of the runtime whose results have extents that are not worked out here, so that they stay unknown."""

from __future__ import annotations

from compiler.ir.contrib.domain import Type, contrib_shape
from compiler.ir.graph import Node

UNSHAPED = (
    *("AttnLSTM", "BeamSearch", "BifurcationDetector", "BranchwiseRMSNorm", "CDist", "CausalConvWithState"),
    *(
        "ConvTransposeWithDynamicPads",
        "CropAndResize",
        "DynamicTimeWarping",
        "EngramGate",
        "ExpandDims",
        "GatedDeltaNet",
    ),
    *("GatherND", "GatherPacked", "GreedySearch", "GridSample", "HyperConnectionPostMix", "HyperConnectionPreMix"),
    *("LinearAttentionGate", "MatMulFpQ4", "MaxpoolWithMask", "MoEGroupRouter", "MurmurHash3", "NGramHashMapping"),
    *("NGramRepeatBlock", "Pad", "Range", "SampleOp", "Sampling", "SparseToDenseMatMul", "Tokenizer", "UnfoldTensor"),
    *("Unique", "VarlenCausalConvWithState", "VarlenNGramHashMapping", "WhisperBeamSearch", "WordConvEmbedding"),
)


@contrib_shape(*UNSHAPED)
def _unknown(node: Node) -> list[Type]:
    """The types that the file declares; no shapes."""
    return [(value.dtype, None) for value in node.outputs]
