"""GELU spelled out in every order that exporters write becomes one activation, and nothing else does."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import helper

from backends.lowering import lower
from backends.target import target
from compiler.frontends.onnx import load_onnx
from tests.backends.inprocess import run_models
from tests.backends.networks import assert_same, network, reference

Nodes = list[tuple[str, str, str, str]]
CONSTANTS = {
    "one": 1.0,
    "half": 0.5,
    "two": 2.0,
    "three": 3.0,
    "root": math.sqrt(2),
    "inverse": 0.70710677,
    "small": 0.044715,
    "pi": 0.7978846,
    "other": 0.6,
}
ERF = [("Div", "u", "root", "a"), ("Erf", "a", "", "b"), ("Add", "b", "one", "c")]
TANH = [
    ("Pow", "u", "three", "p"),
    ("Mul", "p", "small", "q"),
    ("Add", "u", "q", "r"),
    ("Mul", "r", "pi", "s"),
    ("Tanh", "s", "", "t"),
    ("Add", "t", "one", "c"),
]
PRODUCTS = [
    ("Mul", "u", "u", "p2"),
    ("Mul", "u", "p2", "p"),
    ("Mul", "small", "p", "q"),
    ("Add", "q", "u", "r"),
    ("Mul", "pi", "r", "s"),
    ("Tanh", "s", "", "t"),
    ("Add", "one", "t", "c"),
]
SPELLED: dict[str, Nodes] = {
    "bert": [*ERF, ("Mul", "u", "c", "d"), ("Mul", "d", "half", "y")],
    "half first": [*ERF, ("Mul", "half", "u", "d"), ("Mul", "d", "c", "y")],
    "half in between": [*ERF, ("Mul", "c", "half", "d"), ("Mul", "u", "d", "y")],
    "halved by division": [
        ("Mul", "inverse", "u", "a"),
        ("Erf", "a", "", "b"),
        ("Add", "one", "b", "c"),
        ("Mul", "c", "u", "d"),
        ("Div", "d", "two", "y"),
    ],
    "tanh": [*TANH, ("Mul", "u", "half", "d"), ("Mul", "d", "c", "y")],
    "tanh by products": [*PRODUCTS, ("Mul", "c", "half", "d"), ("Mul", "d", "u", "y")],
}
OTHERS: dict[str, Nodes] = {
    "another factor": [*ERF, ("Mul", "u", "c", "d"), ("Mul", "d", "other", "y")],
    "another operand": [*ERF, ("Mul", "x", "c", "d"), ("Mul", "d", "half", "y")],
    "read twice": [*ERF, ("Mul", "u", "c", "d"), ("Mul", "d", "half", "e"), ("Add", "e", "c", "y")],
    "erf of itself": [
        ("Erf", "u", "", "b"),
        ("Add", "b", "one", "c"),
        ("Mul", "u", "c", "d"),
        ("Mul", "d", "half", "y"),
    ],
    "squared": [*ERF, ("Mul", "c", "c", "d"), ("Mul", "d", "half", "y")],
}


def model(nodes: Nodes) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """u = x @ w, then `nodes`."""
    random = np.random.default_rng(0)
    constants = {name: np.float32(value).reshape(()) for name, value in CONSTANTS.items()}
    used = {operand for _, a, b, _ in nodes for operand in (a, b)}
    constants = {name: array for name, array in constants.items() if name in used}
    constants["w"] = random.standard_normal((35, 35)).astype(np.float32)
    x = random.standard_normal((7, 35)).astype(np.float32)
    protos = [helper.make_node("MatMul", ["x", "w"], ["u"])]
    protos += [helper.make_node(op, [name for name in (a, b) if name], [y]) for op, a, b, y in nodes]
    return network(protos, {"x": x}, constants, ["y"]), {"x": x}


@pytest.mark.parametrize("name", SPELLED)
def test_gelu_joins_the_product_before_it(name: str) -> None:
    (step,) = lower(load_onnx(model(SPELLED[name])[0]), target("native")).steps
    assert step.op == "MatMul" and len(step.nodes) == 1 + len(SPELLED[name])


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_gelu_is_left_alone(name: str) -> None:
    steps = lower(load_onnx(model(OTHERS[name])[0]), target("native")).steps
    assert [step.op for step in steps] == ["MatMul", "Elementwise"]


def test_results() -> None:
    cases = [model(nodes) for nodes in (*SPELLED.values(), *OTHERS.values())]
    for (proto, feeds), actual in zip(cases, run_models(cases), strict=True):
        assert_same(reference(proto, feeds), actual)


def test_a_gelu_that_is_an_output_in_the_middle_is_left_alone() -> None:
    proto, feeds = model(SPELLED["bert"])
    proto.graph.output.append(helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [7, 35]))
    assert_same(reference(proto, feeds), run_models([(proto, feeds)])[0])
