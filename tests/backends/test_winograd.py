"""Winograd's method: exact transformations, results and accuracy on any shape, and when it is chosen."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from backends.schedules import ConvSpec, Epilogue, conv2d
from backends.schedules.dense_cost import dense_methods
from backends.schedules.toom_cook import SIZES, ToomCook
from backends.schedules.winograd import Tiling
from backends.selection import choose_conv
from backends.target import Target
from tests.backends.schedules_harness import TOLERANCE, Library
from tests.backends.test_schedules import (
    FEW,
    NATIVE,
    TARGETS,
    check,
    conv_case,
    epilogues,
    examples,
    normal,
    numbers,
    pairs,
)

PAD = (1, 1, 1, 1)
#: Methods for 3x3 windows of stride 1.
METHODS = [f"winograd{m}" for m in SIZES[3]]
#: Kernel, stride and outputs of a tile, along one axis.
CASES = [(k, s, m) for k, s in [(3, 1), (4, 1), (5, 1), (5, 2), (6, 2), (7, 2), (8, 2)] for m in SIZES[-(-k // s)]]
FILTERS = [(m, taps) for taps, sizes in SIZES.items() for m in sizes]


@pytest.mark.parametrize(("m", "taps"), FILTERS)
def test_transformations_give_the_filter_exactly(m: int, taps: int) -> None:
    t = ToomCook.of(m, taps)
    signal = [Fraction(3 * i * i - 7, i + 1) for i in range(m + taps - 1)]
    weights = [Fraction(5, 3), Fraction(-2), Fraction(1, 7), Fraction(4), Fraction(-3, 8)][:taps]

    def times(matrix, vector):
        return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]

    points = [a * b for a, b in zip(times(t.kernel, weights), times(t.to_points, signal), strict=True)]
    expected = [sum(signal[i + k] * weights[k] for k in range(taps)) for i in range(m)]
    assert times(t.from_points, points) == expected


@pytest.mark.parametrize(("m", "taps"), FILTERS)
def test_what_processors_multiply_by_is_exact(m: int, taps: int) -> None:
    t = ToomCook.of(m, taps)
    coefficients = [c for matrix in (t.to_points, t.from_points) for row in matrix for c in row]
    assert all(Fraction(float(np.float32(float(c)))) == c for c in coefficients)


@examples(30)
@given(st.data(), st.sampled_from(CASES), st.sampled_from(TARGETS), st.booleans(), st.booleans())
def test_any_shape_agrees_with_torch(data, case: tuple[int, int, int], on: Target, parallel: bool, at_end: bool):
    k, stride, m = case
    pads = data.draw(st.tuples(*[numbers(0, k // 2 + 1)] * 4))
    size = [max(data.draw(numbers(1, 70)), k - pads[i] - pads[i + 2]) for i in range(2)]
    channels, batch = data.draw(pairs(1, 40)), data.draw(numbers(1, 2))
    spec = ConvSpec(
        batch, channels[0], *size, channels[1], (k, k), (stride, stride), pads, epilogue=data.draw(epilogues)
    )
    arrays, expected, w, bias = conv_case(spec)
    kernel = conv2d(spec, on, parallel, f"winograd{m}")
    check(kernel, arrays | kernel.pack(w, bias), expected, on, at_end)


SIDES = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 13, 14, 15, 16, 17, 20, 28, 31, 33, 57, 64, 67, 113]
EPILOGUES = [Epilogue(), Epilogue(True), Epilogue(True, True, "relu"), Epilogue(True, True, "silu")]


def grid() -> list[ConvSpec]:
    """Every width beside another height, with all kinds of pads and epilogues."""
    specs = []
    for i, width in enumerate(SIDES):
        height, inputs, outputs = SIDES[(5 * i + 3) % len(SIDES)], 1 + 3 * i % 17, 1 + 5 * i % 19
        pads = PAD if i % 3 else (2, 1, 0, 2)
        specs.append(ConvSpec(1 + i % 2, inputs, height, width, outputs, (3, 3), pads=pads, epilogue=EPILOGUES[i % 4]))
    return [spec for spec in specs if min(spec.out_height, spec.out_width) > 0]


@pytest.mark.parametrize("on", TARGETS, ids=lambda on: f"{on.vector_bytes}x{on.vector_registers}")
@pytest.mark.parametrize("method", METHODS)
def test_odd_shapes_agree_with_torch(method: str, on: Target) -> None:
    specs = grid() if on is NATIVE else grid()[TARGETS.index(on) % 2 :: 3]
    compare(specs, method, on)


@pytest.mark.parametrize(("k", "stride", "m"), [case for case in CASES if case[0] > 3])
def test_odd_shapes_of_other_windows_agree_with_torch(k: int, stride: int, m: int) -> None:
    specs = [
        dataclasses.replace(spec, kernel=(k, k), strides=(stride, stride))
        for spec in grid()[CASES.index((k, stride, m)) % 2 :: 2]
        if min(spec.height + spec.pads[0] + spec.pads[2], spec.width + spec.pads[1] + spec.pads[3]) >= k
    ]
    compare(specs, f"winograd{m}", NATIVE)


@pytest.mark.parametrize(("k", "stride"), [(3, 1), (7, 2)])
def test_odd_shapes_agree_with_torch_where_few_vectors_are_in_flight(k: int, stride: int) -> None:
    specs = [
        dataclasses.replace(spec, kernel=(k, k), strides=(stride, stride))
        for spec in grid()[1::3]
        if min(spec.height + sum(spec.pads[::2]), spec.width + sum(spec.pads[1::2])) >= k
    ]
    compare(specs, "winograd4", FEW)


def compare(specs: list[ConvSpec], method: str, on: Target) -> None:
    """All in one library."""
    kernels = [conv2d(spec, on, True, method) for spec in specs]
    library = Library([kernel.func for kernel in kernels], on)
    for spec, kernel in zip(specs, kernels, strict=True):
        arrays, expected, w, bias = conv_case(spec)
        actual = library.call(kernel, arrays | kernel.pack(w, bias), expected.shape)
        assert np.linalg.norm(actual - expected) <= TOLERANCE[on.dtype] * np.linalg.norm(expected), spec


def errors(spec: ConvSpec, method: str, x: np.ndarray, w: np.ndarray) -> float:
    """Norm of the difference from the sum in double precision, over the norm of the sum of absolute products."""
    kernel = conv2d(spec, NATIVE, False, method)
    exact = F.conv2d(torch.tensor(x, dtype=torch.float64), torch.tensor(w, dtype=torch.float64), padding=1).numpy()
    size = F.conv2d(torch.tensor(abs(x), dtype=torch.float64), torch.tensor(abs(w), dtype=torch.float64), padding=1)
    actual = Library([kernel.func], NATIVE).call(kernel, {"x": x, **kernel.pack(w)}, exact.shape)
    return float(np.linalg.norm(actual - exact) / np.linalg.norm(size.numpy()))


@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("method", ["direct", *METHODS])
def test_errors_are_small_against_what_is_summed(method: str, mean: float) -> None:
    spec = ConvSpec(1, 64, 28, 28, 32, (3, 3), pads=PAD)
    x, w = normal(0, 1, 64, 28, 28) + np.float32(mean), normal(1, 32, 64, 3, 3)
    # Filters whose weights cancel, as edge detectors' do: the mean disappears from the sum, but not its rounding.
    assert errors(spec, method, x, w - w.mean((2, 3), keepdims=True)) <= 3e-7


STEM = ConvSpec(1, 3, 112, 112, 32, (7, 7), (2, 2), (3, 3, 3, 3))


@pytest.mark.parametrize(
    ("spec", "method", "largest"),
    [
        (ConvSpec(1, 128, 28, 28, 64, (3, 3), pads=PAD), "winograd2", 6e-7),
        (ConvSpec(1, 128, 28, 28, 64, (3, 3), pads=PAD), "winograd4", 2e-6),
        (STEM, "winograd3", 1e-6),
        (STEM, "winograd4", 2e-6),
    ],
)
def test_relative_errors_on_normal_numbers(spec: ConvSpec, method: str, largest: float) -> None:
    arrays, _, w, _ = conv_case(spec)
    x, pads = torch.tensor(arrays["x"]).double(), spec.pads[0]
    exact = F.conv2d(x, torch.tensor(w).double(), stride=spec.strides, padding=pads).numpy()
    kernel = conv2d(spec, NATIVE, False, method)
    actual = Library([kernel.func], NATIVE).call(kernel, arrays | kernel.pack(w), exact.shape)
    assert np.linalg.norm(actual - exact) <= largest * np.linalg.norm(exact)


#: A machine of known caches, so that choices do not depend on where the tests run.
MACHINE = dataclasses.replace(NATIVE, vector_bytes=64, vector_registers=32, l1_bytes=32 << 10, l2_bytes=1 << 20)


@pytest.mark.parametrize(
    ("channels", "side", "method"),
    [(64, 56, "winograd4"), (128, 28, "winograd4"), (256, 14, "winograd4"), (512, 7, "winograd2"), (3, 2, "direct")],
)
def test_each_shape_gets_what_is_fastest(channels: int, side: int, method: str) -> None:
    spec = ConvSpec(1, channels, side, side, channels, (3, 3), pads=PAD)
    assert next(iter(dense_methods(spec, MACHINE))) == method


def test_a_first_convolution_is_split_into_phases() -> None:
    spec = ConvSpec(1, 3, 224, 224, 64, (7, 7), (2, 2), (3, 3, 3, 3), epilogue=Epilogue(True, False, "relu"))
    choice = choose_conv(spec, normal(0, 64, 3, 7, 7), MACHINE)
    assert choice.chosen.label == "winograd_conv2d dense 4x4"


@pytest.mark.parametrize(
    "spec",
    [
        ConvSpec(1, 4, 9, 9, 4, (3, 5)),
        ConvSpec(1, 4, 9, 9, 4, (3, 3), (2, 2)),
        ConvSpec(1, 4, 9, 9, 4, (7, 7), (2, 1)),
        ConvSpec(1, 4, 9, 9, 4, (3, 3), dilations=(2, 2)),
        ConvSpec(1, 4, 9, 9, 4, (3, 3), groups=2),
    ],
)
def test_other_convolutions_are_summed_as_written(spec: ConvSpec) -> None:
    assert list(dense_methods(spec, MACHINE)) == ["direct"]


@pytest.mark.parametrize("m", SIZES[3])
@pytest.mark.parametrize("side", [7, 14, 28, 56, 112, 224])
def test_points_of_a_block_stay_near(side: int, m: int) -> None:
    channels = 3584 // side
    tiling = Tiling.of(ConvSpec(1, channels, side, side, channels, (3, 3), pads=PAD), MACHINE, m)
    images = 2 * channels * side**2 * 4
    assert tiling.points_bytes <= max(1.75 * MACHINE.l2_bytes, 1.5 * images) or tiling.rows == 1


@pytest.mark.parametrize(("channels", "parts"), [(40, 2), (256, 4)])
def test_output_channels_in_parts(channels: int, parts: int) -> None:
    spec = ConvSpec(2, 24, 20, 20, channels, (3, 3), pads=PAD, epilogue=Epilogue(True, True, "relu"))
    machine = dataclasses.replace(NATIVE, l2_bytes=64 << 10)
    assert Tiling.of(spec, machine, 4).parts == parts
    arrays, expected, w, bias = conv_case(spec)
    kernel = conv2d(spec, machine, True, "winograd4")
    check(kernel, arrays | kernel.pack(w, bias), expected)


@pytest.mark.parametrize(("sparsity", "format"), [(0.0, "dense"), (0.7, "dense"), (0.95, "csr")])
def test_zeros_decide_between_winograd_and_a_sparse_schedule(sparsity: float, format: str) -> None:
    spec = ConvSpec(1, 64, 56, 56, 64, (3, 3), pads=PAD)
    weights = normal(0, 64, 64, 3, 3)
    weights[np.abs(weights) < np.quantile(np.abs(weights), sparsity)] = 0
    choice = choose_conv(spec, weights, MACHINE)
    assert choice.chosen.format == format
    labels = {candidate.label for candidate in (choice.chosen, *choice.others)}
    assert {"winograd_conv2d dense 2x2", "winograd_conv2d dense 4x4", "panels_conv2d dense"} <= labels
