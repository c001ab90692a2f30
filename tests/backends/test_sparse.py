"""Sparse schedules: right on any shape, block and sparsity, on narrow and wide machines; zeros in a file are found."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

from backends.lowering import lower
from backends.schedules import ConvSpec, Epilogue, MatMulSpec, SparseConvSpec, sparse_conv2d
from backends.schedules.sparse_matmul import SparseMatMulSpec, sparse_matmul, supported
from backends.selection import choose_conv, choose_matmul
from backends.target import Target
from compiler.errors import SecateurError
from compiler.frontends.onnx import load_onnx
from tests.backends.inprocess import run_models
from tests.backends.schedules_harness import TOLERANCE, Library

NATIVE = Target.native()
TARGETS = {
    "native": NATIVE,
    "avx2": dataclasses.replace(NATIVE, vector_bytes=32, vector_registers=16),
    "neon": dataclasses.replace(NATIVE, vector_bytes=16, vector_registers=32),
    "half": dataclasses.replace(NATIVE, vector_bytes=16, vector_registers=32, dtype="float16"),
}
EPILOGUES = [
    Epilogue(),
    Epilogue(True),
    Epilogue(True, True, "relu"),
    Epilogue(False, True),
    Epilogue(True, False, "clip", 0.0, 6.0),
    Epilogue(True, True, "gelu"),
    Epilogue(True, False, "silu"),
]


def specs(seed: int, count: int) -> Iterator[SparseConvSpec]:
    """Random layers: odd channels, odd pixels, strides, dilations, groups, every block height and tile."""
    r = np.random.default_rng(seed)
    for index in range(count):
        groups = int(r.choice([1, 1, 1, 2, 5]))
        inputs, outputs = groups * int(r.integers(1, 68 // groups)), groups * int(r.integers(1, 68 // groups))
        plain = index % 3 == 0
        kernel = (1, 1) if plain else tuple(int(k) for k in r.integers(1, 6, 2))
        strides = (1, 1) if plain and index % 2 else tuple(int(k) for k in r.integers(1, 4, 2))
        dilations = (1, 1) if plain else tuple(int(k) for k in r.choice([1, 1, 2], 2))
        pads = (0, 0, 0, 0) if plain else tuple(int(p) for p in r.integers(0, 4, 4))
        size = [int(r.choice([1, 3, 7, 14, 28, int(r.integers(1, 114))])) for _ in range(2)]
        need = [max(1, dilations[i] * (kernel[i] - 1) + 1 - pads[i] - pads[i + 2]) for i in range(2)]
        height, width = (max(a, b) for a, b in zip(size, need, strict=True))
        epilogue = EPILOGUES[int(r.integers(len(EPILOGUES)))]
        batch = int(r.integers(1, 3))
        conv = ConvSpec(batch, inputs, height, width, outputs, kernel, strides, pads, dilations, groups, epilogue)
        block = int(r.choice([1, 2, 3, 4]))
        vectors, unroll = int(r.integers(1, 8 // block + 2)), int(r.choice([1, 1, 2]))
        patterns = index % 4 == 1
        deltas = SparseConvSpec(conv).packs and not patterns and index % 3 == 0
        yield SparseConvSpec(conv, block, vectors, unroll, bool(r.integers(2)), patterns, deltas=deltas)


def grouped_weights(r: np.random.Generator, conv: ConvSpec, n: int, m: int) -> np.ndarray:
    """Weights of which n of every m consecutive inputs are not zero."""
    per_group = conv.in_channels // conv.groups
    shape = (conv.out_channels, per_group // m, m, *conv.kernel)
    kept = np.argsort(np.argsort(r.random(shape), axis=2), axis=2) < n
    return (r.standard_normal(shape) * kept).astype(np.float32).reshape(conv.out_channels, per_group, *conv.kernel)


@pytest.mark.parametrize("name", TARGETS)
def test_nm_convolutions_of_all_shapes(name):
    on, r = TARGETS[name], np.random.default_rng(4)
    chosen = []
    for index, spec in enumerate(specs(len(name) + 50, 14)):
        n, m = [(2, 4), (1, 4), (1, 8), (3, 16)][index % 4]
        inputs = m * int(r.integers(1, 5)) * spec.conv.groups
        conv = dataclasses.replace(spec.conv, in_channels=inputs)
        chosen.append((SparseConvSpec(conv, 1, spec.vectors, 1, spec.packed, nm=(n, m)), bool(index % 2)))
    kernels = [sparse_conv2d(spec, on, parallel) for spec, parallel in chosen]
    library = Library([kernel.func for kernel in kernels], on)
    for index, ((spec, _), kernel) in enumerate(zip(chosen, kernels, strict=True)):
        conv = spec.conv
        w = grouped_weights(r, conv, *spec.nm)
        w[:: 1 + index % 3] *= index % 3 != 1  # rows without a nonzero
        bias = r.standard_normal(conv.out_channels).astype(np.float32)
        shape = (conv.batch, conv.out_channels, conv.out_height, conv.out_width)
        arrays = {"x": r.standard_normal((conv.batch, conv.in_channels, conv.height, conv.width)).astype(np.float32)}
        if conv.epilogue.residual:
            arrays["residual"] = r.standard_normal(shape).astype(np.float32)
        expected = reference(conv, arrays, w, bias)
        library.set_tasks(1 + index % 4)
        actual = library.call(kernel, {**arrays, **kernel.pack(w, bias)}, shape, bool(index % 3))
        error = np.linalg.norm(actual.astype(np.float64) - expected)
        assert error <= TOLERANCE[on.dtype] * np.linalg.norm(expected) + 1e-30, spec


def test_nm_weights_are_found_and_stored_with_a_byte_for_their_place():
    conv = ConvSpec(1, 64, 14, 14, 96, (1, 1))
    w = grouped_weights(np.random.default_rng(2), conv, 1, 8)
    choice = choose_conv(conv, w, NATIVE)
    assert choice.chosen.format == "1:8"
    packed = choice.chosen.make(NATIVE, False).pack(w, None)
    assert packed["values"].size == w.size // 8 and packed["offsets"].dtype == np.uint8
    with pytest.raises(SecateurError, match="E_SPEC"):
        SparseConvSpec(conv, 2, nm=(2, 4))


def test_neighbouring_blocks_are_stored_with_a_byte_for_their_distance():
    conv = ConvSpec(1, 1024, 14, 14, 64, (1, 1))
    w = np.random.default_rng(2).standard_normal((64, 1024, 1, 1)).astype(np.float32)
    w[np.repeat(np.random.default_rng(3).random((16, 1024)) >= 0.1, 4, 0)] = 0
    packed = choose_conv(conv, w, NATIVE).chosen.make(NATIVE, False).pack(w, None)
    assert packed["positions"].dtype == np.uint8
    w[:, 1:1000] = 0
    packed = choose_conv(conv, w, NATIVE).chosen.make(NATIVE, False).pack(w, None)
    assert packed["positions"].dtype == np.uint16
    with pytest.raises(SecateurError, match="E_SPEC"):
        SparseConvSpec(dataclasses.replace(conv, kernel=(3, 3)), deltas=True)


def reference(conv: ConvSpec, arrays: dict[str, np.ndarray], w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    top, left, bottom, right = conv.pads
    x = F.pad(torch.tensor(arrays["x"]), (left, right, top, bottom))
    used = torch.tensor(bias) if conv.epilogue.bias else None
    y = F.conv2d(x, torch.tensor(w), used, conv.strides, 0, conv.dilations, conv.groups)
    if conv.epilogue.residual:
        y = y + torch.tensor(arrays["residual"])
    return activated(conv.epilogue, y)


def activated(epilogue: Epilogue, y: torch.Tensor) -> np.ndarray:
    rules = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "clip": lambda v: torch.clip(v, 0, 6), None: lambda v: v}
    return rules[epilogue.activation](y).numpy()


@pytest.mark.parametrize("name", TARGETS)
def test_sparse_convolutions_of_all_shapes(name):
    on, r = TARGETS[name], np.random.default_rng(9)
    chosen = [(spec, bool(i % 2)) for i, spec in enumerate(specs(len(name), 26))]
    kernels = [sparse_conv2d(spec, on, parallel) for spec, parallel in chosen]
    library = Library([kernel.func for kernel in kernels], on)
    for index, ((spec, _), kernel) in enumerate(zip(chosen, kernels, strict=True)):
        conv = spec.conv
        w = r.standard_normal((conv.out_channels, conv.in_channels // conv.groups, *conv.kernel)).astype(np.float32)
        w[r.random(w.shape) >= (0.1, 0.3, 1.0, 0.0, 0.02)[index % 5]] = 0
        w[:: 1 + index % 4] *= index % 4 != 1  # rows without a nonzero
        bias = r.standard_normal(conv.out_channels).astype(np.float32)
        shape = (conv.batch, conv.out_channels, conv.out_height, conv.out_width)
        arrays = {"x": r.standard_normal((conv.batch, conv.in_channels, conv.height, conv.width)).astype(np.float32)}
        if conv.epilogue.residual:
            arrays["residual"] = r.standard_normal(shape).astype(np.float32)
        expected = reference(conv, arrays, w, bias)
        library.set_tasks(1 + index % 4)
        actual = library.call(kernel, {**arrays, **kernel.pack(w, bias)}, shape, bool(index % 3))
        error = np.linalg.norm(actual.astype(np.float64) - expected)
        assert error <= TOLERANCE[on.dtype] * np.linalg.norm(expected) + 1e-30, spec


def products(seed: int, count: int) -> Iterator[SparseMatMulSpec]:
    """Random products with the constant on either side, one row or many, with and without batch."""
    r = np.random.default_rng(seed)
    for index in range(count):
        side = "b" if index % 4 else "a"
        batch, m, k, n = int(r.choice([1, 1, 3])), int(r.choice([1, r.integers(1, 40), r.integers(40, 114)])), 0, 0
        k, n = int(r.integers(1, 68)), int(r.integers(1, 68))
        epilogue = EPILOGUES[int(r.integers(len(EPILOGUES)))]
        product = MatMulSpec(
            batch,
            m,
            k,
            n,
            transpose_a=side == "a" and bool(r.integers(2)),
            transpose_b=side == "b" and bool(r.integers(2)),
            weight_side=side,
            a_batched=side == "b",
            b_batched=side == "a",
            epilogue=epilogue,
            bias_axis="n" if side == "b" else "m",
        )
        block = int(r.choice([1, 2, 4]))
        vectors, unroll = int(r.integers(1, 8 // block + 1)), int(r.choice([1, 2]))
        yield SparseMatMulSpec(product, block, vectors, unroll, index % 4 == 1, deltas=index % 4 == 2)


@pytest.mark.parametrize("name", TARGETS)
def test_sparse_products_of_all_shapes(name):
    on, r = TARGETS[name], np.random.default_rng(8)
    chosen = [(spec, bool(i % 2)) for i, spec in enumerate(products(len(name), 16))]
    kernels = [sparse_matmul(spec, on, parallel) for spec, parallel in chosen]
    library = Library([kernel.func for kernel in kernels], on)
    for index, ((spec, _), kernel) in enumerate(zip(chosen, kernels, strict=True)):
        p = spec.matmul
        a = r.standard_normal((p.batch, p.m, p.k)[0 if p.a_batched else 1 :]).astype(np.float32)
        b = r.standard_normal((p.batch, p.k, p.n)[0 if p.b_batched else 1 :]).astype(np.float32)
        constant = a if p.weight_side == "a" else b
        constant[r.random(constant.shape) >= (0.1, 0.3, 1.0, 0.0)[index % 4]] = 0
        bias = r.standard_normal(p.m if p.bias_axis == "m" else p.n).astype(np.float32)
        y = a @ b
        if p.epilogue.bias:
            y = y + (bias[:, None] if p.bias_axis == "m" else bias)
        arrays = {"b": b} if p.weight_side == "a" else {"a": a}
        if p.epilogue.residual:
            arrays["residual"] = r.standard_normal(y.shape).astype(np.float32)
            y = y + arrays["residual"]
        expected = activated(p.epilogue, torch.tensor(y))
        library.set_tasks(1 + index % 4)
        stored = constant.T if p.transpose_a or p.transpose_b else constant
        actual = library.call(kernel, {**arrays, **kernel.pack(stored, bias)}, expected.shape, bool(index % 3))
        error = np.linalg.norm(actual.astype(np.float64) - expected)
        assert error <= TOLERANCE[on.dtype] * np.linalg.norm(expected) + 1e-30, spec


def test_products_without_a_sparse_schedule_are_refused():
    with pytest.raises(SecateurError, match="E_SPEC"):
        SparseMatMulSpec(MatMulSpec(1, 4, 4, 4))
    turned = MatMulSpec(1, 8, 8, 8, transpose_a=True, weight_side="b", b_batched=False)
    assert not supported(turned)
    with pytest.raises(SecateurError, match="E_SPEC"):
        sparse_matmul(SparseMatMulSpec(turned), NATIVE)


def test_equal_shapes_share_their_code():
    conv = ConvSpec(1, 16, 8, 8, 16, (1, 1))
    first, second = (sparse_conv2d(SparseConvSpec(conv), NATIVE) for _ in range(2))
    assert first.symbol == second.symbol
    assert first.symbol != sparse_conv2d(SparseConvSpec(conv, 2), NATIVE).symbol


def test_a_tile_needs_at_least_one_vector():
    with pytest.raises(SecateurError, match="E_SPEC"):
        SparseConvSpec(ConvSpec(1, 1, 1, 1, 1, (1, 1)), vectors=0)


def pruned(seed: int, shape: tuple[int, ...], density: float, block: int = 1) -> np.ndarray:
    r = np.random.default_rng(seed)
    w = r.standard_normal(shape).astype(np.float32)
    keep = np.repeat(r.random((shape[0] // block, *shape[1:])) < density, block, axis=0)
    return np.where(keep, w, np.float32(0))


@pytest.mark.parametrize(
    ("density", "block", "expected"),
    [(1.0, 1, "dense"), (0.1, 1, "csr"), (0.1, 4, "4x1"), (0.4, 1, "4-row patterns"), (0.9, 1, "dense")],
)
def test_the_format_follows_the_zeros(density, block, expected):
    choice = choose_conv(ConvSpec(1, 256, 14, 14, 256, (1, 1)), pruned(0, (256, 256, 1, 1), density, block), NATIVE)
    assert choice.chosen.format == expected
    assert all(choice.chosen.cycles <= other.cycles for other in choice.others) or expected == "dense"


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
def test_compact_weights_are_no_larger_than_they_are(density):
    """Also where Winograd's method or positions of four bytes would be faster."""
    compact = dataclasses.replace(NATIVE, compact=True)
    for spec in (
        ConvSpec(1, 64, 28, 28, 64, (3, 3), pads=(1, 1, 1, 1)),
        ConvSpec(1, 3, 64, 64, 32, (7, 7), (2, 2), pads=(3, 3, 3, 3)),
        ConvSpec(1, 48, 14, 14, 96, (1, 1)),
    ):
        w = pruned(3, (spec.out_channels, spec.in_channels, *spec.kernel), density)
        usual, small = choose_conv(spec, w, NATIVE).chosen, choose_conv(spec, w, compact).chosen
        packed = {role: a.nbytes for role, a in small.make(compact, False).pack(w, None).items() if role != "bias"}
        packed.pop("order", None)
        assert sum(packed.values()) <= 1.02 * w.nbytes + 2048
        assert abs(small.nbytes - sum(packed.values())) <= 0.02 * w.nbytes + 2048
        assert small.nbytes <= usual.nbytes


def test_tokens_get_a_sparse_product():
    spec = MatMulSpec(1, 128, 256, 256, weight_side="b", b_batched=False)
    assert choose_matmul(spec, pruned(0, (256, 256), 0.1), NATIVE).chosen.format == "csr"
    assert choose_matmul(spec, pruned(0, (256, 256), 1.0), NATIVE).chosen.format == "dense"
    blocks = pruned(0, (256, 256), 0.1, 4).T
    assert choose_matmul(spec, np.ascontiguousarray(blocks), NATIVE).chosen.format == "4x1"


def test_a_layer_without_nonzeros_costs_next_to_nothing():
    spec = ConvSpec(1, 64, 28, 28, 64, (3, 3), pads=(1, 1, 1, 1))
    choice = choose_conv(spec, np.zeros((64, 64, 3, 3), np.float32), NATIVE)
    assert choice.chosen.format != "dense" and choice.nonzeros == 0


def network() -> tuple[object, np.ndarray]:
    """Convolutions of each kind, one in ten weights left; the last one has none."""
    weights = {
        "stem": pruned(1, (24, 3, 3, 3), 1.0),
        "wide": pruned(2, (96, 24, 1, 1), 0.1),
        "deep": pruned(3, (96, 1, 3, 3), 1.0),
        "back": pruned(4, (24, 96, 1, 1), 0.1),
        "three": pruned(5, (48, 24, 3, 3), 0.1, 4),
        "head": pruned(6, (90, 48), 0.1),
        "bias": pruned(7, (90,), 1.0),
        "empty": np.zeros((48, 48, 3, 3), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["a"], pads=[1] * 4, strides=[2, 2]),
        helper.make_node("Conv", ["a", "wide"], ["b"], name="wide"),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "deep"], ["d"], pads=[1] * 4, group=96),
        helper.make_node("Conv", ["d", "back"], ["e"], name="back"),
        helper.make_node("Add", ["e", "a"], ["f"]),
        helper.make_node("Conv", ["f", "three"], ["g"], pads=[1] * 4, name="three"),
        helper.make_node("Sigmoid", ["g"], ["h"]),
        helper.make_node("Conv", ["h", "empty"], ["i"], pads=[1] * 4, name="empty"),
        helper.make_node("Add", ["i", "g"], ["j"]),
        helper.make_node("GlobalAveragePool", ["j"], ["k"]),
        helper.make_node("Flatten", ["k"], ["l"]),
        helper.make_node("Gemm", ["l", "head", "bias"], ["y"], transB=1, name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "sparse",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 37, 41])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return model, np.random.default_rng(0).standard_normal((1, 3, 37, 41)).astype(np.float32)


def test_a_sparse_network_agrees_with_onnx_runtime():
    model, x = network()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    (result,) = run_models([(model, {"x": x})])
    assert np.linalg.norm(result["y"] - expected) <= 1e-5 * np.linalg.norm(expected)


def test_the_program_tells_what_each_layer_got():
    program = lower(load_onnx(network()[0]), NATIVE)
    formats = {step.nodes[0]: step.details.get("format") for step in program.steps}
    assert formats["wide"] != "dense" and formats["three"] != "dense"
    three = next(step.details for step in program.steps if step.nodes[0] == "three")
    assert three["nonzeros"] < 0.2 * three["weights"] and three["cycles"] < three["dense_cycles"]
