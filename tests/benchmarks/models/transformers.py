"""Transformers, written as PyTorch's exporter writes them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from tests.benchmarks.models.builder import NetworkBuilder


def bert_base(tokens: int = 128, layers: int = 12, width: int = 768, vocabulary: int = 30522) -> onnx.ModelProto:
    """BERT-base, uncased (Devlin et al. 2018), with its pooler; every token is attended to."""
    b = NetworkBuilder()
    heads, hidden, positions = width // 64, 4 * width, 512
    ids = b.input("input_ids", (1, tokens), TensorProto.INT64)
    x = b.node("Gather", b.normal(vocabulary, width, scale=0.5), ids)
    kinds = b.constant(np.zeros((1, tokens)), np.int64)
    x = b.node("Add", x, b.node("Gather", b.normal(2, width, scale=0.5), kinds))
    places = b.constant(np.arange(tokens)[None], np.int64)
    x = b.node("Add", x, b.node("Gather", b.normal(positions, width, scale=0.5), places))
    x = b.layer_norm(x, width, 1e-12)
    for _ in range(layers):
        attended = b.linear(_attention(b, x, tokens, width, heads), width, width)
        x = b.layer_norm(b.node("Add", attended, x), width, 1e-12)
        inner = b.linear(b.gelu(b.linear(x, width, hidden)), hidden, width)
        x = b.layer_norm(b.node("Add", inner, x), width, 1e-12)
    pooled = b.node("Tanh", b.gemm(b.node("Gather", x, b.constant(np.array(0), np.int64), axis=1), width, width))
    return b.model("bert_base", {x: (1, tokens, width), pooled: (1, width)})


def _attention(b: NetworkBuilder, x: str, tokens: int, width: int, heads: int) -> str:
    """softmax(Q K' / sqrt(d)) V from three layers, heads side by side in the result."""
    split = (1, tokens, heads, width // heads)
    q = b.transpose(b.reshape(b.linear(x, width, width), *split), 0, 2, 1, 3)
    k = b.transpose(b.reshape(b.linear(x, width, width), *split), 0, 2, 3, 1)
    v = b.transpose(b.reshape(b.linear(x, width, width), *split), 0, 2, 1, 3)
    scores = b.node("Div", b.node("MatMul", q, k), b.scalar((width // heads) ** 0.5))
    y = b.node("MatMul", b.node("Softmax", scores, axis=-1), v)
    return b.reshape(b.transpose(y, 0, 2, 1, 3), 1, tokens, width)


def vit_s(size: int = 224, patch: int = 16, layers: int = 12, width: int = 384) -> onnx.ModelProto:
    """ViT-S/16 (Dosovitskiy et al. 2020; sizes of Touvron et al. 2020), queries, keys and values in one layer."""
    b = NetworkBuilder()
    image = b.input("input", (1, 3, size, size))
    patches = (size // patch) ** 2
    tokens = patches + 1
    weights = b.normal(width, 3, patch, patch, scale=(3 * patch * patch) ** -0.5), b.around(0, width)
    x = b.node("Conv", image, *weights, strides=[patch] * 2, kernel_shape=[patch] * 2)
    x = b.transpose(b.reshape(x, 1, width, patches), 0, 2, 1)
    x = b.node("Concat", b.normal(1, 1, width, scale=0.5), x, axis=1)
    x = b.node("Add", x, b.normal(1, tokens, width, scale=0.5))
    for _ in range(layers):
        y = _fused_attention(b, b.layer_norm(x, width, 1e-6), tokens, width, width // 64)
        x = b.node("Add", x, b.linear(y, width, width))
        y = b.gelu(b.linear(b.layer_norm(x, width, 1e-6), width, 4 * width))
        x = b.node("Add", x, b.linear(y, 4 * width, width))
    x = b.layer_norm(x, width, 1e-6)
    first = b.node("Gather", x, b.constant(np.array(0), np.int64), axis=1)
    return b.model("vit_s", {b.gemm(first, width, 1000): (1, 1000)})


def _fused_attention(b: NetworkBuilder, x: str, tokens: int, width: int, heads: int) -> str:
    """The same attention from one layer that makes queries, keys and values."""
    together = b.reshape(b.linear(x, width, 3 * width), 1, tokens, 3, heads, width // heads)
    parts = b.nodes("Split", 3, b.transpose(together, 2, 0, 3, 1, 4), b.indices(1, 1, 1), axis=0)
    q, k, v = (b.node("Squeeze", part, b.indices(0)) for part in parts)
    q = b.node("Mul", q, b.scalar((width // heads) ** -0.5))
    y = b.node("MatMul", b.node("Softmax", b.node("MatMul", q, b.transpose(k, 0, 1, 3, 2)), axis=-1), v)
    return b.reshape(b.transpose(y, 0, 2, 1, 3), 1, tokens, width)
