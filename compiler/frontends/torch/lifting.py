"""torch's ONNX program to a Graph: constants named as in the module, nodes by the path of their module.

Weights stay in their own layout. What the network computes from weights alone (the transpose of a Linear's,
the gate order of an LSTM's) stays in the graph, under names that tell the weight.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxscript import optimizer

from compiler.frontends.onnx.bind import bind_shapes
from compiler.frontends.onnx.lift import lift
from compiler.frontends.onnx.normalise import normalise
from compiler.frontends.torch.capture import Captured, tensor_key
from compiler.ir import ArrayConstant, Constant, Graph, Node, Origin, Value, infer_shapes, verify

_SMALL = 1024
"""Constants of up to this many elements stay in the model while it is lifted, for onnx to read shapes from."""

_MOVES = frozenset(
    ("Cast", "CastLike", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze")
) | {"Transpose", "Unsqueeze"}

_OPTIONAL_ZEROS = {"Conv": (2,), "ConvTranspose": (2,), "LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
"""Operands that mean the same when they are zero and when they are left out; torch always spells them out."""


def lift_program(captured: Captured, shapes: Mapping[str, Sequence[int]], name: str) -> Graph:
    """The program as a Graph called `name`; `shapes` binds open dimensions of inputs."""
    model = captured.onnx.model
    parameters = _rename_weights(model, captured.names)
    _fold_shapes(model, parameters)
    _rename_inside(model)
    paths = {output.name: _path(node) for node in model.graph.all_nodes() for output in node.outputs}
    weights = _take_weights(model)
    proto = onnx_ir.to_proto(model)
    bind_shapes(proto.graph, shapes, weights)
    graph = lift(normalise(proto, allow_unknown=False), weights, name)
    infer_shapes(graph)
    _name_dimensions(graph, captured.dimensions)
    _copy_no_extents(graph)
    _expand_ones_only(graph)
    _leave_out_zeros(graph, parameters)
    _remove_dead(graph)
    _name_after_modules(graph, paths, parameters)
    _name_derived(graph, parameters)
    graph.metadata = {}
    infer_shapes(graph)
    verify(graph, where="after loading")
    return graph


def _rename_weights(model: onnx_ir.Model, names: Mapping[tuple, str]) -> set[str]:
    """Give each weight the first name that it has in the module, and one value; returns those names."""
    kept: dict[str, onnx_ir.Value] = {}
    for value in list(model.graph.initializers.values()):
        raw = getattr(value.const_value, "raw", None)
        known = names.get(tensor_key(raw)) if isinstance(raw, torch.Tensor) else None
        if known is None:
            continue
        if known in kept:
            value.replace_all_uses_with(kept[known], replace_graph_outputs=True)
            model.graph.initializers.pop(value.name or "")
        else:
            if value.name != known:
                value.name = known
            kept[known] = value
    return set(kept)


def _fold_shapes(model: onnx_ir.Model, parameters: set[str]) -> None:
    """Compute what depends on shapes alone; sequences that torch makes of split and chunk become tensors."""
    derived = {id(v) for n, v in model.graph.initializers.items() if n in parameters}

    def should_fold(node: onnx_ir.Node) -> bool | None:
        if node.op_type in ("Shape", "Size") or not any(id(v) in derived for v in node.inputs):
            return None
        derived.update(id(v) for v in node.outputs)
        return False

    optimizer.fold_constants(model, should_fold=should_fold)
    RemoveUnusedNodesPass()(model)


def _rename_inside(model: onnx_ir.Model) -> None:
    """Give what bodies compute names that nothing else has, so that a name tells where it comes from."""
    outer = {output for node in model.graph for output in node.outputs}
    taken = {value.name or "" for value in (*model.graph.inputs, *model.graph.initializers.values(), *outer)}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value not in outer and value.name:
                value.name = _unique(value.name, taken)


def _path(node: onnx_ir.Node) -> str:
    """The path of the module whose forward made the node; the last scope is the operation itself."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    path = str(scopes[-2]) if len(scopes) > 1 else ""
    return "" if path.startswith("_empty_nn_module_stack") else path  # torch's own name for "outside of any module"


def _take_weights(model: onnx_ir.Model) -> dict[str, Constant]:
    """Copies of the weights, so that training the module leaves the graph alone; larger ones leave the model."""
    weights: dict[str, Constant] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.size <= _SMALL:
            continue
        weights[name] = ArrayConstant(np.array(tensor.numpy()))
        model.graph.initializers.pop(name)
        model.graph.inputs.append(value)
        value.const_value = None
    return weights


def _name_dimensions(graph: Graph, dimensions: Sequence[Mapping[int, str]]) -> None:
    """Call open dimensions as the caller did, not as torch's tracer."""
    names: dict[str, str] = {}
    if len(dimensions) == len(graph.inputs):
        for value, given in zip(graph.inputs, dimensions, strict=True):
            for axis, name in given.items():
                extent = value.shape[axis] if value.shape is not None else None
                if isinstance(extent, str):
                    names.setdefault(extent, name)
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is not None:
            value.shape = tuple(names.get(d, d) if isinstance(d, str) else d for d in value.shape)


def _copy_no_extents(graph: Graph) -> None:
    """Clear `allowzero`: torch sets it on every Reshape, and it matters only to tensors without elements."""
    for node in graph.all_nodes():
        if node.op == "Reshape" and (shape := node.outputs[0].shape) is not None and 0 not in shape:
            node.attributes.pop("allowzero", None)


def _expand_ones_only(graph: Graph) -> None:
    """Write 1, which Expand leaves alone, for extents that the operand has already: they may change then.

    torch spells out every extent, such as the width of a class token that is repeated for an open batch.
    """
    taken = graph.names()
    nodes: list[Node] = []
    for node in graph.nodes:
        pieces = _with_ones(node, taken) if node.op == "Expand" else None
        if pieces is not None:
            target = Value(_unique(f"{node.outputs[0].name}_target", taken), np.int64, (len(pieces),))
            nodes.append(Node("Concat", pieces, [target], {"axis": 0}))
            node.inputs[1] = target
        nodes.append(node)
    graph.nodes = nodes


def _with_ones(node: Node, taken: set[str]) -> list[Value | None] | None:
    """The extents of an Expand, one an axis, with 1 for those of the operand; None when they are not concatenated."""
    x, target = node.input(0), node.input(1)
    concat = target.producer if target is not None else None
    if x is None or not x.shape or concat is None or concat.op != "Concat":
        return None
    pieces = list(concat.inputs)
    if any(piece is None or piece.shape != (1,) for piece in pieces) or len(pieces) < len(x.shape):
        return None
    for axis, extent in enumerate(x.shape, len(pieces) - len(x.shape)):
        piece = pieces[axis]
        if isinstance(extent, int) and extent != 1 and piece is not None and piece.is_constant:
            pieces[axis] = Value(_unique(f"{piece.name}_one", taken), data=np.ones(1, np.int64))
    return pieces


def _leave_out_zeros(graph: Graph, parameters: set[str]) -> None:
    for node in graph.all_nodes():
        for index in _OPTIONAL_ZEROS.get(node.op, ()):
            value = node.input(index)
            if value is not None and value.name not in parameters and _is_zero(value):
                node.inputs[index] = None
        while node.inputs and node.inputs[-1] is None:
            node.inputs.pop()


def _is_zero(value: Value) -> bool:
    """True when every element is zero, whatever the shape."""
    if value.data is not None:
        return value.data.size > 0 and not value.numpy().any()
    producer = value.producer
    if producer is None or producer.op not in _MOVES - {"Concat"} or producer.inputs[0] is None:
        return False
    return _is_zero(producer.inputs[0])


def _remove_dead(graph: Graph) -> None:
    live = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if live.isdisjoint(node.outputs):
            continue
        kept.append(node)
        live.update(v for v in node.inputs if v is not None)
        for item in node.attributes.values():
            if isinstance(item, Graph):
                live.update(item.outer_values())
    graph.nodes = kept[::-1]


def _name_after_modules(graph: Graph, paths: Mapping[str | None, str], parameters: set[str]) -> None:
    """torch says of every operation which module made it, save inside bodies; there the weights that it reads do."""
    taken: set[str] = set()
    outer = set(graph.nodes)
    for node in graph.all_nodes():
        path = next((paths[v.name] for v in node.outputs if v.name in paths), "")
        if not path and node not in outer:
            owners = (v.name.rpartition(".")[0] for v in node.inputs if v is not None and v.name in parameters)
            path = next(owners, "")
        node.origin = Origin("torch", path)
        node.name = _unique(f"{path}/{node.op}" if path else node.op, taken)


def _name_derived(graph: Graph, parameters: set[str]) -> None:
    """Name what is computed from weights alone after the first of them: `fc.weight.T`, `lstm.weight_ih_l0.concat`.

    Only the transpose of a whole matrix is called T, so that the name tells how to undo it.
    """
    source: dict[Value, str] = {v: v.name for v in graph.all_constants() if v.name in parameters}
    taken = graph.names()
    for node in graph.all_nodes():
        operands = [v for v in node.inputs if v is not None]
        known = [source[v] for v in operands if v in source]
        if not known or not all(v in source or v.is_constant for v in operands):
            continue
        for value in node.outputs:
            source[value] = known[0]
            if value not in graph.outputs:
                whole = node.op == "Transpose" and operands[0].is_constant and node.attribute("perm") == [1, 0]
                value.name = _unique(f"{known[0]}.{'T' if whole else node.op.lower()}", taken)


def _unique(base: str, taken: set[str]) -> str:
    name, count = base, 0
    while name in taken:
        count += 1
        name = f"{base}_{count}"
    taken.add(name)
    return name
