"""A kernel with all that a call of it needs, so that it can be timed here, on another machine, or by a C program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from backends.schedules.kernel import Kernel
from backends.schedules.specs import ConvSpec, MatMulSpec

_LINE = 64


@dataclass(frozen=True)
class Trial:
    """A kernel, its packed constants by role, and the bytes of each parameter by role, in order."""

    kernel: Kernel
    packed: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]


def trial(kernel: Kernel, spec: ConvSpec | MatMulSpec, weights: np.ndarray) -> Trial:
    """The kernel of a layer with these weights, and a bias of zeros where it adds one."""
    size = spec.out_channels if isinstance(spec, ConvSpec) else spec.m if spec.bias_axis == "m" else spec.n
    packed = kernel.pack(weights, np.zeros(size, np.float32) if spec.epilogue.bias else None)
    held = {role: 4 * elements for role, elements in activations(spec).items()}
    held |= {role: array.nbytes for role, array in packed.items()} | {"workspace": kernel.workspace_bytes}
    return Trial(kernel, packed, {role: held[role] for role in kernel.params})


def activations(spec: ConvSpec | MatMulSpec) -> dict[str, int]:
    """Elements of the activations by role."""
    if isinstance(spec, ConvSpec):
        out = spec.batch * spec.out_channels * spec.out_height * spec.out_width
        return {"x": spec.batch * spec.in_channels * spec.height * spec.width, "residual": out, "y": out}
    out = spec.batch * spec.m * spec.n
    return {"a": spec.batch * spec.m * spec.k, "b": spec.batch * spec.k * spec.n, "residual": out, "y": out}


def calls_source(kernels: Sequence[Kernel], name: str) -> str:
    """C source of `int32_t NAME(int32_t index, void *const *p)`, which calls a kernel with its parameters in order."""
    functions = {kernel.symbol: len(kernel.params) for kernel in kernels}
    declarations = "".join(f"extern int32_t {s}({', '.join(['void *'] * n)});\n" for s, n in sorted(functions.items()))
    cases = "".join(
        f"    case {i}: return {kernel.symbol}({', '.join(f'p[{j}]' for j in range(len(kernel.params)))});\n"
        for i, kernel in enumerate(kernels)
    )
    head = f"int32_t {name}(int32_t index, void *const *p) {{\n  switch (index) {{\n"
    return f"#include <stdint.h>\n{declarations}{head}{cases}    default: return -1;\n  }}\n}}\n"


def contents(trials: Sequence[Trial]) -> tuple[list[list[tuple[int, int]]], bytes]:
    """The bytes of each array of each trial and where its content begins in the data that is returned too.

    -1 for arrays of numbers that any will do for: only positions have to be what they are.
    """
    places, data = [], bytearray()
    for made in trials:
        rows = []
        for role, size in made.sizes.items():
            array, offset = made.packed.get(role), -1
            if array is not None and array.dtype.kind != "f":
                offset = len(data)
                data += array.tobytes() + bytes(-array.nbytes % _LINE)
            rows.append((size, offset))
        places.append(rows)
    return places, bytes(data)
