"""Dependency groups of the operators that convolutional networks lack; see test_coupling.py for what the tests mean."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from compiler.ir import node_macs, verify
from compiler.ir.execute import execute, random_inputs
from passes import Context, Prune, certify, dependency_groups
from passes.coupling.readers import readers
from passes.coupling.rules.refused import REFUSED
from passes.coupling.solver import COUPLING_RULES
from passes.coupling.transform import restrict
from passes.importance.criterion import is_weight
from passes.importance.stored import row_values
from passes.structured.check import pruning_error
from tests.networks import network
from tests.passes.test_coupling import described

HEAD = "p = GlobalAveragePool(z) f = Flatten(p) y = Gemm<transB=1>(f, h)"

# name -> (text, expected groups as "name: units" or "name: units in blocks")
RECURRENT: dict[str, tuple[str, list[str]]] = {
    "lstm": (
        """(float[5,2,4] x, float[4,6] w0, float[1,32,6] w, float[1,32,8] r, float[1,64] b, float[8,5] h)
        => (float[5,2,5] y) { e = MatMul(x, w0) z, zh = LSTM<hidden_size=8>(e, w, r, b)
        ax = Constant<value_ints=[1]>() s = Squeeze(z, ax) y = MatMul(s, h) }""",
        ["w0[1]: 6", "w[1]: 8"],
    ),
    "lstm with peepholes and learned states": (
        """(float[5,2,4] x, float[1,32,4] w, float[1,32,8] r, float[1,64] b, float[1,2,8] s0, float[1,2,8] s1,
        float[1,24] q, float[8,5] h) => (float[1,2,5] y, float[1,2,5] yc) {
        z, zh, zc = LSTM<hidden_size=8>(x, w, r, b, , s0, s1, q) y = MatMul(zh, h) yc = MatMul(zc, h) }""",
        ["w[1]: 8"],
    ),
    "gru in both directions": (
        """(float[5,2,4] x, float[2,24,4] w, float[2,24,8] r, float[2,48] b, float[16,5] h) => (float[5,2,5] y) {
        z = GRU<hidden_size=8, direction="bidirectional">(x, w, r, b) t = Transpose<perm=[0,2,1,3]>(z)
        n = Constant<value_ints=[0,0,-1]>() f = Reshape(t, n) y = MatMul(f, h) }""",
        ["w[1]: 16 in 2 blocks"],
    ),
    "rnn whose directions are added": (
        """(float[5,2,4] x, float[2,8,4] w, float[2,8,8] r, float[8,5] h) => (float[5,2,5] y) {
        z = RNN<hidden_size=8, direction="bidirectional">(x, w, r) ax = Constant<value_ints=[1]>()
        s = ReduceSum<keepdims=0>(z, ax) y = MatMul(s, h) }""",
        ["w[1]: 8"],
    ),
    "two layers in both directions": (
        """(float[5,2,4] x, float[2,32,4] w1, float[2,32,8] r1, float[2,24,16] w2, float[2,24,8] r2, float[8,5] h)
        => (float[2,2,5] y) { z = LSTM<hidden_size=8, direction="bidirectional">(x, w1, r1)
        t = Transpose<perm=[0,2,1,3]>(z) n = Constant<value_ints=[0,0,-1]>() f = Reshape(t, n)
        g, gh = GRU<hidden_size=8, direction="bidirectional", linear_before_reset=1>(f, w2, r2)
        y = MatMul(gh, h) }""",
        ["w1[1]: 16 in 2 blocks", "w2[1]: 8"],  # the head is shared by the second layer's directions
    ),
    "encoder and decoder": (
        """(float[5,2,4] x1, float[3,2,4] x2, float[1,32,4] w1, float[1,32,8] r1, float[1,32,4] w2, float[1,32,8] r2,
        float[8,5] h) => (float[3,1,2,5] y) { a, ah, ac = LSTM<hidden_size=8>(x1, w1, r1)
        z = LSTM<hidden_size=8>(x2, w2, r2, , , ah, ac) y = MatMul(z, h) }""",
        ["w1[1]: 8"],
    ),
    "two layers that share zero states": (
        """(float[5,2,4] x, float[1,32,4] w1, float[1,32,8] r1, float[1,32,8] w2, float[1,32,8] r2, float[8,5] h)
        => (float[5,1,2,5] y) { n = Constant<value_ints=[1,2,8]>() s0 = ConstantOfShape(n)
        a = LSTM<hidden_size=8>(x, w1, r1, , , s0, s0) ax = Constant<value_ints=[1]>() b = Squeeze(a, ax)
        z = LSTM<hidden_size=8>(b, w2, r2, , , s0, s0) y = MatMul(z, h) }""",
        ["w1[1]: 8", "w2[1]: 8"],
    ),
    "zero states of a dynamic batch": (
        """(float[5,N,4] x, float[1,32,4] w, float[1,32,8] r, float[8,5] h) => (float[1,N,5] y) {
        m = Shape<start=1,end=2>(x) one = Constant<value_ints=[1]>() eight = Constant<value_ints=[8]>()
        s = Concat<axis=0>(one, m, eight) s0 = ConstantOfShape(s) z, zh = LSTM<hidden_size=8>(x, w, r, , , s0, s0)
        y = MatMul(zh, h) }""",
        ["w[1]: 8"],
    ),
}

_QKV = "q = MatMul(e, wq) k = MatMul(e, wk) v = MatMul(e, wv)"
_ATTENTION_END = "z = MatMul(o, wo) s = Add(z, e) y = MatMul(s, h) }"

ATTENTION: dict[str, tuple[str, list[str]]] = {
    "packed": (
        f"""(float[2,6,16] x, float[16,24] w0, float[24,32] wq, float[24,32] wk, float[24,32] wv, float[32,24] wo,
        float[24,5] h) => (float[2,6,5] y) {{ e = MatMul(x, w0) {_QKV}
        o = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v) {_ATTENTION_END}""",
        ["w0[1]: 24", "wq[1]: 32 in 4 blocks", "wv[1]: 32 in 4 blocks"],
    ),
    "grouped queries": (
        f"""(float[2,6,16] x, float[16,24] w0, float[24,32] wq, float[24,16] wk, float[24,16] wv, float[32,24] wo,
        float[24,5] h) => (float[2,6,5] y) {{ e = MatMul(x, w0) {_QKV}
        o = Attention<q_num_heads=4, kv_num_heads=2, is_causal=1>(q, k, v) {_ATTENTION_END}""",
        ["w0[1]: 24", "wq[1]: 16 in 2 blocks", "wv[1]: 16 in 2 blocks"],
    ),
    "one key and value head": (
        f"""(float[2,6,16] x, float[16,24] w0, float[24,32] wq, float[24,8] wk, float[24,8] wv, float[32,24] wo,
        float[24,5] h) => (float[2,6,5] y) {{ e = MatMul(x, w0) {_QKV}
        o = Attention<q_num_heads=4, kv_num_heads=1>(q, k, v) {_ATTENTION_END}""",
        ["w0[1]: 24", "wq[1]: 8", "wv[1]: 8"],
    ),
    "separate heads with a bias table": (
        f"""(float[2,6,16] x, float[16,24] w0, float[24,32] wq, float[24,32] wk, float[24,48] wv, float[48,24] wo,
        float[1,4,6,6] table, float[24,5] h) => (float[2,6,5] y) {{ e = MatMul(x, w0) {_QKV}
        n = Constant<value_ints=[0,0,4,-1]>() q1 = Reshape(q, n) k1 = Reshape(k, n) v1 = Reshape(v, n)
        q2 = Transpose<perm=[0,2,1,3]>(q1) k2 = Transpose<perm=[0,2,1,3]>(k1) v2 = Transpose<perm=[0,2,1,3]>(v1)
        o2 = Attention(q2, k2, v2, table) o1 = Transpose<perm=[0,2,1,3]>(o2) n2 = Constant<value_ints=[0,0,-1]>()
        o = Reshape(o1, n2) {_ATTENTION_END}""",
        ["w0[1]: 24", "wq[1]: 32 in 4 blocks", "wv[1]: 48 in 4 blocks"],
    ),
    "a cache of keys and values": (
        f"""(float[2,6,16] x, float[2,4,3,8] x1, float[2,4,3,8] x2, float[16,24] w0, float[24,32] wq, float[24,32] wk,
        float[24,32] wv, float[32,24] wo, float[24,5] h)
        => (float[2,6,5] y, float[2,4,9,8] ck, float[2,4,9,8] cv) {{ e = MatMul(x, w0) {_QKV}
        o, ck, cv = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v, , x1, x2) {_ATTENTION_END}""",
        ["w0[1]: 24"],  # the cache is an input and an output of the model
    ),
    "rotary, halves": (
        f"""(float[2,6,16] x, float[16,24] w0, float[24,32] wq, float[24,32] wk, float[24,32] wv, float[32,24] wo,
        float[2,6,4] c, float[2,6,4] d, float[24,5] h) => (float[2,6,5] y) {{ e = MatMul(x, w0) {_QKV}
        qr = RotaryEmbedding<num_heads=4>(q, c, d) kr = RotaryEmbedding<num_heads=4>(k, c, d)
        o = Attention<q_num_heads=4, kv_num_heads=4>(qr, kr, v) {_ATTENTION_END}""",
        ["w0[1]: 24", "wq[1]: 4", "wv[1]: 32 in 4 blocks"],  # all heads turn by the same angles
    ),
    "rotary, interleaved and partial": (
        f"""(float[2,6,16] x, float[16,24] w0, float[24,48] wq, float[24,48] wk, float[24,32] wv, float[32,24] wo,
        float[2,6,3] c, float[2,6,3] d, float[24,5] h) => (float[2,6,5] y) {{ e = MatMul(x, w0) {_QKV}
        qr = RotaryEmbedding<num_heads=4, rotary_embedding_dim=6, interleaved=1>(q, c, d)
        kr = RotaryEmbedding<num_heads=4, rotary_embedding_dim=6, interleaved=1>(k, c, d)
        o = Attention<q_num_heads=4, kv_num_heads=4>(qr, kr, v) {_ATTENTION_END}""",
        ["w0[1]: 24", "wq[1]: 3", "wq[1]#2: 24 in 4 blocks", "wv[1]: 32 in 4 blocks"],
    ),
    "rotary on separate heads": (
        f"""(float[2,6,16] x, float[16,24] w0, float[24,32] wq, float[24,32] wk, float[24,32] wv, float[32,24] wo,
        float[2,6,4] c, float[2,6,4] d, float[24,5] h) => (float[2,6,5] y) {{ e = MatMul(x, w0) {_QKV}
        n = Constant<value_ints=[0,0,4,-1]>() q1 = Reshape(q, n) k1 = Reshape(k, n) v1 = Reshape(v, n)
        q2 = Transpose<perm=[0,2,1,3]>(q1) k2 = Transpose<perm=[0,2,1,3]>(k1) v2 = Transpose<perm=[0,2,1,3]>(v1)
        q3 = RotaryEmbedding(q2, c, d) k3 = RotaryEmbedding(k2, c, d)
        o2 = Attention(q3, k3, v2) o1 = Transpose<perm=[0,2,1,3]>(o2) n2 = Constant<value_ints=[0,0,-1]>()
        o = Reshape(o1, n2) {_ATTENTION_END}""",
        ["w0[1]: 24", "wq[1]: 4", "wv[1]: 32 in 4 blocks"],
    ),
    "scores without caches": (
        f"""(float[2,6,16] x, float[16,24] w0, float[24,32] wq, float[24,32] wk, float[24,32] wv, float[32,24] wo,
        float[24,5] h) => (float[2,6,5] y, float[2,4,6,6] t) {{ e = MatMul(x, w0) {_QKV}
        o, , , t = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v) {_ATTENTION_END}""",
        ["w0[1]: 24", "wq[1]: 32 in 4 blocks", "wv[1]: 32 in 4 blocks"],
    ),
    "cache of values without that of keys": (
        f"""(float[2,6,16] x, float[16,24] w0, float[24,32] wq, float[24,32] wk, float[24,32] wv, float[32,24] wo,
        float[24,5] h) => (float[2,6,5] y, float[2,4,6,8] t) {{ e = MatMul(x, w0) {_QKV}
        o, , t = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v) {_ATTENTION_END}""",
        ["w0[1]: 24", "wq[1]: 32 in 4 blocks"],
    ),
    "cache of constants that nobody reads again": (
        f"""(float[2,6,16] x, float[16,24] w0, float[24,32] wq, float[24,32] wk, float[24,32] wv, float[32,24] wo,
        float[24,5] h, float[2,4,3,8] ck, float[2,4,3,8] cv) => (float[2,6,5] y) {{ e = MatMul(x, w0) {_QKV}
        o, tk, tv = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v, , ck, cv) {_ATTENTION_END}""",
        ["w0[1]: 24", "wq[1]: 32 in 4 blocks", "wv[1]: 32 in 4 blocks"],
    ),
}

SPATIAL: dict[str, tuple[str, list[str]]] = {
    "group normalisation": (
        f"""(float[1,3,4,4] x, float[8,3,1,1] w1, float[8] s, float[8] b, float[5,8] h) => (float[1,5] y) {{
        a = Conv(x, w1) n = GroupNormalization<num_groups=2>(a, s, b) z = Relu(n) {HEAD} }}""",
        ["w1[0]: 8 in 2 blocks"],
    ),
    "group normalisation of single channels": (
        f"""(float[1,3,4,4] x, float[8,3,1,1] w1, float[8] s, float[8] b, float[5,8] h) => (float[1,5] y) {{
        a = Conv(x, w1) n = GroupNormalization<num_groups=8>(a, s, b) z = Relu(n) {HEAD} }}""",
        ["w1[0]: 8"],
    ),
    "mean and variance normalisation": (
        f"""(float[2,3,4,4] x, float[8,3,1,1] w1, float[5,8] h) => (float[2,5] y) {{
        a = Conv(x, w1) n = MeanVarianceNormalization(a) z = Relu(n) {HEAD} }}""",
        ["w1[0]: 8"],
    ),
    "depth to space, strides": (
        """(float[1,3,4,4] x, float[16,3,1,1] w1, float[5,4,1,1] w2) => (float[1,5,8,8] y) {
        a = Conv(x, w1) d = DepthToSpace<blocksize=2>(a) y = Conv(d, w2) }""",
        ["w1[0]: 4"],
    ),
    "depth to space, runs": (
        """(float[1,3,4,4] x, float[16,3,1,1] w1, float[5,4,1,1] w2) => (float[1,5,8,8] y) {
        a = Conv(x, w1) d = DepthToSpace<blocksize=2, mode="CRD">(a) y = Conv(d, w2) }""",
        ["w1[0]: 4"],
    ),
    "space to depth": (
        """(float[1,3,4,4] x, float[8,3,1,1] w1, float[5,32,1,1] w2) => (float[1,5,2,2] y) {
        a = Conv(x, w1) d = SpaceToDepth<blocksize=2>(a) y = Conv(d, w2) }""",
        ["w1[0]: 8"],
    ),
    "columns to image": (
        """(float[1,3,4] x, float[32,3,1] w1, float[5,8,1,1] w2) => (float[1,5,4,4] y) { a = Conv(x, w1)
        i = Constant<value_ints=[4,4]>() b = Constant<value_ints=[2,2]>()
        m = Col2Im<strides=[2,2]>(a, i, b) y = Conv(m, w2) }""",
        ["w1[0]: 8"],
    ),
    "grid sample": (
        """(float[1,3,4,4] x, float[1,6,6,2] x2, float[8,3,1,1] w1, float[5,8,1,1] w2) => (float[1,5,6,6] y) {
        a = Conv(x, w1) d = GridSample(a, x2) y = Conv(d, w2) }""",
        ["w1[0]: 8"],
    ),
    "affine grid": (
        """(float[1,3,4,4] x, float[8,3,1,1] w1, float[5,8,1,1] w2, float[6,3] g) => (float[1,5,4,4] y) {
        a = Conv(x, w1) p = GlobalAveragePool(x) n = Flatten(p) t = Gemm<transB=1>(n, g)
        s = Constant<value_ints=[1,2,3]>() m = Reshape(t, s) e = Constant<value_ints=[1,8,4,4]>()
        k = AffineGrid(m, e) d = GridSample(a, k) y = Conv(d, w2) }""",
        ["w1[0]: 8"],
    ),
    "region pooling": (
        f"""(float[1,3,4,4] x, float[8,3,1,1] w1, float[5,8] h) => (float[2,5] y) {{ a = Conv(x, w1)
        x2 = Constant<value=float[2,4] {{0,0,3,3,1,0,4,2}}>()
        i = Constant<value_ints=[0,0]>() z = RoiAlign<output_height=2, output_width=2>(a, x2, i) {HEAD} }}""",
        ["w1[0]: 8"],
    ),
    "deformable convolution": (
        """(float[1,3,5,5] x, float[8,3,1,1] w1, float[18,3,3,3] wd, float[6,8,3,3] w2, float[6] b, float[5,6,1,1] w3)
        => (float[1,5,3,3] y) { a = Conv(x, w1) o = Conv(x, wd) d = DeformConv(a, w2, o, b) y = Conv(d, w3) }""",
        ["w1[0]: 8", "w2[0]: 6"],
    ),
    "deformable convolution in groups": (
        """(float[1,3,5,5] x, float[8,3,1,1] w1, float[4,3,1,1] wd, float[6,8,1,1] w2, float[5,6,1,1] w3)
        => (float[1,5,5,5] y) { a = Conv(x, w1) o = Conv(x, wd) d = DeformConv<offset_group=2>(a, w2, o)
        y = Conv(d, w3) }""",
        ["w1[0]: 8 in 2 blocks", "w2[0]: 6"],
    ),
    "unpooling": (
        """(float[1,3,4,4] x, float[8,3,1,1] w1, float[8,8,1,1] w2, float[5,8,1,1] w3) => (float[1,5,4,4] y) {
        a = Conv(x, w1) p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a) c = Conv(p, w2)
        u = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(c, i) y = Conv(u, w3) }""",
        ["w1[0]: 8"],
    ),
    "tile": (
        f"""(float[1,3,4,4] x, float[8,3,1,1] w1, float[1,3,1,1] w2, float[8,1,1] g8, float[5,24] h)
        => (float[1,5] y) {{ a = Conv(x, w1) n = Constant<value_ints=[1,2,1,1]>() t = Tile(a, n) g = Conv(x, w2)
        m = Constant<value_ints=[1,8,1,1]>() u = Tile(g, m) k = Mul(u, g8) z = Concat<axis=1>(t, k) {HEAD} }}""",
        ["w1[0]: 8", "g8[0]: 8"],
    ),
    "crop": (
        f"""(float[1,3,8,8] x, float[8,3,1,1] w1, float[5,8] h) => (float[1,5] y) {{
        a = Conv(x, w1) n = Constant<value_ints=[8,4,10]>() z = CenterCropPad<axes=[1,2,3]>(a, n) {HEAD} }}""",
        ["w1[0]: 8"],
    ),
    "compress by a constant": (
        """(float[1,3,8,8] x, float[8,3,1,1] w1, float[5,6,1,1] w2) => (float[1,5,8,8] y) { a = Conv(x, w1)
        n = Constant<value=bool[8] {1,1,0,1,1,0,1,1}>() z = Compress<axis=1>(a, n) y = Conv(z, w2) }""",
        ["w1[0]: 6", "w1[0]#2: 2"],
    ),
    "a slice of nothing": (
        f"""(float[1,3,8,8] x, float[8,3,1,1] w1, float[5,8] h) => (float[1,5] y) {{ a = Conv(x, w1)
        n = Constant<value_ints=[4]>() m = Constant<value_ints=[1]>() s = Slice(a, n, n, m)
        z = Concat<axis=1>(s, a) {HEAD} }}""",
        ["w1[0]: 8"],
    ),
    "reversed in time": (
        """(float[5,2,4] x, float[4,8] w1, float[8,5] h) => (float[5,2,5] y) { a = MatMul(x, w1)
        n = Constant<value_ints=[5,3]>() z = ReverseSequence<time_axis=0, batch_axis=1>(a, n) y = MatMul(z, h) }""",
        ["w1[1]: 8"],
    ),
}

LINEAR: dict[str, tuple[str, list[str]]] = {
    "einsum as a product": (
        """(float[2,6,4] x, float[4,8] w1, float[8,5] h) => (float[2,6,5] y) {
        a = Einsum<equation="bnc,cd->bnd">(x, w1) y = Einsum<equation="...d,de">(a, h) }""",
        ["w1[1]: 8"],
    ),
    "einsum with heads": (
        """(float[2,6,4] x, float[4,3,8] wq, float[4,3,8] wk, float[4,3,8] wv, float[3,8,5] wo) => (float[2,6,5] y) {
        q = Einsum<equation="bnc,chd->bhnd">(x, wq) k = Einsum<equation="bnc,chd->bhnd">(x, wk)
        v = Einsum<equation="bnc,chd->bhnd">(x, wv) a = Einsum<equation="bhid,bhjd->bhij">(q, k)
        p = Softmax(a) o = Einsum<equation="bhij,bhjd->bihd">(p, v) y = Einsum<equation="bihd,hde->bie">(o, wo) }""",
        ["wq[1]: 3", "wq[2]: 8", "wv[2]: 8"],  # heads, and dims of all heads alike
    ),
    "einsum that sums and broadcasts": (
        """(float[2,6,4] x, float[4,8] w1, float[8] g, float[8,5] h) => (float[2,5] y) { a = MatMul(x, w1)
        b = Einsum<equation="bnd,d->bd">(a, g) y = MatMul(b, h) }""",
        ["w1[1]: 8"],
    ),
    "einsum of three": (
        """(float[2,4] x, float[4,8] w1, float[8] g, float[8,5] h) => (float[2,5] y) { a = MatMul(x, w1)
        y = Einsum<equation="bd,d,de->be">(a, g, h) }""",
        ["w1[1]: 8"],
    ),
    "einsum that takes a diagonal": (
        """(float[4,4] x, float[4,4] w1, float[4,8] w2, float[8,5] h) => (float[4,5] y, float[4] d) {
        a = MatMul(x, w1) d = Einsum<equation="ii->i">(a) b = MatMul(a, w2) y = MatMul(b, h) }""",
        ["w2[1]: 8"],
    ),
}

SELECTION: dict[str, tuple[str, list[str]]] = {
    "largest along the sequence": (
        """(float[2,6,4] x, float[4,8] w1, float[8,5] h) => (float[2,3,5] y) { a = MatMul(x, w1)
        n = Constant<value_ints=[3]>() b, i = TopK<axis=1>(a, n) y = MatMul(b, h) }""",
        ["w1[1]: 8"],
    ),
    "router": (
        """(float[6,4] x, float[4,8] w1, float[8,10] w2, float[10,5] h) => (float[6,5] y, float[6,2] v) {
        a = MatMul(x, w1) b = MatMul(a, w2) n = Constant<value_ints=[2]>() v, i = TopK(b, n) r = Relu(b)
        y = MatMul(r, h) }""",
        ["w1[1]: 8", "w2[1]: 10"],
    ),
    "sums so far": (
        """(float[2,6,4] x, float[4,8] w1, float[8,5] h) => (float[2,6,5] y) { a = MatMul(x, w1)
        n = Constant<value_int=1>() b = CumSum(a, n) y = MatMul(b, h) }""",
        ["w1[1]: 8"],
    ),
    "arguments": (
        """(float[2,6,4] x, float[4,8] w1, float[4,8] w2, float[8,5] h) => (float[2,6,5] y) { a = MatMul(x, w1)
        b = MatMul(x, w2) i = ArgMax<axis=1>(a) f = CastLike(i, b) c = Add(f, b) y = MatMul(c, h) }""",
        ["w1[1]: 8"],
    ),
    "gather of elements": (
        """(float[2,6,4] x, float[4,8] w1, float[4,8] w2, float[8,5] h) => (float[2,6,5] y) { a = MatMul(x, w1)
        b = MatMul(x, w2) i = ArgMax<axis=1>(b) c = GatherElements<axis=1>(a, i) d = Add(a, c) y = MatMul(d, h) }""",
        ["w1[1]: 8"],
    ),
    "scatter of elements": (
        """(float[2,6,4] x, float[4,8] w1, float[4,8] w2, float[4,8] w3, float[8,5] h) => (float[2,6,5] y) {
        a = MatMul(x, w1) b = MatMul(x, w2) i = ArgMax<axis=1>(b) ax = Constant<value_ints=[1]>()
        u = MatMul(x, w3) m = ReduceMax(u, ax) c = ScatterElements<axis=1>(a, i, m) y = MatMul(c, h) }""",
        ["w1[1]: 8"],
    ),
    "rows by their places": (
        """(float[6,4] x, float[4,8] w1, float[4,8] w2, float[8,5] h) => (float[6,5] y) { a = MatMul(x, w1)
        b = MatMul(x, w2) i = Constant<value=int64[2,1] {3,1}>() g = GatherND(b, i) c = ScatterND(a, i, g)
        y = MatMul(c, h) }""",
        ["w1[1]: 8"],
    ),
    "a cache that is written": (
        """(float[2,6,4] x, float[2,9,4] x1, float[4,8] w1, float[8,5] h) => (float[2,9,5] y) { a = MatMul(x, w1)
        p = MatMul(x1, w1) b = TensorScatter<axis=1>(p, a) y = MatMul(b, h) }""",
        ["w1[1]: 8"],
    ),
    "triangle": (
        """(float[2,6,4] x, float[4,8] w1, float[8,5] w2, float[5,7] w3, float[7,5] h) => (float[2,6,5] y) {
        a = MatMul(x, w1) t = Trilu(a) b = MatMul(t, w2) c = MatMul(b, w3) y = MatMul(c, h) }""",
        ["w2[1]: 5", "w3[1]: 7"],
    ),
    "one hot": (
        """(float[2,6,4] x, float[4,8] w1, float[8,5] h) => (float[2,3,5] y) { a = MatMul(x, w1)
        i = ArgMax<axis=1,keepdims=0>(a) n = Constant<value_int=3>() v = Constant<value_floats=[0.0,1.0]>()
        o = OneHot<axis=1>(i, n, v) y = MatMul(o, h) }""",
        ["w1[1]: 8"],
    ),
    "places of what is not zero": (
        """(float[6,4] x, float[4,8] w1, float[8,7] w2, float[7,5] h) => (float[6,5] y, int64[2,N] i) {
        a = MatMul(x, w1) i = NonZero(a) b = MatMul(a, w2) y = MatMul(b, h) }""",
        ["w2[1]: 7"],
    ),
}

_LEVELS = "s = Constant<value_float=0.05>() o = Constant<value=uint8 {128}>()"

QUANTISED: dict[str, tuple[str, list[str]]] = {
    "weights stored as integers": (
        """(float[1,3,4,4] x, int8[8,3,1,1] w1, float[8] v1, int8[5,8] h, float[5] v2) => (float[1,5] y) {
        d = DequantizeLinear<axis=0>(w1, v1) z = Conv(x, d) p = GlobalAveragePool(z) f = Flatten(p)
        e = DequantizeLinear<axis=0>(h, v2) y = Gemm<transB=1>(f, e) }""",
        ["w1[0]: 8"],
    ),
    "quantise and dequantise": (
        f"""(float[1,3,4,4] x, float[8,3,1,1] w1, int8[6,8,1,1] w2, float[6] v2, int8[6] zero, float[5,6] h)
        => (float[1,5] y) {{ {_LEVELS} a = Conv(x, w1) r = QuantizeLinear(a, s, o) t = DequantizeLinear(r, s, o)
        d = DequantizeLinear<axis=0>(w2, v2, zero) z = Conv(t, d) {HEAD} }}""",
        ["w1[0]: 8", "w2[0]: 6"],
    ),
    "one scale a channel": (
        f"""(float[1,3,4,4] x, float[8,3,1,1] w1, float[8] v, float[5,8] h) => (float[1,5] y) {{
        a = Conv(x, w1) r = QuantizeLinear<output_dtype=3>(a, v) z = DequantizeLinear(r, v) {HEAD} }}""",
        ["w1[0]: 8"],
    ),
    "blocks of a weight": (
        """(float[2,6] x, float[6,8] w1, int8[8,7] w2, float[4,7] v, float[7,5] h) => (float[2,5] y) {
        a = MatMul(x, w1) d = DequantizeLinear<axis=0, block_size=2>(w2, v) b = MatMul(a, d) y = MatMul(b, h) }""",
        ["w2[1]: 7"],
    ),
    "convolution of integers that scales": (
        f"""(float[1,3,4,4] x, int8[8,3,1,1] w1, float[8] v1, int8[8] zero, int32[8] b, float[5,8] h)
        => (float[1,5] y) {{ {_LEVELS} q = QuantizeLinear(x, s, o) z0 = QLinearConv(q, s, o, w1, v1, zero, s, o, b)
        z = DequantizeLinear(z0, s, o) {HEAD} }}""",
        ["w1[0]: 8"],
    ),
    "convolution of integers": (
        f"""(float[1,3,4,4] x, float[8,3,1,1] w1, uint8[6,8,1,1] w2, float[5,6] h) => (float[1,5] y) {{
        a = Conv(x, w1) q, s, o = DynamicQuantizeLinear(a) c = ConvInteger(q, w2, o) f0 = Cast<to=1>(c)
        z = Mul(f0, s) {HEAD} }}""",
        ["w1[0]: 8", "w2[0]: 6"],
    ),
    "product of integers": (
        """(float[2,6] x, float[6,8] w1, int8[8,7] w2, int8[7] zero, float[7,5] h) => (float[2,5] y) {
        a = MatMul(x, w1) q, s, o = DynamicQuantizeLinear(a) c = MatMulInteger(q, w2, o, zero) f = Cast<to=1>(c)
        z = Mul(f, s) y = MatMul(z, h) }""",
        ["w1[1]: 8", "w2[1]: 7"],
    ),
    "product of integers that scales": (
        f"""(float[2,6] x, float[6,8] w1, int8[8,7] w2, float[7] v2, int8[7] zero, float[7,5] h) => (float[2,5] y) {{
        {_LEVELS} a = MatMul(x, w1) q = QuantizeLinear(a, s, o) c = QLinearMatMul(q, s, o, w2, v2, zero, s, o)
        z = DequantizeLinear(c, s, o) y = MatMul(z, h) }}""",
        ["w1[1]: 8", "w2[1]: 7"],
    ),
}

WITHOUT_RANK: dict[str, tuple[str, list[str]]] = {
    "a branch decides the rank": (
        """(float[2,6] x, bool c, float[6,8] w, float[8,5] h) => (float y) { a = MatMul(x, w) b = MatMul(a, h)
        z = If (c) <then_branch = t () => (float[2,5] u) { u = Identity(b) }, else_branch = e () => (float[2] v) {
        n = Constant<value_ints=[1]>() v = ReduceSum<keepdims=0>(b, n) }>
        i = Constant<value_int=0>() y = Gather(z, i) }""",
        ["w[1]: 8"],
    ),
    "an extent of unknown rank": (
        """(float[2,6] x, float[6,8] w, float[8,5] h) => (float[2,5] y, int64 n) { a = MatMul(x, w) y = MatMul(a, h)
        e = SequenceEmpty() s = SequenceInsert(e, y) i = Constant<value_int=0>() z = SequenceAt(s, i)
        d = Shape(z) n = Gather(d, i) }""",
        ["w[1]: 8"],
    ),
}

PATTERNS = {
    f"{family}: {name}": pattern
    for family, patterns in {
        "recurrent": RECURRENT,
        "attention": ATTENTION,
        "spatial": SPATIAL,
        "linear": LINEAR,
        "selection": SELECTION,
        "quantised": QUANTISED,
        "without rank": WITHOUT_RANK,
    }.items()
    for name, pattern in patterns.items()
}

_OPSET = {"attention": 23, "selection: a cache that is written": 24}
"""ONNX opset, where it is not 21."""


def opset(name: str) -> int:
    return _OPSET.get(name, _OPSET.get(name.partition(":")[0], 21))


@pytest.mark.parametrize("name", PATTERNS)
def test_groups_of_pattern(name: str) -> None:
    text, expected = PATTERNS[name]
    graph = network(text, opset(name))
    groups = dependency_groups(graph)
    assert sorted(described(groups)) == sorted(expected)
    assert certify(graph, groups) <= 1e-5


MIXING = {
    *("attention: packed", "attention: grouped queries", "attention: one key and value head"),
    *("attention: separate heads with a bias table", "attention: rotary, halves"),
    *("attention: rotary, interleaved and partial", "attention: rotary on separate heads"),
    *("attention: scores without caches", "attention: cache of values without that of keys"),
    "attention: cache of constants that nobody reads again",
    *("linear: einsum with heads", "spatial: group normalisation"),
    *("quantised: quantise and dequantise", "quantised: convolution of integers", "quantised: product of integers"),
    *("quantised: product of integers that scales", "selection: router"),
}
"""Where a sum runs across a pruned axis, or an integer of 0 is no zero, so that removal is not the same as silence."""


@pytest.mark.parametrize("name", PATTERNS)
def test_pruned_pattern_keeps_its_interface(name: str) -> None:
    graph = network(PATTERNS[name][0], opset(name))
    pruned = Prune(ratio=0.4, scope="local", metric="params")(graph, Context())
    verify(pruned)
    data = random_inputs(graph)
    before, after = execute(graph, data), execute(pruned, data)
    assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in before.items()}


@pytest.mark.parametrize("name", PATTERNS)
def test_removal_from_every_group_is_exact(name: str) -> None:
    graph = network(PATTERNS[name][0], opset(name))
    groups = dependency_groups(graph)
    rng = np.random.default_rng(0)
    keep = np.ones(groups.unit_count, bool)
    for group in groups:
        for block, step in zip(group.blocks, group.step, strict=True):
            keep[rng.permutation(block)[: max(1, group.size // 3) * step]] = False
    pruned = restrict(groups, keep)
    verify(pruned)
    error = pruning_error(groups, keep, pruned)
    if name in MIXING:
        assert error is None
        execute(pruned, random_inputs(pruned))
    else:
        assert error is not None and error <= 1e-5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("packed", ["w0[1]: 24", "wq[1]: 4"]),
        ("grouped queries", ["w0[1]: 24", "wq[1]: 2"]),  # two query heads go with their key and value head
        ("one key and value head", ["w0[1]: 24", "wq[1]: 4"]),
        ("separate heads with a bias table", ["w0[1]: 24", "wq[1]: 4"]),
        ("rotary, halves", ["w0[1]: 24", "wq[1]: 4"]),
    ],
)
def test_whole_heads(name: str, expected: list[str]) -> None:
    graph = network(ATTENTION[name][0], 23)
    groups = dependency_groups(graph, heads=True)
    assert described(groups) == expected
    assert groups[1].kind == ("kv-group" if name == "grouped queries" else "head")
    assert certify(graph, groups) <= 1e-5
    keep = np.ones(groups.unit_count, bool)
    keep[groups[1].blocks[0][0]] = False
    pruned = restrict(groups, keep)
    verify(pruned)
    assert pruning_error(groups, keep, pruned) <= 1e-5


def test_depth_of_heads_leaves_the_scale_of_attention_alone() -> None:
    graph = network(ATTENTION["packed"][0], 23)
    groups = dependency_groups(graph)
    keep = np.ones(groups.unit_count, bool)
    for block in groups[1].blocks:
        keep[block[:4]] = False
    attention = next(n for n in restrict(groups, keep).nodes if n.op == "Attention")
    assert attention.attribute("scale") == pytest.approx(8**-0.5)
    assert attention.attribute("q_num_heads") == 4


def test_every_standard_operator_has_a_rule_or_a_reason() -> None:
    schemas = onnx.defs.get_all_schemas()
    standard = {s.name for s in schemas if s.domain == "" and not s.deprecated}
    known = {op for domain, op in COUPLING_RULES if not domain}
    assert standard <= known
    assert all(REFUSED.values()) and set(REFUSED) <= standard


def test_refused_operators_say_why() -> None:
    graph = network(SELECTION["places of what is not zero"][0])
    reasons = {f"{f.value.name}: {f.reason}" for f in dependency_groups(graph).fixed}
    assert any(r.startswith("w1: NonZero: the order or number of its results") for r in reasons)


@pytest.mark.parametrize(
    ("family", "name", "node", "macs"),
    [
        (RECURRENT, "gru in both directions", "GRU", 5 * 2 * 2 * 24 * (4 + 8)),
        (ATTENTION, "packed", "Attention", 2 * 4 * 6 * 6 * (8 + 8)),
        (LINEAR, "einsum with heads", "Einsum", 2 * 6 * 4 * 3 * 8),
        (QUANTISED, "product of integers", "MatMulInteger", 2 * 8 * 7),
        (SPATIAL, "deformable convolution", "DeformConv", 6 * 3 * 3 * 8 * 3 * 3),
    ],
)
def test_macs(family: dict[str, tuple[str, list[str]]], name: str, node: str, macs: int) -> None:
    graph = network(family[name][0], 23 if family is ATTENTION else 21)
    assert node_macs(next(n for n in graph.nodes if n.op == node)) == macs


def test_integers_are_scored_by_what_they_stand_for() -> None:
    graph = network(QUANTISED["blocks of a weight"][0])
    weight, uses = graph.value("w2"), readers(graph)
    assert is_weight(weight, uses[weight]) and not is_weight(graph.value("v"), uses[graph.value("v")])
    expected = weight.numpy() * np.repeat(graph.value("v").numpy(), 2, axis=0)
    np.testing.assert_allclose(row_values(weight, uses[weight], slice(2, 6)), expected[2:6], rtol=1e-6)
