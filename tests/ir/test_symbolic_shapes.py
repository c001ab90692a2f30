"""Symbolic shapes: what is inferred of every value is what ONNX Runtime finds, whatever numbers the symbols are."""

from __future__ import annotations

import pytest

from compiler.ir import Graph, Value
from compiler.ir.execute import execute, random_inputs
from compiler.ir.symbols import Extent
from tests.networks import network

NETWORKS = {
    "slices": """(float[N,S,6] x) => (float y) {
        z = Constant<value_ints=[0]>() b = Constant<value_ints=[1]>() m = Constant<value_ints=[-2]>()
        e = Constant<value_ints=[9223372036854775807]>() f = Constant<value_ints=[4]>()
        a = Slice(x, b, e, b) c = Slice(x, m, e, b) d = Slice(x, z, m, b) g = Slice(x, z, f, b)
        t = Concat<axis=1>(a, c, d, g) ax = Constant<value_ints=[0,1,2]>() y = ReduceSum(t, ax) }""",
    "windows": """(float[N,4,H,W] x, float[6,4,3,3] w, float[6,3,3,3] t) => (float y) {
        a = Conv<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x, w) b = MaxPool<kernel_shape=[2,2]>(a)
        c = AveragePool<kernel_shape=[3,3], strides=[2,1], pads=[1,1,1,1]>(b)
        d = ConvTranspose<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(c, t)
        e = SpaceToDepth<blocksize=1>(d) f = Flatten<axis=2>(e) k = Conv<auto_pad="SAME_UPPER", strides=[2,3]>(x, w)
        i = ReduceSum(f) j = ReduceSum(k) y = Add(i, j) }""",
    "targets": """(float[N,S,6] x) => (float y) {
        s = Shape(x) z = Constant<value_ints=[0]>() b = Constant<value_ints=[1]>() c = Constant<value_ints=[2]>()
        n = Gather(s, z) l = Gather(s, b) two = Constant<value_ints=[2]>() one = Constant<value_ints=[1]>()
        up = Add(l, one) half = Div(up, two) odd = Mod(l, two) joint = Mul(n, l) six = Constant<value_ints=[6]>()
        t = Concat<axis=0>(joint, six) r = Reshape(x, t) t2 = Concat<axis=0>(half, odd, two) o = ConstantOfShape(t2)
        z0 = Constant<value_int=0>() d1 = Constant<value_int=1>() sq = Squeeze(up) k = Range(z0, sq, d1)
        t3 = Concat<axis=0>(l, one, six) xx = Expand(r, t3) i = ReduceSum(xx) j = ReduceSum(o) q = Cast<to=1>(k)
        p = ReduceSum(q) u = Add(i, j) y = Add(u, p) }""",
    "data": """(float[N,S] x) => (float y) {
        zero = NonZero(x) t = Transpose(zero) s = Shape(t) b = Constant<value_ints=[0]>() n = Gather(s, b)
        o = ConstantOfShape(n) p = Concat<axis=0>(o, o) r = ReduceSum(p) i = ReduceSum(x) y = Add(r, i) }""",
    "padding": """(float[N,3,H,W] x) => (float y) {
        s = Shape(x) i = Constant<value_ints=[3]>() w = Gather(s, i) four = Constant<value_ints=[4]>() m = Mod(w, four)
        left = Sub(four, m) rest = Mod(left, four) z = Constant<value_ints=[0,0,0,0,0,0,0]>()
        p = Concat<axis=0>(z, rest)
        a = Pad(x, p) none = Constant<value_floats=[1.0,1.0,2.0,0.5]>() e = Constant<value_float=0.0>()
        b = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(a, , none)
        c = Tile(b, s) y = ReduceSum(c) }""",
}


def check_shapes(graph: Graph, symbols: dict[str, int], least: int = 1) -> None:
    """Run with every value as an output, and compare; at least `least` extents have to be said in `symbols`.

    A name that is made up stands for one number, whichever, in all of a run.
    """
    shapes = {v.name: v.shape for n in graph.nodes for v in n.outputs if v.name and v.shape is not None}
    inputs = bound_inputs(graph, symbols)
    graph = graph.copy()
    graph.outputs = [v for n in graph.nodes for v in n.outputs if v.name in shapes]
    numbers, said = dict(symbols), 0
    for name, array in execute(graph, inputs, optimize=False).items():
        assert len(shapes[name]) == array.ndim
        for dim, actual in zip(shapes[name], array.shape, strict=True):
            if isinstance(dim, str) and Extent.of(dim).symbols == {dim} and "(" not in dim:
                expected = numbers.setdefault(dim, actual)
            else:
                expected = eval(str(dim), {"floordiv": lambda a, b: a // b, "min": min}, numbers)
            said += isinstance(dim, str) and dim not in numbers.keys() - symbols.keys()
            assert expected == actual, f"{name}: {shapes[name]} is {array.shape} at {numbers}"
    assert said >= least


def bound_inputs(graph: Graph, symbols: dict[str, int]) -> dict:
    """Random inputs of the sizes that `symbols` says."""
    bound = graph.copy()
    bound.inputs = [
        Value(v.name, v.dtype, tuple(symbols.get(d, d) if isinstance(d, str) else d for d in v.shape or ()))
        for v in graph.inputs
    ]
    return random_inputs(bound)


@pytest.mark.parametrize("sizes", [(1, 1), (2, 3), (3, 2), (5, 8), (2, 0)])
@pytest.mark.parametrize("name", NETWORKS)
def test_inferred_shapes_are_those_of_a_run(name: str, sizes: tuple[int, int]) -> None:
    graph = network(NETWORKS[name], simplify=name != "targets")
    symbols = {"N": sizes[0], "S": sizes[1], "H": sizes[1] + 4, "W": sizes[0] + 6}
    if name in ("slices", "data") or 0 not in sizes:
        check_shapes(graph, symbols, least=0 if name == "data" else 1)
