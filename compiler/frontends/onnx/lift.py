"""onnx-graphsurgeon's graph to ours.

Graphsurgeon resolves names to tensors, bodies included; here they become typed Values and lazy
constants, every name becomes unique, and Constant nodes disappear.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper
from onnx_graphsurgeon.logger import G_LOGGER

from compiler.frontends.onnx.protos import all_nodes
from compiler.frontends.onnx.weights import decode, decode_sparse
from compiler.ir import ArrayConstant, Constant, Graph, Node, Origin, SecateurError, Value

_SPELLED_OUT: dict[str, dict[str, Any]] = {"MeanVarianceNormalization": {"axes": [0, 2, 3]}}
"""Defaults that onnx's shape inference loses when they are left out."""

Scope = dict[str, Value]
"""The values of the enclosing graphs by their name in the source."""


def lift(model: onnx.ModelProto, weights: Mapping[str, Constant], name: str) -> Graph:
    """The model as a Graph called `name`; inputs named in `weights` become constants with that data."""
    try:
        with G_LOGGER.suppress():
            source = gs.import_onnx(model)
    except UnicodeDecodeError:
        raise SecateurError(
            "E_INVALID_MODEL", "a string attribute is not UTF-8 text", hint="export the model again"
        ) from None
    graph = _Lift(weights, source).graph(source, {})
    graph.name = name
    used = {n.domain for n in all_nodes(model)}
    graph.domains = {e.domain: e.version for e in model.opset_import if e.domain and e.domain in used}
    graph.metadata = {p.key: p.value for p in model.metadata_props}
    return graph


class _Lift:
    """Values by tensor, and the names that are taken."""

    def __init__(self, weights: Mapping[str, Constant], source: gs.Graph) -> None:
        self._weights = weights
        self._values: dict[int, Value] = {}
        # Names of the outermost graph come first, so that only names inside bodies ever change.
        self._names = {t.name for n in source.nodes for t in (*n.inputs, *n.outputs)}
        self._names |= {t.name for t in (*source.inputs, *source.outputs)}
        self._node_names: set[str] = set()
        self._opset = int(source.opset)
        self._keep: list[gs.Graph] = []  # tensors are looked up by id, so they must outlive the lifting

    def graph(self, source: gs.Graph, scope: Scope, outermost: bool = True) -> Graph:
        """Lift one graph; `scope` are the values that it may read from outside."""
        self._keep.append(source)
        own: Scope = {}

        def define(tensor: gs.Tensor) -> Value:
            name = tensor.name if outermost else self._unique(tensor.name, self._names)
            value = Value(name, _dtype(tensor), _shape(tensor))
            own[tensor.name] = self._values[id(tensor)] = value
            return value

        def read(tensor: gs.Tensor) -> Value | None:
            if not tensor.name:
                return None
            if id(tensor) not in self._values:
                data = self._data(tensor)
                if data is None and tensor.name in own:
                    return own[tensor.name]
                if data is None and tensor.name in scope:
                    return scope[tensor.name]
                if data is None:
                    raise _undefined(tensor.name)
                name = tensor.name if outermost else self._unique(tensor.name, self._names)
                own[tensor.name] = self._values[id(tensor)] = Value(name, data=data)
            return self._values[id(tensor)]

        inputs = [define(t) for t in source.inputs if t.name not in self._weights or not outermost]
        nodes = []
        for item in source.nodes:
            constant = _constant_data(item)
            if constant is not None:
                name = item.outputs[0].name
                value = Value(name if outermost else self._unique(name, self._names), data=constant)
                own[name] = self._values[id(item.outputs[0])] = value
                continue
            operands = [read(t) for t in item.inputs]
            attributes = {k: self._attribute(a, {**scope, **own}) for k, a in item.attrs.items()}
            results = self._results(item, define)
            nodes.append(self._node(item, operands, results, attributes))
        outputs = [read(t) for t in source.outputs]
        return Graph(source.name or "body", inputs, [v for v in outputs if v is not None], nodes, self._opset)

    def _data(self, tensor: gs.Tensor) -> Constant | None:
        if not isinstance(tensor, gs.Constant):
            return self._weights.get(tensor.name)
        proto = tensor._values.tensor
        return decode_sparse(proto) if isinstance(proto, onnx.SparseTensorProto) else decode(proto)

    def _results(self, item: gs.Node, define: Any) -> list[Value]:
        """The node's results; omitted ones at the end are dropped, those in between get a name."""
        tensors = list(item.outputs)
        while tensors and not tensors[-1].name:
            tensors.pop()
        base = item.name or next((t.name for t in tensors if t.name), item.op)
        return [
            define(t) if t.name else Value(self._unique(f"{base}_unused{i}", self._names))
            for i, t in enumerate(tensors)
        ]

    def _node(self, item: gs.Node, operands: list[Value | None], results: list[Value], attributes: Any) -> Node:
        original = item.name or (results[0].name if results else item.op)
        name = self._unique(original, self._node_names)
        least = _least_operands(item, self._opset)
        while len(operands) > least and operands[-1] is None:
            operands.pop()
        if not item.domain:
            attributes = _SPELLED_OUT.get(item.op, {}) | attributes
        return Node(
            item.op, operands, results, attributes, name=name, domain=item.domain or "", origin=Origin("onnx", original)
        )

    def _attribute(self, item: Any, scope: Scope) -> Any:
        if isinstance(item, gs.Graph):
            return self.graph(item, scope, outermost=False)
        if isinstance(item, gs.Constant):
            return decode(item._values.tensor).numpy()
        return item

    def _unique(self, base: str, names: set[str]) -> str:
        name, count = base, 0
        while name in names:
            count += 1
            name = f"{base}_{count}"
        names.add(name)
        return name


def _least_operands(item: gs.Node, opset: int) -> int:
    """How many operands must be written, omitted ones included: a Loop's two before its states."""
    try:
        return int(onnx.defs.get_schema(item.op, opset, item.domain or "").min_input)
    except onnx.defs.SchemaError:
        return 0


def _constant_data(item: gs.Node) -> Constant | None:
    """The data of a Constant node, whichever of its attributes holds it; None for any other node."""
    if item.op != "Constant" or item.domain or len(item.attrs) != 1:
        return None
    (key, held), *_ = item.attrs.items()
    if isinstance(held, gs.Constant):
        proto = held._values.tensor
        return decode_sparse(proto) if isinstance(proto, onnx.SparseTensorProto) else decode(proto)
    kind: Any = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return ArrayConstant(np.array(held, dtype=kind.get(key, object)))


def _dtype(tensor: gs.Tensor) -> np.dtype | None:
    if tensor.dtype is None or getattr(tensor, "type", "tensor_type") != "tensor_type":
        return None
    # Graphsurgeon leaves the types that numpy lacks (bfloat16, float8) as ONNX numbers.
    if isinstance(tensor.dtype, int):
        return None if tensor.dtype == 0 else np.dtype(helper.tensor_dtype_to_np_dtype(tensor.dtype))
    return np.dtype(tensor.dtype)


def _shape(tensor: gs.Tensor) -> tuple[int | str | None, ...] | None:
    if tensor.shape is None or getattr(tensor, "type", "tensor_type") != "tensor_type":
        return None
    return tuple(d if d != "" else None for d in tensor.shape)


def _undefined(name: str) -> SecateurError:
    return SecateurError(
        "E_INVALID_MODEL",
        f"{name!r} is read, but nothing defines it",
        where=f"tensor {name!r}",
        hint="the file is damaged or was cut; export the model again",
    )
