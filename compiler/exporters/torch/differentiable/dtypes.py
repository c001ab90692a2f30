"""Element types: numpy's and ONNX's as torch's, in a module whose precision may have been changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper

_TORCH = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bool": torch.bool,
    "complex64": torch.complex64,
    "complex128": torch.complex128,
    **{f"int{bits}": getattr(torch, f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": getattr(torch, f"uint{bits}") for bits in (8, 16, 32, 64)},
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e4m3fnuz": torch.float8_e4m3fnuz,
    "float8_e5m2": torch.float8_e5m2,
    "float8_e5m2fnuz": torch.float8_e5m2fnuz,
    "int4": torch.int8,  # held one to a byte
    "int2": torch.int8,
    "uint4": torch.uint8,
    "uint2": torch.uint8,
}

_CARRIER = {"uint16": torch.int32, "uint32": torch.int64, "uint64": torch.int64}
"""Unsigned integers that torch hardly computes with travel in a wider type; the module gives them out as they are."""

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""The floating-point types that networks compute in."""


def torch_dtype(kind: np.dtype | int | str) -> torch.dtype | None:
    """The torch dtype of a numpy dtype or of an ONNX element type; None when torch has none."""
    if isinstance(kind, int):
        if kind == TensorProto.STRING:
            return None
        kind = helper.tensor_dtype_to_np_dtype(kind)
    return _TORCH.get(np.dtype(kind).name)


def is_float(dtype: np.dtype | None) -> bool:
    """True for the types that gradients flow in."""
    return dtype is not None and dtype.name in FLOATS


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """A copy of the data as a torch tensor."""
    array = np.array(array, order="C")
    name = array.dtype.name
    dtype = _TORCH[name]
    if name == "bfloat16" or name.startswith("float8"):
        return torch.from_numpy(array.view(np.int16 if name == "bfloat16" else np.uint8)).view(dtype)
    if name in ("int4", "int2", "uint4", "uint2"):
        array = array.astype(np.int8 if name.startswith("int") else np.uint8)
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def carried(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in the type that its elements travel in."""
    carrier = _CARRIER.get(str(tensor.dtype).removeprefix("torch."))
    return tensor if carrier is None else tensor.to(carrier)


def as_array(tensor: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    """A copy of the tensor's data as a numpy array of `dtype`."""
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16 or (tensor.is_floating_point() and tensor.dtype.itemsize == 1):
        tensor = tensor.float()
    return np.array(tensor.numpy()).astype(dtype)


class Floats:
    """What each of the graph's floating-point types is in the module now: `.double()` and `.half()` change it.

    anchors: an empty buffer of the module for each type, which moves with it.
    """

    def __init__(self, anchors: Mapping[str, torch.Tensor]) -> None:
        self._anchors = anchors

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(iter(self._anchors.values())).device

    def dtype(self, kind: Any) -> torch.dtype:
        """The torch dtype that a numpy dtype or an ONNX element type travels in."""
        name = _name(kind)
        return _CARRIER.get(name) or self.outside(name)

    def outside(self, kind: Any) -> torch.dtype:
        """The torch dtype in which a numpy dtype or an ONNX element type leaves the module."""
        name = _name(kind)
        return self._anchors[name].dtype if name in self._anchors else _TORCH[name]


def _name(kind: Any) -> str:
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind) if isinstance(kind, int) else kind).name
