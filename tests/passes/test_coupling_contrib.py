"""ONNX Runtime's own operators: groups derived by hand, the certificate, pruning and the exact check of each."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from compiler.frontends import load
from compiler.ir import Graph, node_macs, verify
from compiler.ir.contrib import CONTRIB_DOMAIN
from compiler.ir.execute import execute, random_inputs
from compiler.ir.shapes import SHAPE_RULES
from passes import Context, Groups, Prune, certify, dependency_groups
from passes.coupling.rules.contrib.refused import REFUSED
from passes.coupling.solver import COUPLING_RULES
from passes.coupling.transform import restrict
from passes.importance.stored import row_values
from passes.structured.check import pruning_error
from tests.networks import network, network_proto
from tests.passes.test_coupling import described

_SPLIT = "s = Constant<value_ints=[0,0,4,-1]>() j = Constant<value_ints=[0,0,-1]>()"
_LEVELS = "s = Constant<value_float=0.05>() o = Constant<value=uint8 {128}>()"
_ZERO = "n = Constant<value=int8 {0}>()"
_LENGTHS = "len = Constant<value=int32[2] {5, 5}>() all = Constant<value=int32 {6}>()"

# name -> (text, expected groups, whether removal is the same as silence)
FUSED: dict[str, tuple[str, list[str], bool]] = {
    "feed-forward": (
        """(float[2,6,4] x, float[4,16] w0, float[16,24] w1, float[24] b1, float[24,16] w2, float[16] b2, float[16] s,
        float[16] b, float[16,5] h) => (float[2,6,5] y) { e = MatMul(x, w0) a = MatMul(e, w1)
        g = com.microsoft.BiasGelu(a, b1) d = MatMul(g, w2)
        n = com.microsoft.SkipLayerNormalization(d, e, s, b, b2) y = MatMul(n, h) }""",
        ["w0[1]: 16", "w1[1]: 24"],
        False,
    ),
    "sum that goes on": (
        """(float[2,6,4] x, float[4,16] w0, float[16,24] w1, float[24,16] w2, float[16] s, float[16,5] h)
        => (float[2,6,5] y) { e = MatMul(x, w0) a = MatMul(e, w1) d = MatMul(a, w2)
        n, m, v, r = com.microsoft.SkipSimplifiedLayerNormalization(d, e, s) z = Add(n, r) y = MatMul(z, h) }""",
        ["w0[1]: 16", "w1[1]: 24"],
        False,
    ),
    "activations": (
        """(float[2,6,4] x, float[4,8] w1, float[8] b, float[8,6] w2, float[6,7] w3, float[7,9] w4, float[9,5] h)
        => (float[2,6,5] y) {
        a = MatMul(x, w1) f = com.microsoft.FastGelu(a, b) c = MatMul(f, w2) d = com.microsoft.QuickGelu(c)
        e = MatMul(d, w3) g = com.microsoft.Gelu(e) i = MatMul(g, w4)
        j = com.microsoft.ScaledSiLU<alpha=1.5>(i) y = MatMul(j, h) }""",
        ["w1[1]: 8", "w2[1]: 6", "w3[1]: 7", "w4[1]: 9"],
        True,
    ),
    "simplified normalisation in the standard domain": (
        """(float[2,6,4] x, float[4,16] w0, float[16] s, float[16,5] h) => (float[2,6,5] y) {
        e = MatMul(x, w0) n = SimplifiedLayerNormalization<axis=-1, epsilon=0.00001>(e, s) y = MatMul(n, h) }""",
        ["w0[1]: 16"],
        False,
    ),
    "gates": (
        """(float[2,6,4] x, float[4,16] w0, float[16,16] w1, float[16,1] wg, float[16] s, float[16,5] h)
        => (float[2,6,5] y) { e = MatMul(x, w0) d = MatMul(e, w1) g = MatMul(e, wg)
        a = com.microsoft.GatedAdd(e, d, g) n = com.microsoft.GatedRMSNorm<activation="silu">(a, s, d)
        y = MatMul(n, h) }""",
        ["w0[1]: 16"],
        False,
    ),
    "convolutions with an addend": (
        """(float[1,3,6,6] x, float[8,3,1,1] w1, float[8] b1, float[8,8,3,3] w2, float[8] b2, float[6,8,1,1] w3,
        float[6,1,3,3] w4, float[5,6,1,1] h) => (float[1,5,6,6] y) {
        a = com.microsoft.FusedConv<activation="Relu">(x, w1, b1)
        c = com.microsoft.FusedConv<activation="Relu", pads=[1,1,1,1]>(a, w2, b2, a)
        d = com.microsoft.FusedConv<activation="LeakyRelu", activation_params=[0.1]>(c, w3)
        e = com.microsoft.FusedConv<activation="Relu", group=6, pads=[1,1,1,1]>(d, w4) y = Conv(e, h) }""",
        ["w1[0]: 8", "w3[0]: 6"],
        True,
    ),
    "general products": (
        """(float[4,6] x, float[6,8] w1, float[8] b1, float[7,8] w2, float[5,7] h) => (float[4,5] y) {
        a = com.microsoft.FusedGemm<activation="Relu">(x, w1, b1)
        c = com.microsoft.FusedGemm<activation="Tanh", transB=1>(a, w2) y = Gemm<transB=1>(c, h) }""",
        ["w1[1]: 8", "w2[0]: 7"],
        True,
    ),
    "product with transposed keys": (
        f"""(float[2,6,4] x, float[4,16] w0, float[16,24] wq, float[16,24] wk, float[16,32] wv, float[32,5] h)
        => (float[2,6,5] y) {{ {_SPLIT} e = MatMul(x, w0)
        q = MatMul(e, wq) q1 = Reshape(q, s) q2 = Transpose<perm=[0,2,1,3]>(q1)
        k = MatMul(e, wk) k1 = Reshape(k, s) k2 = Transpose<perm=[0,2,1,3]>(k1)
        v = MatMul(e, wv) v1 = Reshape(v, s) v2 = Transpose<perm=[0,2,1,3]>(v1)
        a = com.microsoft.FusedMatMul<transB=1, alpha=0.4>(q2, k2) p = Softmax(a) o = MatMul(p, v2)
        o1 = Transpose<perm=[0,2,1,3]>(o) o2 = Reshape(o1, j) y = MatMul(o2, h) }}""",
        ["w0[1]: 16", "wq[1]: 24 in 4 blocks", "wv[1]: 32 in 4 blocks"],
        False,
    ),
    "products with transposed constants and rows before the batch": (
        """(float[6,4,3] x, float[3,8] w0, float[4,9,8] w1, float[5,4,9] w2, float[5,7] h) => (float[4,6,7] y) {
        e = MatMul(x, w0) a = com.microsoft.FusedMatMul<transBatchA=1, transB=1>(e, w1)
        c = com.microsoft.FusedMatMul<transBatchB=1, transB=1>(a, w2) y = MatMul(c, h) }""",
        ["w0[1]: 8", "w1[1]: 36 in 4 blocks", "w2[0]: 5"],
        True,
    ),
    "embeddings": (
        """(int32[2,6] x, int32[2,6] x2, float[20,16] w1, float[9,16] w2, float[3,16] w3, float[16] s, float[16] b,
        float[16,5] h) => (float[2,6,5] y) {
        e, m, t = com.microsoft.EmbedLayerNormalization(x, x2, w1, w2, w3, s, b) a = Add(e, t) y = MatMul(a, h) }""",
        ["w1[1]: 16"],
        False,
    ),
    "experts": (
        """(float[2,5,3] x, float[3,8] w0, float[8,4] wr, float[4,12,8] w1, float[4,12] b1, float[4,8,12] w2,
        float[4,8] b2, float[8,5] h) => (float[2,5,5] y) { e = MatMul(x, w0) l = MatMul(e, wr)
        t = Constant<value_ints=[10,4]>() f = Reshape(l, t)
        z = com.microsoft.MoE<k=2, activation_type="gelu">(e, f, w1, b1, w2, b2) r = Add(e, z) y = MatMul(r, h) }""",
        ["w0[1]: 8", "wr[1]: 4", "w1[1]: 48 in 4 blocks"],
        False,
    ),
    "experts with interleaved gates": (
        """(float[10,3] x, float[3,8] w0, float[8,4] wr, float[4,24,8] w1, float[4,24] b1, float[4,8,12] w2,
        float[8,5] h) => (float[10,5] y) { e = MatMul(x, w0) l = MatMul(e, wr)
        z = com.microsoft.MoE<k=2, activation_type="swiglu", swiglu_fusion=1>(e, l, w1, b1, w2) y = MatMul(z, h) }""",
        ["w0[1]: 8", "wr[1]: 4", "w1[1]: 48 in 4 blocks"],
        False,
    ),
}

_EMBED = "e = MatMul(x, w0)"
_OUT = "y = MatMul(z, h)"

ATTENTION: dict[str, tuple[str, list[str], bool]] = {
    "projected": (
        f"""(float[2,6,4] x, float[4,16] w0, float[16,72] w, float[72] b, float[24,5] h) => (float[2,6,5] y) {{
        {_EMBED} z = com.microsoft.Attention<num_heads=4>(e, w, b) {_OUT} }}""",
        ["w0[1]: 16", "w[1]: 24 in 4 blocks", "w[1]#2: 24 in 4 blocks"],
        False,
    ),
    "projected, values of another width, causal, with a bias of each head": (
        f"""(float[2,6,4] x, float[4,16] w0, float[16,56] w, float[56] b, float[1,4,6,6] t, float[24,5] h)
        => (float[2,6,5] y) {{ {_EMBED}
        z = com.microsoft.Attention<num_heads=4, unidirectional=1, qkv_hidden_sizes=[16,16,24]>(e, w, b, , , t)
        {_OUT} }}""",
        ["w0[1]: 16", "w[1]: 16 in 4 blocks", "w[1]#2: 24 in 4 blocks"],
        False,
    ),
    "on separate operands": (
        f"""(float[2,6,4] x, float[4,16] w0, float[16,24] wq, float[16,24] wk, float[16,32] wv, float[80] b,
        float[32,5] h) => (float[2,6,5] y) {{ {_EMBED} q = MatMul(e, wq) k = MatMul(e, wk) v = MatMul(e, wv)
        z = com.microsoft.MultiHeadAttention<num_heads=4>(q, k, v, b) {_OUT} }}""",
        ["w0[1]: 16", "wq[1]: 24 in 4 blocks", "wv[1]: 32 in 4 blocks"],
        False,
    ),
    "across, masked, on heads of their own axis": (
        f"""(float[2,6,4] x, int32[2,3] x2, float[2,3,4] x3, float[4,16] w0, float[16,24] wq, float[4,24] wk,
        float[4,24] wv, float[24,5] h) => (float[2,6,5] y) {{ {_SPLIT} {_EMBED} q = MatMul(e, wq)
        k = MatMul(x3, wk) k1 = Reshape(k, s) k2 = Transpose<perm=[0,2,1,3]>(k1)
        v = MatMul(x3, wv) v1 = Reshape(v, s) v2 = Transpose<perm=[0,2,1,3]>(v1)
        z = com.microsoft.MultiHeadAttention<num_heads=4>(q, k2, v2, , x2) {_OUT} }}""",
        ["w0[1]: 16", "wq[1]: 48 in 8 blocks"],  # keys and values on such axes are equally deep
        False,
    ),
    "grouped queries": (
        f"""(float[2,6,4] x, float[4,16] w0, float[16,128] wq, float[16,64] wk, float[16,64] wv, float[128,5] h)
        => (float[2,6,5] y) {{ {_LENGTHS} {_EMBED} q = MatMul(e, wq) k = MatMul(e, wk) v = MatMul(e, wv)
        z = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, k, v, , , len, all) {_OUT} }}""",
        ["w0[1]: 16", "wq[1]: 16 in 4 blocks"],  # four runs of 8 dims in each key head and in each value head
        False,
    ),
    "grouped queries in one operand, turned": (
        f"""(float[2,6,4] x, float[4,16] w0, float[16,256] w, float[10,16] t1, float[10,16] t2, float[128,5] h)
        => (float[2,6,5] y) {{ {_LENGTHS} {_EMBED} q = MatMul(e, w)
        z = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2, do_rotary=1, local_window_size=3>(
            q, , , , , len, all, t1, t2) {_OUT} }}""",
        ["w0[1]: 16", "w[1]: 6 in 3 blocks"],  # two runs of 8 pairs in all heads; two of 16 dims of each value head
        False,
    ),
    "grouped queries, turned in neighbouring pairs": (
        f"""(float[2,6,4] x, float[4,16] w0, float[16,192] wq, float[16,96] wk, float[16,96] wv, float[10,24] t1,
        float[10,24] t2, float[192,5] h) => (float[2,6,5] y) {{ {_LENGTHS} {_EMBED} q = MatMul(e, wq)
        k = MatMul(e, wk) v = MatMul(e, wv) z = com.microsoft.GroupQueryAttention<
            num_heads=4, kv_num_heads=2, do_rotary=1, rotary_interleaved=1>(q, k, v, , , len, all, t1, t2) {_OUT} }}""",
        ["w0[1]: 16", "wq[1]: 9 in 3 blocks"],
        False,
    ),
    "turned": (
        f"""(float[2,6,4] x, float[4,16] w0, float[16,24] wq, float[16,24] wk, float[16,32] wv, float[10,3] t1,
        float[10,3] t2, float[32,5] h) => (float[2,6,5] y) {{ {_EMBED} q = MatMul(e, wq) k = MatMul(e, wk)
        v = MatMul(e, wv) i = Constant<value_ints=[0]>()
        q1 = com.microsoft.RotaryEmbedding(q, i, t1, t2) k1 = com.microsoft.RotaryEmbedding(k, i, t1, t2)
        z = com.microsoft.MultiHeadAttention<num_heads=4, unidirectional=1>(q1, k1, v) {_OUT} }}""",
        ["w0[1]: 16", "wq[1]: 3", "wv[1]: 32 in 4 blocks"],
        False,
    ),
    "turned in part, in neighbouring pairs": (
        f"""(float[2,6,4] x, float[4,16] w0, float[16,32] wq, float[16,32] wk, float[16,32] wv, float[10,2] t1,
        float[10,2] t2, float[32,5] h) => (float[2,6,5] y) {{ {_EMBED} q = MatMul(e, wq) k = MatMul(e, wk)
        v = MatMul(e, wv) i = Constant<value_ints=[0]>()
        q1 = com.microsoft.RotaryEmbedding<num_heads=4, rotary_embedding_dim=4, interleaved=1>(q, i, t1, t2)
        k1 = com.microsoft.RotaryEmbedding<num_heads=4, rotary_embedding_dim=4, interleaved=1>(k, i, t1, t2)
        z = com.microsoft.MultiHeadAttention<num_heads=4>(q1, k1, v) {_OUT} }}""",
        ["w0[1]: 16", "wq[1]: 2", "wq[1]#2: 16 in 4 blocks", "wv[1]: 32 in 4 blocks"],
        False,
    ),
}

HEADS = {
    "projected": ["w0[1]: 16", "w[1]: 4"],
    "projected, values of another width, causal, with a bias of each head": ["w0[1]: 16", "w[1]: 4"],
    "on separate operands": ["w0[1]: 16", "wq[1]: 4"],
    "grouped queries": ["w0[1]: 16", "wq[1]: 2"],  # two query heads go with their key and value head
    "grouped queries in one operand, turned": ["w0[1]: 16", "w[1]: 2"],
    "turned": ["w0[1]: 16", "wq[1]: 4"],
    "turned in part, in neighbouring pairs": ["w0[1]: 16", "wq[1]: 4"],
}

_CLASSES = "p = com.microsoft.QLinearGlobalAveragePool(z, s, o, s, o) f = Flatten(p)"

QUANTISED: dict[str, tuple[str, list[str], bool]] = {
    "convolutions of integers": (
        f"""(float[1,3,6,6] x, int8[8,3,1,1] w1, float[8] v1, int8[8,8,1,1] w2, float[8] v2, int8[5,8] h, float[5] v3)
        => (float[1,5] y) {{ {_LEVELS} {_ZERO} q = QuantizeLinear(x, s, o) a = QLinearConv(q, s, o, w1, v1, n, s, o)
        r = com.microsoft.QLinearLeakyRelu<alpha=0.1>(a, s, o, s, o) c = QLinearConv(r, s, o, w2, v2, n, s, o)
        g = com.microsoft.QLinearSigmoid(c, s, o, s, o) m = com.microsoft.QLinearMul(g, s, o, a, s, o, s, o)
        d = com.microsoft.QLinearAdd(m, s, o, r, s, o, s, o)
        z = com.microsoft.QLinearAveragePool<kernel_shape=[2,2], strides=[2,2]>(d, s, o, s, o) {_CLASSES}
        i = Constant<value=int8[5] {{0,0,0,0,0}}>()
        y = com.microsoft.QGemm<transB=1>(f, s, o, h, v3, i) }}""",
        ["w1[0]: 8"],
        True,
    ),
    "parts and choices of integers": (
        f"""(float[1,3,6,6] x, int8[8,3,1,1] w1, float[8] v1, int8[6,3,1,1] w2, float[6] v2, int8[14,5] h)
        => (uint8[1,5] y) {{ {_LEVELS} {_ZERO} q = QuantizeLinear(x, s, o) a = QLinearConv(q, s, o, w1, v1, n, s, o)
        c = QLinearConv(q, s, o, w2, v2, n, s, o) d = com.microsoft.QLinearConcat<axis=1>(s, o, a, s, o, c, s, o)
        t = Constant<value=uint8 {{130}}>() l = Less(d, t) z = com.microsoft.QLinearWhere(l, d, s, o, t, s, o, s, o)
        {_CLASSES} y = com.microsoft.QGemm(f, s, o, h, s, n, , s, o) }}""",
        ["w1[0]: 8", "w2[0]: 6"],
        True,
    ),
    "softmax of integers": (
        f"""(float[2,6] x, int8[6,8] w, int8[8,5] h) => (float[2,5] y) {{ {_LEVELS} {_ZERO}
        q = QuantizeLinear(x, s, o) a = QLinearMatMul(q, s, o, w, s, n, s, o)
        p = com.microsoft.QLinearSoftmax<axis=-1, opset=13>(a, s, o, s, o)
        y = com.microsoft.MatMulIntegerToFloat(p, h, s, s, o, n) }}""",
        ["w[1]: 8"],
        False,
    ),
    "products that quantise their data": (
        """(float[2,6] x, int8[6,8] w1, float[8] v1, float[8] b1, int8[8,7] w2, float[7] v2, int8[7] zero, float[7,5] h)
        => (float[2,5] y) { a = com.microsoft.DynamicQuantizeMatMul(x, w1, v1, , b1)
        c = com.microsoft.DynamicQuantizeMatMul(a, w2, v2, zero) y = MatMul(c, h) }""",
        ["w1[1]: 8", "w2[1]: 7"],
        False,
    ),
    "products of integers to numbers": (
        f"""(float[2,6] x, int8[6,8] w1, float[8] v1, int8[8] z1, float[8] b1, int8[8,7] w2, float[7] v2, float[7,5] h)
        => (float[2,5] y) {{ {_LEVELS} q = QuantizeLinear(x, s, o)
        a = com.microsoft.MatMulIntegerToFloat(q, w1, s, v1, o, z1, b1) r = QuantizeLinear(a, s, o)
        c = com.microsoft.MatMulIntegerToFloat(r, w2, s, v2, o) y = MatMul(c, h) }}""",
        ["w1[1]: 8", "w2[1]: 7"],
        True,
    ),
    "attention that projects integers": (
        f"""(float[2,6,4] x, float[4,16] w0, int8[16,72] w, float[72] v, int8[72] z, float[72] b, float[24,5] h)
        => (float[2,6,5] y) {{ {_LEVELS} e = MatMul(x, w0) q = QuantizeLinear(e, s, o)
        a = com.microsoft.QAttention<num_heads=4>(q, w, b, s, v, , o, z) y = MatMul(a, h) }}""",
        ["w0[1]: 16", "w[1]: 48 in 8 blocks"],  # the weight's parts stay equally wide
        False,
    ),
    "channels last": (
        f"""(float[1,6,6,3] x, int8[8,3,1,1] w1, float[8] v1, int8[8,1,3,3] w2, float[8] v2, int8[8,5] h)
        => (float[1,5] y) {{ {_LEVELS} {_ZERO} q = QuantizeLinear(x, s, o)
        a = com.microsoft.QLinearConv<channels_last=1>(q, s, o, w1, v1, n, s, o)
        c = com.microsoft.QLinearConv<channels_last=1, group=8>(a, s, o, w2, v2, n, s, o)
        d = com.microsoft.NhwcMaxPool<kernel_shape=[2,2]>(c)
        p = com.microsoft.QLinearGlobalAveragePool<channels_last=1>(d, s, o, s, o) t = Constant<value_ints=[1,-1]>()
        f = Reshape(p, t) y = com.microsoft.MatMulIntegerToFloat(f, h, s, s, o) }}""",
        ["w1[0]: 8"],
        True,
    ),
    "sixteen bits": (
        """(float[2,6] x, float[6,8] w1, float[8] v1, float[8,5] h) => (float[2,5] y) {
        o = Constant<value=uint16[8] {500,500,500,500,500,500,500,500}>() a = MatMul(x, w1)
        q = com.microsoft.QuantizeLinear<axis=1>(a, v1, o) d = com.microsoft.DequantizeLinear<axis=1>(q, v1, o)
        y = MatMul(d, h) }""",
        ["w1[1]: 8"],
        True,
    ),
    "weights in blocks of four bits": (
        """(float[2,6,4] x, float[4,64] w0, uint8[48,4,8] w1, float[48,4] v1, float[48] b1, uint8[40,3,8] w2,
        float[40,3] v2, float[40,5] h) => (float[2,6,5] y) { e = MatMul(x, w0)
        a = com.microsoft.MatMulNBits<K=64, N=48, block_size=16, bits=4>(e, w1, v1, , , b1)
        c = com.microsoft.MatMulNBits<K=48, N=40, block_size=16, bits=4>(a, w2, v2) y = MatMul(c, h) }""",
        ["w0[1]: 4", "w1[0]: 3", "w2[0]: 40"],  # what feeds such a product goes in whole blocks of 16
        True,
    ),
    "weights in blocks with zero points": (
        """(float[2,6,4] x, float[4,64] w0, uint8[48,4,8] w1, float[48,4] v1, uint8[48,2] z1, uint8[40,3,16] w2,
        float[40,3] v2, uint8[40,3] z2, float[40,5] h) => (float[2,6,5] y) { e = MatMul(x, w0)
        a = com.microsoft.MatMulNBits<K=64, N=48, block_size=16, bits=4>(e, w1, v1, z1)
        c = com.microsoft.MatMulNBits<K=48, N=40, block_size=16, bits=8>(a, w2, v2, z2) y = MatMul(c, h) }""",
        ["w0[1]: 2", "w1[0]: 3", "w2[0]: 40"],  # two zero points of four bits share a byte
        True,
    ),
}

PATTERNS = {
    f"{family}: {name}": pattern
    for family, patterns in {"fused": FUSED, "attention": ATTENTION, "quantised": QUANTISED}.items()
    for name, pattern in patterns.items()
}


def removed(graph: Graph, groups: Groups, share: int = 3) -> tuple[np.ndarray, Graph]:
    """What stays of the units when every group loses a third of its steps, and the graph without the rest."""
    rng = np.random.default_rng(0)
    keep = np.ones(groups.unit_count, bool)
    for group in groups:
        for block, step in zip(group.blocks, group.step, strict=True):
            keep[rng.permutation(block)[: max(1, group.size // share) * step]] = False
    pruned = restrict(groups, keep)
    verify(pruned)
    return keep, pruned


@pytest.mark.parametrize("name", PATTERNS)
def test_groups_of_pattern(name: str) -> None:
    text, expected, _ = PATTERNS[name]
    graph = network(text)
    groups = dependency_groups(graph)
    assert sorted(described(groups)) == sorted(expected)
    assert certify(graph, groups) <= 1e-5


@pytest.mark.parametrize("name", PATTERNS)
def test_pruned_pattern_keeps_its_interface(name: str) -> None:
    graph = network(PATTERNS[name][0])
    pruned = Prune(ratio=0.5, scope="local", metric="params")(graph, Context())
    verify(pruned)
    data = random_inputs(graph)
    before, after = execute(graph, data), execute(pruned, data)
    assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in before.items()}


@pytest.mark.parametrize("name", PATTERNS)
def test_removal_from_every_group_is_exact(name: str) -> None:
    text, _, exact = PATTERNS[name]
    graph = network(text)
    groups = dependency_groups(graph)
    keep, pruned = removed(graph, groups)
    error = pruning_error(groups, keep, pruned)
    assert (error is not None) == exact
    assert error is None or error <= 1e-5
    execute(pruned, random_inputs(pruned))


@pytest.mark.parametrize("name", PATTERNS)
def test_shapes_are_those_of_the_runtime(name: str) -> None:
    graph = network(PATTERNS[name][0])
    made = [v for n in graph.nodes if n.domain for v in n.outputs if v.shape is not None]
    assert all(v.static_shape is not None and v.dtype is not None for v in made)
    graph.outputs = list(dict.fromkeys([*graph.outputs, *(v for v in made if v not in graph.outputs)]))
    for name_of, array in execute(graph, random_inputs(graph)).items():
        value = graph.value(name_of)
        assert (value.dtype, value.shape) == (array.dtype, array.shape)


@pytest.mark.parametrize("name", HEADS)
def test_whole_heads(name: str) -> None:
    graph = network(ATTENTION[name][0])
    groups = dependency_groups(graph, heads=True)
    assert described(groups) == HEADS[name]
    assert groups[1].kind == ("kv-group" if "grouped" in name else "head")
    assert certify(graph, groups) <= 1e-5
    keep = np.ones(groups.unit_count, bool)
    keep[groups[1].blocks[0][0]] = False
    pruned = restrict(groups, keep)
    verify(pruned)
    error = pruning_error(groups, keep, pruned)
    assert error is not None and error <= 1e-5


def test_depth_of_heads_leaves_the_scale_alone() -> None:
    for name, scale in (("projected", 6**-0.5), ("on separate operands", 6**-0.5), ("grouped queries", 32**-0.5)):
        graph = network(ATTENTION[name][0])
        _, pruned = removed(graph, dependency_groups(graph))
        node = next(n for n in pruned.nodes if "Attention" in n.op)
        assert node.attribute("scale") == pytest.approx(scale)
        assert node.attribute("num_heads") == 4


def test_deep_networks_are_inferred_in_few_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = " ".join(f"m{i} = MatMul(g{i}, w) g{i + 1} = com.microsoft.Gelu(m{i})" for i in range(60))
    proto = network_proto(f"(float[N,6] x, float[6,6] w) => (float[N,6] g60) {{ g0 = Relu(x) {layers} }}")
    calls = []
    infer = onnx.shape_inference.infer_shapes
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lambda *a, **k: calls.append(1) or infer(*a, **k))
    graph = load(proto)
    assert all(v.shape == ("N", 6) for n in graph.nodes for v in n.outputs)
    assert len(calls) <= 4


def test_shapes_that_are_data_pass_the_runtime_s_operators() -> None:
    graph = network(
        """(float[N,6,4] x, float[4,16] w0, float[16] s, float[8,5] h) => (float[N,6,2,5] y) { e = MatMul(x, w0)
        n = SimplifiedLayerNormalization(e, s) t = Shape(n) i = Constant<value_ints=[0,1]>() g = Gather(t, i)
        r = Constant<value_ints=[2,8]>() c = Concat<axis=0>(g, r) q = com.microsoft.QuickGelu(n) z = Reshape(q, c)
        y = MatMul(z, h) }"""
    )
    assert graph.value("y").shape == ("N", 6, 2, 5)
    groups = dependency_groups(graph)
    assert described(groups) == ["w0[1]: 8"]
    assert certify(graph, groups) <= 1e-5


def test_every_operator_that_the_runtime_runs_has_a_rule_or_a_reason() -> None:
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    kernels = [k for k in state.get_all_opkernel_def() if k.provider == "CPUExecutionProvider"]
    known = {k.op_name for k in kernels if k.domain == CONTRIB_DOMAIN}
    assert len(known) >= 60
    assert known <= {op for domain, op in SHAPE_RULES if domain == CONTRIB_DOMAIN}
    assert known <= {op for domain, op in COUPLING_RULES if domain == CONTRIB_DOMAIN}
    assert all(REFUSED.values())


def test_refused_operators_say_why() -> None:
    graph = network(
        """(float[2,6] x, float[6,16] w, uint8[20,8] t, float[20] v, float[16,5] h) => (float[2,5] y) {
        a = MatMul(x, w) b = com.microsoft.MatMulBnb4<K=16, N=20, block_size=16, quant_type=1>(a, t, v)
        c = MatMul(a, h) s = ReduceSum<keepdims=0>(b) y = Add(c, s) }"""
    )
    reasons = {f"{f.value.name}: {f.reason}" for f in dependency_groups(graph).fixed}
    assert any(r.startswith("w: MatMulBnb4: its weight is stored in a packed form") for r in reasons)


@pytest.mark.parametrize("name", ["experts", "experts with interleaved gates"])
def test_removal_of_hidden_units_of_experts_is_exact(name: str) -> None:
    graph = network(FUSED[name][0])
    groups = dependency_groups(graph)
    keep = np.ones(groups.unit_count, bool)
    for group in groups:
        if group.kind != "expert":
            for block in group.blocks:
                keep[block[: len(block) // 3]] = False
    error = pruning_error(groups, keep, restrict(groups, keep))
    assert error is not None and error <= 1e-5


def test_as_many_experts_stay_as_a_token_goes_to() -> None:
    groups = dependency_groups(network(FUSED["experts"][0]))
    assert [(g.kind, g.minimum) for g in groups if g.kind == "expert"] == [("expert", 2)]
    text = FUSED["experts"][0].replace("k=2", "k=4")
    assert all(g.kind != "expert" for g in dependency_groups(network(text)))


@pytest.mark.parametrize(
    ("family", "name", "op", "macs"),
    [
        (FUSED, "convolutions with an addend", "FusedConv", 36 * 8 * 3),
        (FUSED, "general products", "FusedGemm", 4 * 6 * 8),
        (FUSED, "products with transposed constants and rows before the batch", "FusedMatMul", 4 * 6 * 8 * 9),
        (FUSED, "experts", "MoE", 10 * 2 * (12 * 8 + 8 * 12)),
        (ATTENTION, "projected", "Attention", 2 * 6 * (16 * 72 + 6 * (24 + 24))),
        (ATTENTION, "on separate operands", "MultiHeadAttention", 2 * 6 * 6 * (24 + 32)),
        (ATTENTION, "grouped queries", "GroupQueryAttention", 2 * 6 * 6 * 2 * 128),
        (QUANTISED, "weights in blocks of four bits", "MatMulNBits", 2 * 6 * 64 * 48),
        (QUANTISED, "convolutions of integers", "QGemm", 8 * 5),
    ],
)
def test_macs(family: dict[str, tuple[str, list[str], bool]], name: str, op: str, macs: int) -> None:
    graph = network(family[name][0])
    assert node_macs(next(n for n in graph.nodes if n.op == op)) == macs


def test_bytes_are_scored_by_the_numbers_that_they_hold() -> None:
    graph = network(QUANTISED["weights in blocks of four bits"][0])
    weight, scales = graph.value("w1"), graph.value("v1").numpy()
    data = weight.numpy()
    expected = np.stack([data & 15, data >> 4], axis=-1).reshape(48, 4, 16).astype(np.float32) - 8
    found = row_values(weight, graph.consumers()[weight], slice(3, 9))
    np.testing.assert_allclose(found, (expected * scales[..., None])[3:9], rtol=1e-6)
