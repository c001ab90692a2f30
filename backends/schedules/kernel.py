"""What a schedule hands to the code generator: one C function, its parameters' roles, its packing of weights.

Every factory in this package returns a `Kernel`; nothing outside needs to know how its loops look.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm

from backends.target import Target

#: Alignment in bytes that `workspace`, every packed array and every activation's base must have.
ALIGNMENT = 64


@dataclass(frozen=True)
class Kernel:
    """A compiled-to-be function with a C interface.

    symbol: unique and derived from the contents: equal spec, target and mode give the same symbol and code.
    func: PrimFunc with one typed handle per role in `params`, returning int32 (0).
    params: role of each pointer in order. Activations: x, residual, y (matmul: a, b); packed constants: the keys
        of what `pack` returns; `workspace`: scratch of `workspace_bytes`, absent if that is 0.
    pack: raw weights (and bias) -> packed float32 arrays by role, at compile time; `stored` rounds them.
    macs: multiply-accumulates of the layer itself.

    y must not overlap any other argument. Kernels are reentrant, and read and write only the given arrays.
    """

    symbol: str
    func: tvm.tirx.PrimFunc
    params: tuple[str, ...]
    workspace_bytes: int
    pack: Callable[..., dict[str, np.ndarray]]
    macs: int

    def dtype(self, role: str) -> str:
        """The element type of a parameter."""
        return str(self.func.params[self.params.index(role)].ty.element_type.dtype)

    def stored(self, role: str, array: np.ndarray) -> np.ndarray:
        """Floats for a role, as `pack` returns them, rounded to the element type that the kernel reads."""
        return array.astype(self.dtype(role)) if array.dtype.kind == "f" else array


def symbol_for(family: str, spec: object, target: Target, parallel: bool) -> str:
    """A C identifier that names `spec` on `target` by its contents."""
    text = repr((family, _plain(spec), dataclasses.replace(target, threads=1), parallel))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{family}_{digest}{'_mt' if parallel else ''}"


def _plain(spec: object) -> object:
    if dataclasses.is_dataclass(spec) and not isinstance(spec, type):
        return (type(spec).__name__, dataclasses.astuple(spec))
    return spec
