"""The ONNX frontend: a file or a ModelProto of opset 7 or newer becomes a Graph at MIN_OPSET or newer.

Weights never travel with the model: they are taken out first, so that checking, inlining and
converting cost the same for a model of 14 GB as for its skeleton.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from compiler.frontends.onnx.bind import bind_shapes
from compiler.frontends.onnx.lift import lift
from compiler.frontends.onnx.normalise import normalise
from compiler.frontends.onnx.read import check_fields, read_model
from compiler.frontends.onnx.weights import take_weights
from compiler.ir import Graph, SecateurError, infer_shapes, verify

__all__ = ["load_onnx"]


def load_onnx(
    source: str | Path | onnx.ModelProto,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    name: str | None = None,
    allow_unknown: bool = False,
) -> Graph:
    """Read an ONNX model; external data stays on disk until a pass reads it.

    shapes: input name -> shape, binds symbolic dimensions. name: what to call the graph.
    allow_unknown: keep operators that neither onnx nor a shape rule knows, instead of E_UNKNOWN_OP.
    A ModelProto is not changed. Raises SecateurError for whatever is wrong with the file.
    """
    try:
        return _load(source, shapes or {}, name, allow_unknown)
    except SecateurError as error:
        if not isinstance(source, onnx.ModelProto) and str(source) not in error.where:
            error.where = f"{source}: {error.where}" if error.where else str(source)
        raise


def _load(
    source: str | Path | onnx.ModelProto, shapes: Mapping[str, Sequence[int]], name: str | None, allow_unknown: bool
) -> Graph:
    if isinstance(source, onnx.ModelProto):
        model, folder, default_name = onnx.ModelProto(), None, "main"
        model.CopyFrom(source)
    else:
        model, folder, default_name = read_model(Path(source)), Path(source).parent, Path(source).stem
    check_fields(model)
    weights = take_weights(model, folder)
    bind_shapes(model.graph, shapes, weights)
    model = normalise(model, allow_unknown)
    graph = lift(model, weights, name or model.graph.name or default_name)
    infer_shapes(graph)
    verify(graph, where="after loading")
    return graph
