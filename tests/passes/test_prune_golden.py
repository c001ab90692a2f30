"""The text of a graph before and after pruning, and of its groups: what a reader should see."""

from __future__ import annotations

from passes import Context, Pipeline, Prune, dependency_groups
from tests.networks import network

NETWORK = """(float[1,3,8,8] x, float[8,3,3,3] w1, float[8] s, float[8] b, float[8] m, float[8] v, float[8,1,3,3] dw,
    float[8,8,1,1] pw, float[12,8,1,1] w2, float[5,192] h) => (float[1,5] y) {
    a = Conv<pads=[1,1,1,1]>(x, w1) n = BatchNormalization(a, s, b, m, v) r = Relu(n)
    d = Conv<group=8, pads=[1,1,1,1]>(r, dw) e = Conv(d, pw) z = Add(e, r) c = Conv(z, w2)
    sizes = Constant<value_ints=[4,8]>() c1, c2 = Split<axis=1>(c, sizes) q = Concat<axis=1>(c2, c1)
    p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(q) shape = Constant<value_ints=[1,192]>() f = Reshape(p, shape)
    y = Gemm<transB=1>(f, h) }"""


def test_groups(golden) -> None:
    golden(str(dependency_groups(network(NETWORK))), "groups")


def test_prune(golden) -> None:
    graph = network(NETWORK)
    context = Context()
    result = Pipeline((Prune(ratio=0.5),)).run(graph, context)
    golden(f"{graph}\n{result}", "prune")
