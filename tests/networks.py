"""Small networks written in ONNX's own text form, for tests that state what they expect by hand."""

from __future__ import annotations

import zlib

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compiler.frontends import load
from compiler.ir import Graph
from passes import Pipeline


def network_proto(text: str, opset: int = 21) -> onnx.ModelProto:
    """The model of `(inputs) => (outputs) { nodes }`. Inputs not called x… become random constants of unit gain."""
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : {opset}, "custom" : 1, "com.microsoft" : 1]> net {text}'
    )
    kept = [i for i in model.graph.input if i.name.startswith("x")]
    weights = [i for i in model.graph.input if not i.name.startswith("x")]
    for info in weights:
        shape = tuple(d.dim_value for d in info.type.tensor_type.shape.dim)
        rng = np.random.default_rng(zlib.crc32(info.name.encode()))
        dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        if info.name.startswith("v"):  # variances
            array = rng.uniform(0.5, 1.5, shape)
        elif dtype.kind in "iu":
            array = rng.integers(-40 if dtype.kind == "i" else 0, 41, shape)
        else:
            array = rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))
        model.graph.initializer.append(numpy_helper.from_array(array.astype(dtype), info.name))
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model


def network(text: str, opset: int = 21, simplify: bool = True) -> Graph:
    """The graph of a text, simplified (which turns Constant nodes into constants)."""
    graph = load(network_proto(text, opset), allow_unknown=True)
    return Pipeline("simplify")(graph) if simplify else graph
