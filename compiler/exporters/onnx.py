"""Graph to an ONNX file that onnx.checker accepts and any runtime loads; equal graphs give equal bytes.

Large models get one external data file beside the model, written tensor by tensor, so that a model
larger than memory passes through.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import checker, numpy_helper

from compiler.exporters.output import check_output, replacing
from compiler.ir import Graph, SecateurError, Value, verify
from compiler.ir.proto import element_type, model_proto, own_domain, tensor_proto

EXTERNAL_BYTES = int(1.9 * 2**30)
"""Models with more constant data than this are written with external data; protobuf ends at 2 GiB."""

_INLINE_ELEMENTS = 1024
"""Constants of up to this many elements stay in the model file: readers need shapes and axes at once."""

_ALIGNMENT = 4096
"""External tensors start at multiples of a page, so that readers can map them."""


def save_onnx(
    graph: Graph, path: str | Path, *, external_data: bool | None = None, overwrite: bool = False
) -> tuple[Path, ...]:
    """Write the graph to `path`; returns the files written, the model first.

    external_data: weights go to `<path>.data` (default: only when they exceed 1.9 GiB). An existing file
    is replaced only with `overwrite`, and never a file that the graph still reads its weights from. The files appear
    whole or not at all. Raises E_OUTPUT, E_OUTPUT_EXISTS, E_OUTPUT_IS_INPUT, or what the verifier finds.
    """
    verify(graph, where="before export")
    constants = graph.all_constants()
    if external_data is None:
        external_data = sum(_nbytes(v) for v in constants) > EXTERNAL_BYTES
    sources = {source for v in constants if v.data is not None for source in v.data.sources()}
    path = check_output(path, sources, overwrite)
    large = [v for v in constants if _nbytes(v) and v.data is not None and v.data.size > _INLINE_ELEMENTS]
    model = _skeleton(graph, large)
    if not external_data:
        with replacing(path) as (model_file,):
            model.graph.initializer.extend(tensor_proto(v) for v in large)
            model_file.write_bytes(_serialize(model))
        return (path,)
    data_path = check_output(path.with_name(path.name + ".data"), sources, overwrite)
    with replacing(data_path, path) as (data_file, model_file):
        with data_file.open("wb") as stream:
            for value in large:
                model.graph.initializer.append(_write_external(value, stream, data_path.name))
        model_file.write_bytes(_serialize(model))
    return (path, data_path)


def to_model_proto(graph: Graph) -> onnx.ModelProto:
    """The graph as an onnx.ModelProto with its weights inside; E_TOO_LARGE when they exceed 1.9 GiB."""
    verify(graph, where="before export")
    size = sum(_nbytes(v) for v in graph.all_constants())
    if size > EXTERNAL_BYTES:
        raise SecateurError(
            "E_TOO_LARGE",
            f"{size / 2**30:.1f} GiB of weights do not fit into one ONNX message",
            where=graph.name,
            hint="use save_onnx, which writes external data",
        )
    return model_proto(graph)


def _skeleton(graph: Graph, large: list[Value]) -> onnx.ModelProto:
    """The checked model without the data of `large`."""
    model = model_proto(graph, data_limit=_INLINE_ELEMENTS)
    # The checker wants a shape of every output; one of unknown rank gets it for the check only.
    shapeless = [i.type.tensor_type for i in model.graph.output if not i.type.tensor_type.HasField("shape")]
    for kind in shapeless:
        kind.shape.SetInParent()
    moved = own_domain(model.graph.node)
    try:
        checker.check_model(model)
    except checker.ValidationError as error:
        raise SecateurError(
            "E_IR",
            "the graph is not a valid ONNX model",
            where=" ".join(str(error).split())[:300],
            hint="this is a defect of the pass or frontend that made the graph; please report it with the model",
        ) from None
    finally:
        for kind in shapeless:
            kind.ClearField("shape")
        for node in moved:
            node.domain = ""
    names = {v.name for v in large}
    inputs = [i for i in model.graph.input if i.name not in names]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return model


def _nbytes(value: Value) -> int:
    """Bytes of a constant's data in the file; strings have no size of their own and stay inside."""
    return 0 if value.data is None or value.data.dtype.kind == "O" else value.data.nbytes


def _write_external(value: Value, stream: BinaryIO, location: str) -> onnx.TensorProto:
    assert value.data is not None
    stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
    tensor = onnx.TensorProto(name=value.name, data_type=element_type(value.dtype), dims=value.data.shape)
    offset = stream.tell()
    _write_data(value, stream)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", str(offset)), ("length", str(stream.tell() - offset))):
        tensor.external_data.add(key=key, value=text)
    return tensor


def _write_data(value: Value, stream: BinaryIO) -> None:
    array = np.ascontiguousarray(value.numpy())
    packed = numpy_helper.from_array(array.reshape(-1)[:2]).raw_data
    if len(packed) < min(array.size, 2) * array.dtype.itemsize:  # elements smaller than a byte are packed
        stream.write(numpy_helper.from_array(array).raw_data)
    elif array.dtype.byteorder == ">":
        stream.write(array.astype(array.dtype.newbyteorder("<")).tobytes())
    else:
        array.tofile(stream)


def _serialize(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)
