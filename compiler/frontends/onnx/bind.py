"""Bind the symbolic dimensions of a model's inputs, and name those that stay symbolic."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence

import onnx

from compiler.ir import SecateurError


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read `NAME=1x3x224x224`, the form of the --shape option; `NAME=` is a scalar. E_SHAPE_OPTION when malformed."""
    name, equals, extents = text.rpartition("=")
    parts = [p.strip() for p in extents.replace(",", "x").split("x")] if extents.strip() else []
    if not equals or not name or not all(p.isascii() and p.isdigit() for p in parts):
        raise SecateurError("E_SHAPE_OPTION", f"cannot read the shape {text!r}", hint="write NAME=1x3x224x224")
    return name, tuple(int(p) for p in parts)


def bind_shapes(
    graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]], weights: Collection[str] = frozenset()
) -> None:
    """Give the inputs in `shapes` these shapes, in place; symbols that other inputs share are bound too.

    Dimensions that stay open keep their name or get one (`input_dim0`), so no input extent is unknown.
    Recorded shapes of inner values are dropped: they are inferred again. The inputs named in `weights`
    stand for weights and are left alone.
    """
    inputs = {i.name: i for i in graph.input if i.name not in weights}
    symbols: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            close = difflib.get_close_matches(name, inputs, 1)
            raise SecateurError(
                "E_UNKNOWN_INPUT",
                f"the model has no input called {name!r}",
                hint=f"did you mean {close[0]!r}?" if close else f"its inputs: {', '.join(inputs) or 'none'}",
            )
        _bind(inputs[name], [int(d) for d in shape], symbols)
    for info in (*graph.input, *graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
    del graph.value_info[:]
    _name_open_dims(graph)


def _bind(info: onnx.ValueInfoProto, shape: list[int], symbols: dict[str, int]) -> None:
    tensor = info.type.tensor_type
    if any(d < 0 for d in shape):
        raise _contradiction(info, shape, "extents cannot be negative")
    if not tensor.HasField("shape"):
        for extent in shape:
            tensor.shape.dim.add(dim_value=extent)
        return
    if len(tensor.shape.dim) != len(shape):
        raise _contradiction(info, shape, f"the input has {len(tensor.shape.dim)} axes")
    for axis, (dim, extent) in enumerate(zip(tensor.shape.dim, shape, strict=True)):
        if dim.dim_value > 0 and dim.dim_value != extent:
            raise _contradiction(info, shape, f"axis {axis} is {dim.dim_value} in the model")
        if dim.dim_param and symbols.setdefault(dim.dim_param, extent) != extent:
            raise _contradiction(info, shape, f"{dim.dim_param!r} is already {symbols[dim.dim_param]}")
        dim.dim_value = extent


def _name_open_dims(graph: onnx.GraphProto) -> None:
    taken = {d.dim_param for i in (*graph.input, *graph.output) for d in i.type.tensor_type.shape.dim}
    for info in graph.input:
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if dim.dim_param or dim.dim_value > 0 or (dim.HasField("dim_value") and dim.dim_value == 0):
                continue
            name = f"{info.name}_dim{axis}"
            while name in taken:
                name += "_"
            taken.add(name)
            dim.dim_param = name


def _contradiction(info: onnx.ValueInfoProto, shape: list[int], problem: str) -> SecateurError:
    declared = ",".join(
        d.dim_param or (str(d.dim_value) if d.dim_value > 0 else "?") for d in info.type.tensor_type.shape.dim
    )
    return SecateurError(
        "E_BIND_SHAPE",
        f"input {info.name!r} cannot be {'x'.join(map(str, shape))}: {problem}",
        where=f"input {info.name!r} [{declared}]",
        hint="only open dimensions can be bound; export the model again for other static shapes",
    )
