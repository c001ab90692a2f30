"""External data: where a tensor's bytes lie outside the model file, checked before anything reads them.

The location must be a file inside the model's own folder: a model from a stranger must not read
/etc/passwd or another user's files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compiler.ir import Constant, MappedConstant, SecateurError

_PACKED_BITS = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
"""Element types whose data is packed, several elements to a byte."""


def packed_bits(element_type: int) -> int | None:
    """Bits of an element of a packed type, None for the others."""
    return _PACKED_BITS.get(onnx.TensorProto.DataType.Name(element_type))


@dataclass(frozen=True)
class PackedConstant(Constant):
    """Packed sub-byte elements at `offset` bytes of `path`, unpacked when they are read."""

    path: Path
    offset: int
    length: int
    element_type: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def numpy(self) -> np.ndarray:
        tensor = onnx.TensorProto(data_type=self.element_type, dims=self.shape)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            tensor.raw_data = file.read(self.length)
        return numpy_helper.to_array(tensor)

    def sources(self) -> frozenset[Path]:
        return frozenset({self.path})


def external_constant(tensor: onnx.TensorProto, shape: tuple[int, ...], folder: Path | None) -> Constant:
    """The lazily read data of a tensor whose `data_location` is EXTERNAL; E_EXTERNAL_DATA when it is not sound."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if folder is None:
        raise _error(
            tensor, entries, "the model was given in memory, so its folder is unknown", "load the model by its path"
        )
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    bits = packed_bits(tensor.data_type)
    size = math.prod(shape)
    expected = size * dtype.itemsize if bits is None else -(-size * bits // 8)
    if dtype.kind == "O":
        raise _error(tensor, entries, "strings cannot be external", "save the model again with its strings inside")
    path = _locate(tensor, entries, folder)
    offset = _number(tensor, entries, "offset", 0)
    length = _number(tensor, entries, "length", expected)
    if length != expected:
        raise _error(
            tensor,
            entries,
            f"length is {length} but {dtype.name}{list(shape)} takes {expected} bytes",
            "the model file and its data file do not belong together; fetch both again",
        )
    available = path.stat().st_size
    if offset + length > available:
        raise _error(
            tensor,
            entries,
            f"its {length} bytes at {offset} reach past the end of the file ({available} bytes)",
            "the data file is cut short; fetch it again",
        )
    if bits is not None:
        return PackedConstant(path, offset, length, tensor.data_type, dtype, shape)
    return MappedConstant(path, offset, dtype, shape)


def _locate(tensor: onnx.TensorProto, entries: dict[str, str], folder: Path) -> Path:
    location = entries.get("location", "")
    together = "keep the data file beside the model file"
    if not location or "\0" in location:
        raise _error(tensor, entries, "no location is given", "save the model again with onnx.save_model")
    if Path(location).is_absolute() or location.startswith("\\") or location[1:2] == ":":
        raise _error(tensor, entries, "an absolute location is not allowed", f"{together} and name it relatively")
    path = folder / location
    inside = folder.resolve()
    try:
        resolved = path.resolve()
        exists = resolved.exists()
    except (OSError, RuntimeError):
        raise _error(tensor, entries, "the location cannot be followed", together) from None
    if not resolved.is_relative_to(inside):
        how = "is a symbolic link that leaves" if ".." not in Path(location).parts else "lies outside"
        raise _error(tensor, entries, f"the location {how} the model's folder", f"{together}, as a real file")
    if not exists:
        raise _error(tensor, entries, "the data file is missing", f"{together}; fetch it from the model's source")
    if not resolved.is_file():
        raise _error(tensor, entries, "the location is not a regular file", together)
    return path


def _number(tensor: onnx.TensorProto, entries: dict[str, str], key: str, default: int) -> int:
    text = entries.get(key)
    if text is None:
        return default
    # int() also takes '1_0' and '٣'; only plain digits are an offset.
    if not (text.isascii() and text.isdigit() and len(text) < 30):
        raise _error(tensor, entries, f"{key} is {text!r}, not a number of bytes", "save the model again")
    return int(text)


def _error(tensor: onnx.TensorProto, entries: dict[str, str], problem: str, hint: str) -> SecateurError:
    location = entries.get("location", "")
    return SecateurError(
        "E_EXTERNAL_DATA",
        f"the external data of tensor {tensor.name!r} cannot be used: {problem}",
        where=f"tensor {tensor.name!r}, location {location!r}",
        hint=hint,
    )
