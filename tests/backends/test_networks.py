"""Whole networks through artifacts, against ONNX Runtime: many layers, branches, shuffles, attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from backends import build, load
from backends.benchmark import random_inputs
from backends.lowering import lower
from backends.target import target
from compiler.frontends.onnx import load_onnx
from tests.backends.networks import assert_same, network, reference
from tests.models import light_model


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet"])
def test_classic_networks(name: str, tmp_path: Path) -> None:
    model = light_model(name)
    build(load_onnx(model), tmp_path / name)
    with load(tmp_path / name) as one, load(tmp_path / name, threads=2) as two:
        feeds = random_inputs(one)
        actual = one.run(feeds)
        assert_same(reference(model, feeds), actual)
        for key, value in two.run(feeds).items():
            np.testing.assert_array_equal(value, actual[key])


def transformer_block(
    tokens: int = 12, width: int = 32, heads: int = 4
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Self-attention and a feed-forward layer, with LayerNormalization and Gelu as exporters write them."""
    tokens, width, heads = 12, 32, 4
    random = np.random.default_rng(0)
    depth = width // heads

    def weight(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * shape[0] ** -0.5).astype(np.float32)

    constants = {f"w{p}": weight(width, width) for p in "qkvo"}
    constants |= {f"b{p}": weight(width) for p in "qkvo"}
    constants |= {"up": weight(width, 4 * width), "down": weight(4 * width, width), "bu": weight(4 * width)}
    constants |= {"s": weight(width), "z": weight(width), "split": np.array([1, tokens, heads, depth])}
    constants |= {"join": np.array([1, tokens, width]), "scale": np.float32(depth**-0.5).reshape(())}
    constants |= {"half": np.float32(0.5).reshape(()), "one": np.float32(1).reshape(())}
    constants |= {"root": np.float32(2**0.5).reshape(())}
    nodes = [helper.make_node("LayerNormalization", ["x", "s", "z"], ["n"], axis=-1)]
    for p in "qkv":
        order = [0, 2, 3, 1] if p == "k" else [0, 2, 1, 3]
        nodes += [
            helper.make_node("MatMul", ["n", f"w{p}"], [f"m{p}"]),
            helper.make_node("Add", [f"b{p}", f"m{p}"], [f"a{p}"]),
            helper.make_node("Reshape", [f"a{p}", "split"], [f"r{p}"]),
            helper.make_node("Transpose", [f"r{p}"], [p], perm=order),
        ]
    nodes += [
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["p"]),
        helper.make_node("MatMul", ["p", "v"], ["mixed"]),
        helper.make_node("Transpose", ["mixed"], ["back"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["back", "join"], ["flat"]),
        helper.make_node("MatMul", ["flat", "wo"], ["mo"]),
        helper.make_node("Add", ["mo", "bo"], ["ao"]),
        helper.make_node("Add", ["x", "ao"], ["h"]),
        helper.make_node("MatMul", ["h", "up"], ["mu"]),
        helper.make_node("Add", ["mu", "bu"], ["u"]),
        helper.make_node("Div", ["u", "root"], ["e1"]),
        helper.make_node("Erf", ["e1"], ["e2"]),
        helper.make_node("Add", ["e2", "one"], ["e3"]),
        helper.make_node("Mul", ["u", "e3"], ["e4"]),
        helper.make_node("Mul", ["e4", "half"], ["gelu"]),
        helper.make_node("MatMul", ["gelu", "down"], ["d"]),
        helper.make_node("Add", ["h", "d"], ["y"]),
    ]
    x = random.standard_normal((1, tokens, width)).astype(np.float32)
    return network(nodes, {"x": x}, constants, ["y"]), {"x": x}


def test_a_transformer_block(tmp_path: Path) -> None:
    model, feeds = transformer_block()
    build(load_onnx(model), tmp_path / "block")
    with load(tmp_path / "block") as executable:
        assert_same(reference(model, feeds), executable.run(feeds))


def test_what_is_fused_in_a_transformer_block() -> None:
    model, _ = transformer_block()
    steps = [(s.op, len(s.nodes)) for s in lower(load_onnx(model), target("native")).steps]
    assert steps == [
        ("LayerNormalization", 1),
        ("MatMul", 2), ("Transpose", 1), ("MatMul", 2), ("Transpose", 1), ("MatMul", 2), ("Transpose", 1),
        ("MatMul", 1), ("Mul", 1), ("Softmax", 1), ("MatMul", 1), ("Transpose", 1),
        ("MatMul", 3),  # bias and residual
        ("MatMul", 7),  # bias and Gelu
        ("MatMul", 2),
    ]  # fmt: skip
