"""Take the weights out of a ModelProto, so that what remains is small.

Large and external tensors become lazy constants under their names, and typed inputs in the model.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compiler.frontends.onnx.external import external_constant
from compiler.frontends.onnx.protos import bodies, defined, graphs
from compiler.ir import ArrayConstant, Constant, SecateurError

_SMALL = 1024
"""Tensors of up to this many elements may hold shapes or axes and stay in the model, for onnx to read."""

_MAX_DENSE_BYTES = 2**31
"""A sparse tensor that is larger than this when dense is refused: a few bytes may claim terabytes."""


def take_weights(model: onnx.ModelProto, folder: Path | None) -> dict[str, Constant]:
    """Remove large, sparse and external tensors from `model`; return them by the name they have in it now.

    Each one becomes a typed graph input; those inside bodies get a name of their own. Initializers that
    are also listed as inputs (IR version 3) are no inputs any more. `folder` is where external data lies.
    """
    for owner in (*graphs(model.graph), *model.functions):
        for node in owner.node:
            _make_dense(node)
    names = {name for graph in graphs(model.graph) for name in defined(graph)}
    weights: dict[str, Constant] = {}
    _take_from(model.graph, folder, weights)
    for body in graphs(model.graph):
        if body is not model.graph:
            _take_from_body(body, folder, weights, names)
    for owner in (*graphs(model.graph), *model.functions):
        for node in owner.node:
            for attribute in node.attribute:
                _load_external_attribute(attribute, folder)
    initializers = {t.name for t in model.graph.initializer}
    given = [i for i in model.graph.input if i.name not in initializers and i.name not in weights]
    typed = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(c.dtype), c.shape) for n, c in weights.items()
    ]
    del model.graph.input[:]
    model.graph.input.extend([*given, *typed])
    return weights


def decode(tensor: onnx.TensorProto, folder: Path | None = None) -> Constant:
    """A tensor as a constant; lazy when its data is external. E_INVALID_MODEL when it is malformed."""
    shape = tuple(tensor.dims)
    if tensor.data_type not in helper.get_all_tensor_dtypes() or any(d < 0 for d in shape):
        raise _invalid(tensor.name, f"has element type {tensor.data_type} and shape {list(shape)}")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return external_constant(tensor, shape, folder)
    try:
        return ArrayConstant(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise _invalid(tensor.name, f"does not hold {list(shape)} elements: {str(error).splitlines()[0]}") from None


def decode_sparse(sparse: onnx.SparseTensorProto) -> Constant:
    """A sparse tensor as a dense constant."""
    name, shape = sparse.values.name, tuple(sparse.dims)
    values, indices = decode(sparse.values).numpy(), decode(sparse.indices).numpy()
    if any(d < 0 for d in shape) or math.prod(shape) * values.dtype.itemsize > _MAX_DENSE_BYTES:
        raise _invalid(name, f"is sparse and too large to be made dense: {list(shape)}")
    dense = np.zeros(shape, values.dtype)
    try:
        places = np.unravel_index(indices, shape) if indices.ndim == 1 else tuple(indices.T)
        dense[places] = values
    except (ValueError, IndexError, TypeError) as error:
        raise _invalid(name, f"has sparse indices that do not fit {list(shape)}: {error}") from None
    return ArrayConstant(dense)


def _take_from(graph: onnx.GraphProto, folder: Path | None, weights: dict[str, Constant]) -> None:
    """Take the initializers and large Constant nodes of the outermost graph."""
    dense, sparse, nodes = list(graph.initializer), list(graph.sparse_initializer), list(graph.node)
    twice = _first_duplicate([t.name for t in dense] + [s.values.name for s in sparse])
    if twice is not None:
        raise _invalid(twice, "is defined twice")
    decoded = {t.name: decode(t, folder) for t in dense}  # small ones too, to find the damaged ones
    weights.update({t.name: decoded[t.name] for t in dense if _is_heavy(t)})
    weights.update({s.values.name: decode_sparse(s) for s in sparse})
    if weights or sparse:
        del graph.initializer[:], graph.sparse_initializer[:]
        graph.initializer.extend(t for t in dense if not _is_heavy(t))
    constants = {n.output[0]: t for n in nodes if (t := _heavy_constant(n)) is not None and n.output[0] not in weights}
    if constants:
        weights.update({name: decode(tensor, folder) for name, tensor in constants.items()})
        del graph.node[:]
        graph.node.extend(n for n in nodes if _heavy_constant(n) is None or n.output[0] not in constants)


def _take_from_body(body: onnx.GraphProto, folder: Path | None, weights: dict[str, Constant], names: set[str]) -> None:
    """Lift the heavy tensors of an If, Loop or Scan body to the outermost graph, under names of their own."""
    results = {o.name for o in body.output}
    heavy = {t.name: t for t in body.initializer if _is_heavy(t)}
    heavy |= {n.output[0]: t for n in body.node if (t := _heavy_constant(n)) is not None}
    renamed = {}
    for name, tensor in heavy.items():
        if name in results:  # a body must define its own results
            _load_external(tensor, folder)
            continue
        renamed[name] = _fresh(name, names)
        weights[renamed[name]] = decode(tensor, folder)
    initializers = [t for t in body.initializer if t.name not in renamed]
    initializers += [_named(decode_sparse(s), s.values.name) for s in body.sparse_initializer]
    nodes = [n for n in body.node if n.op_type != "Constant" or n.output[0] not in renamed]
    inputs = [i for i in body.input if i.name not in {t.name for t in body.initializer}]
    del body.initializer[:], body.sparse_initializer[:], body.node[:], body.input[:]
    body.initializer.extend(initializers)
    body.node.extend(nodes)
    body.input.extend(inputs)
    _rename_reads(body, renamed)


def _rename_reads(graph: onnx.GraphProto, renamed: dict[str, str]) -> None:
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in renamed:
                node.input[index] = renamed[name]
        for body in bodies(node):
            shadowed = set(defined(body))
            _rename_reads(body, {k: v for k, v in renamed.items() if k not in shadowed})


def _make_dense(node: onnx.NodeProto) -> None:
    """Turn a Constant's sparse value into a dense one."""
    for attribute in node.attribute:
        if node.op_type == "Constant" and attribute.name == "sparse_value":
            tensor = _named(decode_sparse(attribute.sparse_tensor), attribute.sparse_tensor.values.name)
            attribute.CopyFrom(helper.make_attribute("value", tensor))


def _is_heavy(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL or math.prod(tensor.dims) > _SMALL


def _heavy_constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node that should leave the model."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return None
    return next((a.t for a in node.attribute if a.name == "value" and a.HasField("t") and _is_heavy(a.t)), None)


def _load_external_attribute(attribute: onnx.AttributeProto, folder: Path | None) -> None:
    for tensor in (attribute.t, *attribute.tensors) if attribute.HasField("t") else attribute.tensors:
        _load_external(tensor, folder)


def _load_external(tensor: onnx.TensorProto, folder: Path | None) -> None:
    """Put external data inside the tensor."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        tensor.CopyFrom(_named(decode(tensor, folder), tensor.name))


def _named(constant: Constant, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(constant.numpy()).reshape(constant.shape), name)


def _fresh(base: str, names: set[str]) -> str:
    name, count = f"{base}_1", 1
    while name in names:
        count += 1
        name = f"{base}_{count}"
    names.add(name)
    return name


def _first_duplicate(names: list[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _invalid(name: str, problem: str) -> SecateurError:
    return SecateurError(
        "E_INVALID_MODEL",
        f"tensor {name!r} {problem}",
        where=f"tensor {name!r}",
        hint="the file is damaged or was written wrongly; export the model again",
    )
