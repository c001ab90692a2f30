"""Rows and squares of any size, by vectors: softmax, transposes, and activations after a product."""

from __future__ import annotations

import itertools

import numpy as np
from onnx import helper

from tests.backends.inprocess import run_models
from tests.backends.networks import assert_same, network, reference, single

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def test_softmax_of_rows_of_any_length() -> None:
    cases = []
    for length in (1, 2, 3, 5, 15, 16, 17, 31, 63, 64, 65, 100, 197):
        x = normal(5, length) * 5
        x[1] -= 10_000
        x[2, : length // 2] = -np.inf
        x[3, 0] = 80
        cases.append((single("Softmax", {"x": x}, axis=-1), {"x": x}))
    for (model, feeds), actual in zip(cases, run_models(cases), strict=True):
        assert_same(reference(model, feeds), actual)


def test_masked_entries_of_a_softmax_are_zero() -> None:
    x = np.array([[0, -200, -np.inf, 3] * 9], np.float32)
    (actual,) = run_models([(single("Softmax", {"x": x}, axis=-1), {"x": x})])
    assert not actual["y0"][0, 1::4].any() and not actual["y0"][0, 2::4].any()


def test_normalizations_of_rows_of_any_length() -> None:
    cases = []
    for length in (1, 3, 16, 17, 63, 64, 65, 127, 197, 384):
        x, scale, bias = normal(5, length) * 3 + 20, normal(length), normal(length)
        parameters = {"s": scale, "b": bias}
        cases.append((single("LayerNormalization", {"x": x}, parameters, axis=-1, epsilon=1e-5), {"x": x}))
        image, parameters = normal(2, 4, length) + 7, {"s": normal(4), "b": normal(4)}
        cases.append((single("InstanceNormalization", {"x": image}, parameters), {"x": image}))
    for (model, feeds), actual in zip(cases, run_models(cases), strict=True):
        assert_same(reference(model, feeds), actual)


def test_transposes_of_any_size() -> None:
    cases = []
    for rows, columns in itertools.product((15, 16, 17, 33, 48), repeat=2):
        for shape, order in (((rows, columns), (1, 0)), ((2, rows, 3, columns), (0, 2, 3, 1))):
            x = normal(*shape)
            cases.append((single("Transpose", {"x": x}, perm=order), {"x": x}))
    for (model, feeds), actual in zip(cases, run_models(cases), strict=True):
        for name, value in reference(model, feeds).items():
            np.testing.assert_array_equal(actual[name], value)


def test_long_activations_after_products_of_any_size() -> None:
    cases = []
    for rows, columns, op in itertools.product((1, 5, 6, 13), (1, 16, 35, 64, 80), ("Gelu", "Sigmoid")):
        x, w = normal(rows, 19), normal(19, columns)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["u"]), helper.make_node(op, ["u"], ["y"])]
        cases.append((network(nodes, {"x": x}, {"w": w}, ["y"]), {"x": x}))
    for (model, feeds), actual in zip(cases, run_models(cases), strict=True):
        assert_same(reference(model, feeds), actual)
