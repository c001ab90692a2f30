"""Bytes on disk to a ModelProto, with one clear error for each kind of file that is no ONNX model.

External data is not touched here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from compiler.ir import SecateurError

_EXPORT_HINT = "export the network to ONNX first, for example with torch.onnx.export(model, args, 'model.onnx')"

_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PK\x03\x04", "a zip archive, such as a PyTorch checkpoint", _EXPORT_HINT),
    (0, b"\x80\x02", "a Python pickle, such as a PyTorch checkpoint", _EXPORT_HINT),
    (0, b"\x89HDF", "an HDF5 file, such as Keras weights", "convert it with tf2onnx or keras.Model.export"),
    (4, b"TFL3", "a TensorFlow Lite model", "convert it with tf2onnx --tflite"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it with gunzip or tar first"),
    (8, b"{", "safetensors weights without a network", _EXPORT_HINT),
    (0, b"GGUF", "GGUF weights without a network", _EXPORT_HINT),
)
"""(offset, bytes at it, what the file is, what to do)."""

_ELEMENT_TYPES = frozenset(onnx.TensorProto.DataType.values())

_LFS = b"version https://git-lfs"
_MAX_BYTES = 2**31 - 1


def read_model(path: Path) -> onnx.ModelProto:
    """The model in the file, weights in external files not loaded.

    Raises E_FILE (cannot be read), E_LFS_POINTER, or E_NOT_ONNX.
    """
    data = _read_bytes(path)
    _refuse_foreign(path, data)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise SecateurError(
            "E_NOT_ONNX",
            "the file is not an ONNX model, or it is cut short",
            where=str(path),
            hint="check the file's size against its source and download it again",
        ) from None
    if not model.HasField("graph"):
        raise SecateurError(
            "E_NOT_ONNX",
            "the file is a protobuf message without a graph, not an ONNX model",
            where=str(path),
            hint="give the .onnx file of the model, not a tensor or a saved input",
        )
    return model


def check_fields(message: Message) -> None:
    """Refuse text that is not UTF-8 and element types that do not exist, anywhere in a message; E_INVALID_MODEL.

    Protobuf lets both through, and everything after this relies on them.
    """
    if isinstance(message, onnx.TypeProto.Tensor) and message.elem_type not in _ELEMENT_TYPES:
        raise _damaged(f"element type {message.elem_type} does not exist")
    if isinstance(message, onnx.TensorProto):  # its other fields are numbers, and many
        fields: list[tuple[FieldDescriptor, Any]] = [
            (message.DESCRIPTOR.fields_by_name[name], getattr(message, name)) for name in ("name", "external_data")
        ]
    else:
        fields = message.ListFields()
    for field, value in fields:
        items = value if field.is_repeated else (value,)
        if field.type == FieldDescriptor.TYPE_STRING and not all(isinstance(i, str) for i in items):
            raise _damaged(f"a text (field {field.name!r}) is not UTF-8")
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for item in items:
                check_fields(item)


def _damaged(problem: str) -> SecateurError:
    return SecateurError(
        "E_INVALID_MODEL", f"the model is damaged: {problem}", hint="fetch the file again, or export the model again"
    )


def _read_bytes(path: Path) -> bytes:
    try:
        if path.is_dir():
            raise SecateurError("E_FILE", "a directory is not a model", where=str(path), hint=_folder_hint(path))
        if not path.exists():
            raise SecateurError("E_FILE", "there is no such file", where=str(path), hint="check the path")
        if not path.is_file():
            raise SecateurError("E_FILE", "not a regular file", where=str(path), hint="give the path of a .onnx file")
        if path.stat().st_size > _MAX_BYTES:
            raise SecateurError(
                "E_FILE",
                "the file is larger than 2 GiB, the limit of ONNX files",
                where=str(path),
                hint="save the model with its weights as external data",
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SecateurError(
            "E_FILE", f"the file cannot be read: {reason}", where=str(path), hint="check the path and its permissions"
        ) from None


def _folder_hint(path: Path) -> str:
    models = sorted(p.name for p in path.glob("*.onnx"))
    if models:
        return f"give one of the models in it: {', '.join(models[:5])}"
    if (path / "saved_model.pb").exists():
        return "it is a TensorFlow SavedModel; convert it with tf2onnx --saved-model"
    return "give the path of a .onnx file"


def _refuse_foreign(path: Path, data: bytes) -> None:
    def refuse(what: str, hint: str, code: str = "E_NOT_ONNX") -> SecateurError:
        return SecateurError(code, f"the file is {what}, not an ONNX model", where=str(path), hint=hint)

    if not data:
        raise refuse("empty", "download or export the model again")
    if data.startswith(_LFS):
        raise refuse("a Git LFS pointer", "fetch the model itself with: git lfs pull", "E_LFS_POINTER")
    for offset, signature, what, hint in _SIGNATURES:
        if data[offset : offset + len(signature)] == signature:
            raise refuse(what, hint)
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"<"):
        raise refuse("a web page", "the download gave a page in place of the file; use the raw download link")
    if head.startswith((b"{", b"[")):
        raise refuse("JSON", _EXPORT_HINT)
    if _is_text(data[:512]):
        raise refuse("text", _EXPORT_HINT)


def _is_text(head: bytes) -> bool:
    # A serialized model starts with the tag 0x08 of ir_version, a control character that no text holds.
    return not any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
