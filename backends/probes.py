"""Small kernels of every kind that selection weighs: what a device is timed with to learn its costs.

They come from the schedules that models are compiled from, and what they should take comes from selection's own
formulas, so that their times say how large the constants in costs.py are on that device (see profile.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from backends.schedules.conv import conv2d
from backends.schedules.dense_cost import dense_methods
from backends.schedules.kernel import Kernel
from backends.schedules.matmul import matmul
from backends.schedules.sparse_conv import SparseConvSpec, sparse_conv2d
from backends.schedules.sparse_matmul import SparseMatMulSpec, outputs_first, sparse_matmul
from backends.schedules.specs import ConvSpec, MatMulSpec
from backends.selection import Stored, dense_matmul_cycles, encodings, sparse_conv_cycles, sparse_matmul_cycles
from backends.target import Target

_TILES = 3
"""Register tiles that a probe's image is cut into."""
_STREAM = 8192, 1024
"""Rows and columns of weights, 32 MiB, that come from memory each time."""


@dataclass(frozen=True)
class Probe:
    """A kernel to time. weights: its constant operand; cycles: what it takes by the costs of a target."""

    name: str
    spec: ConvSpec | MatMulSpec
    weights: np.ndarray
    make: Callable[[Target], Kernel]
    cycles: Callable[[Target], float]

    @property
    def multiply_adds(self) -> int:
        """Of scalars, those with zeros left out."""
        if self.spec.macs and self.weights.size:
            return max(1, round(self.spec.macs * np.count_nonzero(self.weights) / self.weights.size))
        return self.spec.macs


@dataclass(frozen=True)
class _Sparse:
    """A 1x1 convolution with weights in one format. tile: vectors of pixels; uneven: pixels are no whole vectors."""

    format: str
    tile: int
    inputs: int
    outputs: int
    density: float
    uneven: bool = False
    packed: bool = False


def probes(target: Target) -> tuple[Probe, ...]:
    """The kernels that a device of this kind is timed with; those whose sums do not fit the registers are left out."""
    found = [_dense("dense product", ConvSpec(1, 128, 1, 12 * target.lanes(), 128, (1, 1)))]
    for name, case in _sparse_cases(target).items():
        probe = _sparse(name, case, target)
        found += [] if probe is None else [probe]
    windows = ConvSpec(1, 16, 14, 14, 8, (3, 3), pads=(1, 1, 1, 1))
    strided = ConvSpec(1, 16, 28, 28, 8, (3, 3), (2, 2), (1, 1, 1, 1))
    found += [_dense("gathered windows", windows), _dense("gathered windows, strided", strided)]
    found.append(_dense("depthwise windows", ConvSpec(1, 32, 28, 28, 32, (3, 3), pads=(1, 1, 1, 1), groups=32)))
    found += [_turned(target), _streamed()]
    return tuple(found)


def _sparse_cases(target: Target) -> dict[str, _Sparse]:
    """By where the vectors come from: the first cache, the second (three first ones full), memory."""
    line = 4 * target.lanes()
    near = max(16, min(64, int(0.35 * target.l1_bytes / (8 * line))))
    far, distant = int(3 * target.l1_bytes / (4 * line)), int(1.25 * target.l2_bytes / (8 * line))
    cases = {f"single weights, {v} vectors": _Sparse("csr", v, near, 64, 0.4) for v in (2, 4, 8)}
    cases |= {
        "single weights, 4 vectors across lines": _Sparse("csr", 4, near, 64, 0.4, uneven=True),
        "single weights, 4 vectors far": _Sparse("csr", 4, far, 24, 0.1),
        "single weights, 4 vectors far across lines": _Sparse("csr", 4, far, 24, 0.1, uneven=True),
        "single weights, 8 vectors distant": _Sparse("csr", 8, distant, 8, 0.05),
        "single weights, few": _Sparse("csr", 4, near, 256, 1.5 / near),
        "single weights, packed": _Sparse("csr", 4, 4 * near, 8, 0.1, packed=True, uneven=True),
    }
    for block, name in ((2, "pairs of rows"), (4, "four rows")):
        cases |= {f"{name}, {v} vectors": _Sparse(f"{block}x1", v, near, 64, 0.4) for v in (2, 4)}
        cases[f"{name}, 2 vectors far"] = _Sparse(f"{block}x1", 2, 2 * far, 32, 0.1)
        cases[f"{name}, few"] = _Sparse(f"{block}x1", 2, near, 256, 1.5 / near)
        cases[f"{name} by pattern"] = _Sparse(f"{block}-row patterns", 2, near, 64, 0.4)
    return cases


def _sparse(name: str, case: _Sparse, target: Target) -> Probe | None:
    pixels = _TILES * case.tile * target.lanes() - (3 if case.uneven else 0)
    conv = ConvSpec(1, case.inputs, 1, pixels, case.outputs, (1, 1))
    block = int(case.format[0]) if case.format.endswith("x1") else 1
    weights = _weights(name, case.outputs, case.inputs, case.density, block)
    stored = _stored(weights, case.format)
    spec = SparseConvSpec(conv, stored.block, case.tile, 1, case.packed, stored.patterns, deltas=stored.deltas)
    if spec.registers(target) > target.vector_registers:
        return None
    return Probe(
        name,
        conv,
        weights.reshape(case.outputs, case.inputs, 1, 1),
        functools.partial(sparse_conv2d, spec),
        functools.partial(sparse_conv_cycles, spec, stored),
    )


def _dense(name: str, spec: ConvSpec) -> Probe:
    """The schedule that computes the sum as written."""
    shape = (spec.out_channels, spec.in_channels // spec.groups, *spec.kernel)
    return Probe(
        name,
        spec,
        np.ones(shape, np.float32),
        lambda target: conv2d(spec, target, method="direct"),
        lambda target: dense_methods(spec, target)["direct"],
    )


def _turned(target: Target) -> Probe:
    """A sparse product of rows that are turned round and back, and little else."""
    product = MatMulSpec(1, 8 * target.lanes(), 64, 64, weight_side="b", b_batched=False)
    weights = np.ascontiguousarray(_weights("turned", 64, 64, 0.05, 1).T)
    stored = _stored(outputs_first(product, weights), "csr")
    spec = SparseMatMulSpec(product, 1, 4, deltas=stored.deltas)
    return Probe(
        "rows turned round",
        product,
        weights,
        functools.partial(sparse_matmul, spec),
        functools.partial(sparse_matmul_cycles, spec, stored),
    )


def _streamed() -> Probe:
    """One row by weights that no cache keeps."""
    depth, width = _STREAM
    product = MatMulSpec(1, 1, depth, width, weight_side="b", b_batched=False)
    return Probe(
        "weights from memory",
        product,
        np.ones((depth, width), np.float32),
        functools.partial(matmul, product),
        functools.partial(dense_matmul_cycles, product, depth * width),
    )


def _weights(name: str, rows: int, columns: int, density: float, block: int) -> np.ndarray:
    """Ones in blocks of `block` rows, drawn with numpy's frozen generator: a probe is the same in every version."""
    draw = np.random.RandomState(sum(name.encode()))
    mask = draw.random_sample((-(-rows // block), columns)) < density
    return np.ascontiguousarray(np.repeat(mask, block, axis=0)[:rows]).astype(np.float32)


def _stored(matrix: np.ndarray, name: str) -> Stored:
    found: Iterator[Stored] = encodings([matrix])
    return next(stored for stored in found if stored.name == name)
