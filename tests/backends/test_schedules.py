"""Dense schedules: every kernel agrees with PyTorch or ONNX Runtime, on any shape, and touches only its own arrays."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import target as target_module
from backends.schedules import (
    ACTIVATIONS,
    ConvSpec,
    ConvTransposeSpec,
    Emitter,
    Epilogue,
    Kernel,
    MatMulSpec,
    PoolSpec,
    activate,
    conv2d,
    conv_transpose2d,
    erf,
    exp,
    global_pool,
    log,
    matmul,
    module,
    object_code,
    pool2d,
    sigmoid,
    tanh,
)
from backends.schedules.epilogue import exp_quick
from backends.schedules.windows_in_place import WindowsInPlace
from backends.target import Target, target, target_names
from compiler.errors import SecateurError
from tests.backends.schedules_harness import TOLERANCE, Library

NATIVE = Target.native()
# The schedules read only these numbers, so narrow machines are tested on wide ones.
TARGETS = [
    NATIVE,
    *(dataclasses.replace(NATIVE, vector_bytes=b, vector_registers=r) for b, r in [(32, 16), (16, 16), (16, 32)]),
]
EVERY = [*TARGETS, dataclasses.replace(NATIVE, vector_bytes=16, vector_registers=32, dtype="float16")]


def examples(count: int):
    return settings(
        max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None
    )


def numbers(low: int, high: int):
    return st.integers(low, high)


def pairs(low: int, high: int):
    return st.tuples(numbers(low, high), numbers(low, high))


epilogues = st.builds(
    lambda bias, residual, act: Epilogue(bias, residual, *act),
    st.booleans(),
    st.booleans(),
    st.sampled_from(
        [(None,), ("relu",), ("clip", -0.5, 1.5), ("leaky_relu", 0.2), ("silu",), ("gelu",), ("hard_swish",)]
    ),
)


def reference(epilogue: Epilogue, value: torch.Tensor) -> np.ndarray:
    alpha, beta = epilogue.alpha, epilogue.beta
    rule = {
        None: lambda v: v,
        "relu": torch.relu,
        "clip": lambda v: torch.clip(v, alpha, beta),
        "leaky_relu": lambda v: F.leaky_relu(v, alpha),
        "silu": F.silu,
        "gelu": F.gelu,
        "hard_swish": F.hardswish,
    }[epilogue.activation]
    return rule(value).numpy()


def check(
    kernel: Kernel,
    arrays: dict[str, np.ndarray],
    expected: np.ndarray,
    on: Target = NATIVE,
    at_end: bool = True,
    tasks: int = 3,
) -> None:
    library = Library([kernel.func], on)
    library.set_tasks(tasks)
    actual = library.call(kernel, arrays, expected.shape, at_end)
    scale = np.linalg.norm(expected.astype(np.float64))
    assert np.linalg.norm(actual.astype(np.float64) - expected) <= TOLERANCE[on.dtype] * scale + 1e-30


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@st.composite
def conv_specs(draw) -> ConvSpec:
    kind = draw(st.sampled_from(["dense", "pointwise", "groups", "depthwise"]))
    groups = 1 if kind in ("dense", "pointwise") else draw(numbers(2, 9))
    inputs = groups * (1 if kind == "depthwise" else draw(numbers(1, 20)))
    outputs = groups * draw(numbers(1, 20 if groups == 1 else 4))
    plain = kind == "pointwise"
    kernel = (1, 1) if plain else draw(pairs(1, 13) if draw(numbers(0, 5)) == 0 else pairs(1, 5))
    strides = (1, 1) if plain else draw(pairs(1, 3))
    dilations = (1, 1) if plain else draw(pairs(1, 2))
    pads = (0, 0, 0, 0) if plain else draw(st.tuples(*[numbers(0, 3)] * 4))
    size = draw(pairs(1, 60))
    need = [max(1, dilations[i] * (kernel[i] - 1) + 1 - pads[i] - pads[i + 2]) for i in range(2)]
    height, width = max(size[0], need[0]), max(size[1], need[1])
    batch, epilogue = draw(numbers(1, 2)), draw(epilogues)
    return ConvSpec(batch, inputs, height, width, outputs, kernel, strides, pads, dilations, groups, epilogue)


def conv_case(spec: ConvSpec) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    x = normal(0, spec.batch, spec.in_channels, spec.height, spec.width)
    w = normal(1, spec.out_channels, spec.in_channels // spec.groups, *spec.kernel)
    bias = normal(2, spec.out_channels)
    top, left, bottom, right = spec.pads
    padded = F.pad(torch.tensor(x), (left, right, top, bottom))
    used = torch.tensor(bias) if spec.epilogue.bias else None
    y = F.conv2d(padded, torch.tensor(w), used, spec.strides, 0, spec.dilations, spec.groups)
    arrays = {"x": x}
    if spec.epilogue.residual:
        arrays["residual"] = normal(3, *y.shape)
        y = y + torch.tensor(arrays["residual"])
    return arrays, reference(spec.epilogue, y), w, bias


@examples(40)
@given(conv_specs(), st.sampled_from(EVERY), st.booleans(), st.booleans())
def test_any_convolution_agrees_with_torch(spec: ConvSpec, on: Target, parallel: bool, at_end: bool) -> None:
    arrays, expected, w, bias = conv_case(spec)
    kernel = conv2d(spec, on, parallel)
    check(kernel, arrays | kernel.pack(w, bias), expected, on, at_end)


FEW = dataclasses.replace(NATIVE, vector_bytes=16, vector_registers=24, multiplies_by_lane=True, few_in_flight=True)


@st.composite
def swept_specs(draw) -> ConvSpec:
    """Depthwise windows over planes that are swept from top to bottom where few vectors are to be in flight."""
    kernel, strides, dilations = draw(pairs(1, 5)), draw(pairs(1, 2)), draw(pairs(1, 2))
    pads, size = draw(st.tuples(*[numbers(0, 3)] * 4)), draw(pairs(4, 31))
    groups = draw(numbers(1, 3))
    need = [max(1, dilations[i] * (kernel[i] - 1) + 1 - pads[i] - pads[i + 2]) for i in range(2)]
    plane, outputs = [max(size[i], need[i]) for i in range(2)], groups * draw(numbers(1, 2))
    return ConvSpec(1, groups, *plane, outputs, kernel, strides, pads, dilations, groups, draw(epilogues))


@examples(20)
@given(swept_specs(), st.booleans())
def test_small_planes_are_swept_from_top_to_bottom(spec: ConvSpec, at_end: bool) -> None:
    windows = WindowsInPlace.of(spec, FEW, swept=True)
    assert windows.sweeps
    arrays, expected, w, bias = conv_case(spec)
    kernel = conv2d(spec, FEW)
    check(kernel, arrays | kernel.pack(w, bias), expected, FEW, at_end)


PAD = (1, 1, 1, 1)
LARGE = [
    ConvSpec(1, 3, 64, 64, 24, (7, 7), (2, 2), (3, 3, 3, 3), epilogue=Epilogue(True, False, "relu")),
    ConvSpec(1, 300, 7, 7, 30, (3, 3), pads=PAD, epilogue=Epilogue(True, True, "relu")),
    ConvSpec(1, 130, 14, 14, 41, (3, 3), pads=PAD, epilogue=Epilogue(True, True, "silu")),
    ConvSpec(1, 200, 9, 9, 21, (3, 3), (2, 2), pads=PAD, epilogue=Epilogue(True, True)),
    ConvSpec(2, 96, 56, 56, 24, (1, 1), epilogue=Epilogue(True, False, "clip", 0.0, 6.0)),
    ConvSpec(1, 512, 1, 1, 70, (1, 1), epilogue=Epilogue(True, True, "hard_swish")),
    ConvSpec(1, 40, 112, 112, 40, (5, 5), (2, 2), (2, 2, 2, 2), groups=40, epilogue=Epilogue(True)),
]


@pytest.mark.parametrize("method", ["auto", "direct"])
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("spec", LARGE, ids=lambda spec: f"{spec.in_channels}x{spec.height}k{spec.kernel[0]}")
def test_layers_of_real_size(spec: ConvSpec, parallel: bool, method: str) -> None:
    arrays, expected, w, bias = conv_case(spec)
    kernel = conv2d(spec, NATIVE, parallel, method)
    check(kernel, arrays | kernel.pack(w, bias), expected)


@pytest.mark.parametrize("method", ["direct", "winograd2", "winograd4"])
def test_results_do_not_depend_on_the_number_of_tasks(method: str) -> None:
    spec = LARGE[1]
    arrays, expected, w, bias = conv_case(spec)
    kernel = conv2d(spec, NATIVE, parallel=True, method=method)
    library = Library([kernel.func], NATIVE)
    results = []
    for tasks in (1, 2, 5, 64):
        library.set_tasks(tasks)
        results.append(library.call(kernel, arrays | kernel.pack(w, bias), expected.shape))
    assert all(np.array_equal(results[0], other) for other in results[1:])


@st.composite
def transpose_specs(draw) -> ConvTransposeSpec:
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel, strides, dilations = draw(pairs(1, 4)), draw(pairs(1, 3)), draw(pairs(1, 2))
    pads, size = draw(pairs(0, 1)), draw(pairs(3, 20))
    extra = tuple(draw(numbers(0, max(strides[i], dilations[i]) - 1)) for i in range(2))
    return ConvTransposeSpec(
        draw(numbers(1, 2)),
        groups * draw(numbers(1, 8)),
        *size,
        groups * draw(numbers(1, 8)),
        kernel,
        strides,
        (*pads, *pads),
        dilations,
        extra,
        groups,
        draw(epilogues),
    )


@examples(18)
@given(transpose_specs(), st.sampled_from(EVERY), st.booleans())
def test_any_transposed_convolution_agrees_with_torch(spec: ConvTransposeSpec, on: Target, parallel: bool) -> None:
    x = normal(0, spec.batch, spec.in_channels, spec.height, spec.width)
    w = normal(1, spec.in_channels, spec.out_channels // spec.groups, *spec.kernel)
    bias = normal(2, spec.out_channels)
    used = torch.tensor(bias) if spec.epilogue.bias else None
    y = F.conv_transpose2d(
        torch.tensor(x),
        torch.tensor(w),
        used,
        spec.strides,
        spec.pads[:2],
        spec.output_padding,
        spec.groups,
        spec.dilations,
    )
    kernel = conv_transpose2d(spec, on, parallel)
    arrays = {"x": x} | kernel.pack(w, bias)
    if spec.epilogue.residual:
        arrays["residual"] = normal(3, *y.shape)
        y = y + torch.tensor(arrays["residual"])
    check(kernel, arrays, reference(spec.epilogue, y), on)


@st.composite
def matmul_specs(draw) -> MatMulSpec:
    side = draw(st.sampled_from([None, "a", "b"]))
    return MatMulSpec(
        draw(numbers(1, 3)),
        draw(st.one_of(st.just(1), numbers(1, 20))),
        draw(numbers(1, 50)),
        draw(numbers(1, 150)),
        draw(st.booleans()),
        draw(st.booleans()),
        side,
        side != "a" and draw(st.booleans()),
        side != "b" and draw(st.booleans()),
        draw(epilogues),
        draw(st.sampled_from("mn")),
    )


@examples(32)
@given(matmul_specs(), st.sampled_from(EVERY), st.booleans(), st.booleans())
def test_any_product_agrees_with_numpy(spec: MatMulSpec, on: Target, parallel: bool, at_end: bool) -> None:
    a = normal(0, spec.batch if spec.a_batched else 1, spec.m, spec.k)
    b = normal(1, spec.batch if spec.b_batched else 1, spec.k, spec.n)
    bias = normal(2, spec.m if spec.bias_axis == "m" else spec.n)
    y = torch.tensor(np.broadcast_to(a.astype(np.float64) @ b, (spec.batch, spec.m, spec.n)).astype(np.float32))
    stored = {
        "a": np.ascontiguousarray(a.swapaxes(1, 2)) if spec.transpose_a else a,
        "b": np.ascontiguousarray(b.swapaxes(1, 2)) if spec.transpose_b else b,
    }
    kernel = matmul(spec, on, parallel)
    if spec.weight_side:
        packed = kernel.pack(stored.pop(spec.weight_side)[0], bias)
    else:
        packed = kernel.pack(bias=bias)
    if spec.epilogue.bias:
        y = y + torch.tensor(bias[:, None] if spec.bias_axis == "m" else bias)
    if spec.epilogue.residual:
        stored["residual"] = normal(3, *y.shape)
        y = y + torch.tensor(stored["residual"])
    check(kernel, stored | packed, reference(spec.epilogue, y), on, at_end)


@st.composite
def pool_specs(draw) -> PoolSpec:
    kind = draw(st.sampled_from(["max", "average"]))
    kernel = draw(pairs(1, 4))
    dilations = draw(pairs(1, 2)) if kind == "max" else (1, 1)
    pads = tuple(draw(numbers(0, kernel[i] // 2)) for i in range(2))
    size = [max(draw(numbers(1, 40)), dilations[i] * (kernel[i] - 1) + 1) for i in range(2)]
    return PoolSpec(
        kind,
        draw(numbers(1, 2)),
        draw(numbers(1, 9)),
        *size,
        kernel,
        draw(pairs(1, 3)),
        (*pads, *pads),
        dilations,
        draw(st.booleans()),
        kind == "average" and draw(st.booleans()),
    )


@examples(25)
@given(pool_specs(), st.sampled_from(EVERY), st.booleans())
def test_any_pooling_agrees_with_torch(spec: PoolSpec, on: Target, parallel: bool) -> None:
    x = normal(0, spec.batch, spec.channels, spec.height, spec.width)
    if spec.kind == "max":
        y = F.max_pool2d(
            torch.tensor(x), spec.kernel, spec.strides, spec.pads[:2], spec.dilations, ceil_mode=spec.ceil_mode
        )
    else:
        y = F.avg_pool2d(
            torch.tensor(x), spec.kernel, spec.strides, spec.pads[:2], spec.ceil_mode, spec.count_include_pad
        )
    assert (spec.out_height, spec.out_width) == tuple(y.shape[2:])
    kernel = pool2d(spec, on, parallel)
    check(kernel, {"x": x} | kernel.pack(), y.numpy(), on)


@examples(12)
@given(st.sampled_from(["max", "average", "sum"]), numbers(1, 40), numbers(1, 300), st.booleans())
def test_global_pooling_agrees_with_numpy(kind: str, planes: int, elements: int, parallel: bool) -> None:
    x = normal(0, planes, elements)
    expected = {"max": x.max(1), "average": x.mean(1), "sum": x.sum(1)}[kind]
    kernel = global_pool(kind, planes, elements, NATIVE, parallel)
    check(kernel, {"x": x}, expected)


ELEMENTS = 1 << 14
SPECIAL = [0.0, -0.0, 1e-40, -1e-40, np.inf, -np.inf, np.nan, 88.72, 88.73, -87.3, -103.9, -104.0, 1e30, -1e30, 3.4e38]
FUNCTIONS = {"exp": (exp, torch.exp), "log": (log, torch.log), "tanh": (tanh, torch.tanh), "erf": (erf, torch.erf)}


def elementwise(name: str, rule, lanes: int) -> Kernel:
    e = Emitter(f"{name}_{lanes}")
    x, y = e.param("x", ELEMENTS), e.param("y", ELEMENTS)
    with e.loop(ELEMENTS // lanes) as i:
        y.store(i * lanes, rule(x.load(i * lanes, lanes)), lanes)
    return Kernel(e.symbol, e.finish(), e.roles, 0, dict, 0)


def samples() -> np.ndarray:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(ELEMENTS) * np.exp(rng.uniform(-8, 4, ELEMENTS))).astype(np.float32)
    x[: len(SPECIAL)] = SPECIAL
    return x


@pytest.mark.parametrize("lanes", [1, 4, 16])
def test_elementary_functions_are_accurate_to_three_ulp(lanes: int) -> None:
    x = samples()
    kernels = {name: elementwise(name, rule, lanes) for name, (rule, _) in FUNCTIONS.items()}
    library = Library([kernel.func for kernel in kernels.values()], NATIVE)
    for name, (_, peer) in FUNCTIONS.items():
        actual = library.call(kernels[name], {"x": x}, x.shape)
        exact = peer(torch.tensor(x, dtype=torch.float64)).numpy()
        with np.errstate(over="ignore"):
            expected = exact.astype(np.float32)
        assert np.array_equal(np.isnan(actual), np.isnan(expected)), name
        finite = np.isfinite(expected)
        assert np.array_equal(actual[~finite & ~np.isnan(expected)], expected[~finite & ~np.isnan(expected)]), name
        ulp = np.spacing(np.maximum(np.abs(expected[finite]), np.float32(1.2e-38)))
        assert (np.abs(actual[finite] - exact[finite]) / ulp).max() < 3, name


def test_every_activation_agrees_with_torch() -> None:
    peers = {
        "relu": torch.relu,
        "clip": lambda x: x,
        "leaky_relu": F.leaky_relu,
        "elu": F.elu,
        "selu": F.selu,
        "celu": F.celu,
        "hard_sigmoid": lambda x: torch.clip(0.2 * x + 0.5, 0, 1),
        "hard_swish": F.hardswish,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "tanh": torch.tanh,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        "softplus": F.softplus,
        "mish": F.mish,
        "softsign": F.softsign,
        "thresholded_relu": lambda x: torch.where(x > 1, x, torch.zeros_like(x)),
    }
    assert set(peers) == set(ACTIVATIONS)
    x = np.clip(samples(), -200, 200)
    kernels = {name: elementwise(name, lambda v, n=name: activate(n, v), NATIVE.lanes()) for name in peers}
    library = Library([kernel.func for kernel in kernels.values()], NATIVE)
    for name, peer in peers.items():
        expected = peer(torch.tensor(x, dtype=torch.float64)).numpy()
        actual = library.call(kernels[name], {"x": x}, x.shape)
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=2e-6, err_msg=name)


def test_sigmoid_at_the_ends() -> None:
    x = np.zeros(ELEMENTS, np.float32)
    x[:4] = [np.inf, -np.inf, 200, -200]
    kernel = elementwise("sigmoid", sigmoid, 16)
    assert Library([kernel.func], NATIVE).call(kernel, {"x": x}, x.shape)[:5].tolist() == [1, 0, 1, 0, 0.5]


def test_exp_quick_is_exp_within_its_bounds() -> None:
    x = np.linspace(-88.3, 88.3, ELEMENTS).astype(np.float32)
    kernel = elementwise("exp_quick", exp_quick, NATIVE.lanes())
    actual = Library([kernel.func], NATIVE).call(kernel, {"x": x}, x.shape)
    normal = x > -87.6
    np.testing.assert_allclose(actual[normal], np.exp(x[normal].astype(np.float64)), rtol=3e-7)
    assert not actual[x < -87.7].any()
    x[:3] = [88.7, -88.3, np.nan]
    assert np.array_equal(
        Library([kernel.func], NATIVE).call(kernel, {"x": x}, x.shape)[:3], [np.inf, 0, np.nan], equal_nan=True
    )


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_gates_close_on_huge_negative_numbers(name: str) -> None:
    x = np.concatenate([np.linspace(-30, 30, ELEMENTS - 6), [-100, -1e30, -3.4e38, 1e30, 3.4e38, np.nan]])
    kernel = elementwise(name, lambda v: activate(name, v), NATIVE.lanes())
    actual = Library([kernel.func], NATIVE).call(kernel, {"x": x.astype(np.float32)}, x.shape)
    exact = {"silu": F.silu, "gelu": F.gelu}[name](torch.tensor(x.astype(np.float32), dtype=torch.float64)).numpy()
    assert np.isnan(actual[-1])
    np.testing.assert_allclose(actual[:-1], exact[:-1], rtol=4e-7, atol=1e-7)


def test_equal_layers_share_a_symbol_and_different_ones_do_not() -> None:
    spec = LARGE[0]
    assert conv2d(spec, NATIVE).symbol == conv2d(dataclasses.replace(spec), NATIVE).symbol
    others = [
        conv2d(spec, NATIVE, parallel=True),
        conv2d(dataclasses.replace(spec, batch=2), NATIVE),
        conv2d(spec, TARGETS[1]),
    ]
    assert len({conv2d(spec, NATIVE).symbol, *(kernel.symbol for kernel in others)}) == 4


def test_object_code_is_deterministic() -> None:
    def build() -> bytes:
        kernels = [conv2d(spec, NATIVE) for spec in LARGE[:3]]
        return object_code(module([kernel.func for kernel in kernels]), NATIVE)

    assert build() == build()


@pytest.mark.parametrize("name", ["arm64-linux", "wasm", "x86-64-v3", "x86-64-v4"])
def test_kernels_compile_for_every_target(name: str) -> None:
    on = target(name)
    assert name in target_names()
    kernels = [conv2d(spec, on) for spec in LARGE[:4]]
    assert len(object_code(module([kernel.func for kernel in kernels]), on)) > 1000


def test_errors_say_what_is_wrong() -> None:
    with pytest.raises(SecateurError, match="unknown target 'z80'"):
        target("z80")
    with pytest.raises(SecateurError, match="not a multiple of 3 groups"):
        ConvSpec(1, 4, 8, 8, 4, (1, 1), groups=3)
    with pytest.raises(SecateurError, match="larger than the padded image"):
        ConvSpec(1, 4, 2, 2, 4, (3, 3))
    with pytest.raises(SecateurError, match="no method 'winograd2'"):
        conv2d(ConvSpec(1, 4, 8, 8, 4, (2, 2)), NATIVE, method="winograd2")
    with pytest.raises(SecateurError, match="no schedule for activation 'swoosh'"):
        conv2d(ConvSpec(1, 4, 8, 8, 4, (1, 1), epilogue=Epilogue(activation="swoosh")), NATIVE)


@pytest.mark.parametrize(
    ("hidden", "vector_bytes", "registers"),
    [(set(), 64, 32), ({"avx512f", "avx512vl"}, 32, 16), ({"avx512f", "avx2", "fma"}, 16, 16)],
)
def test_native_never_promises_what_the_kernel_hides(
    hidden: set[str], vector_bytes: int, registers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"sse4_2", *target_module._V3, *target_module._V4} - hidden
    monkeypatch.setattr(target_module, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(target_module.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(target_module.llvm, "llvm_get_system_cpu", lambda: "znver4")
    native = target_module._native.__wrapped__()
    assert (native.vector_bytes, native.vector_registers) == (vector_bytes, registers)
    assert (native.cpu == "znver4") == (not hidden)
    assert native.to_tvm().kind.name == "llvm"


def test_native_on_arm_is_neon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(target_module.llvm, "llvm_get_system_cpu", lambda: "neoverse-n1")
    native = target_module._native.__wrapped__()
    assert (native.triple, native.cpu, native.vector_bytes) == ("aarch64-linux-gnu", "neoverse-n1", 16)
    assert native.lanes() == 4
