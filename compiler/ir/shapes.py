"""Types and shapes of every value.

The standard operators are inferred by onnx itself, with its data propagation; `@shape_rule` adds
operators of other domains, one rule each. Where onnx makes up a name for an extent, or gives up, one walk
through the graph follows the inputs' symbols further (`symbolic_shapes`), so that what is the batch is called so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from compiler.errors import SecateurError
from compiler.ir.graph import Dim, Graph, Node, Value, subgraphs
from compiler.ir.loops import loop_states
from compiler.ir.proto import model_proto, node_proto, tensor_proto, value_info
from compiler.ir.shape_values import ShapeValues
from compiler.ir.symbolic_shapes import SYMBOLIC_RULES, learn
from compiler.ir.symbols import Extent

_LIKE_FIRST_OPERAND = ("GroupNormalization",)
"""Standard operators that a function defines, through which onnx loses the shape; results are like the operand."""

_INFERENCE_OPSET = 22
"""At least this version's rules are used: those before it count windows of a ceil_mode pooling that begin in the
padding, where the operators and ONNX Runtime have none. The two versions differ in nothing else but more types."""

ShapeRule = Callable[[Node], list[tuple[np.dtype | None, tuple[Dim, ...] | None]]]
"""Given a node whose inputs are typed, the (dtype, shape) of each output."""

SHAPE_RULES: dict[tuple[str, str], ShapeRule] = {}

INVENTED = "unk__"
"""How the symbols begin that onnx makes up for extents which it cannot name."""

_LONGEST = 100
"""Names longer than this say nothing to a reader, and are left to onnx."""

_SHAPE_DATA_LIMIT = 1024
"""Constants of up to this many elements may hold shapes, axes or indices, and keep their data for inference."""


def shape_rule(op: str, domain: str) -> Callable[[ShapeRule], ShapeRule]:
    """Register the shape rule of `domain::op`, an operator that onnx does not know."""

    def register(rule: ShapeRule) -> ShapeRule:
        SHAPE_RULES[domain, op] = rule
        return rule

    return register


def infer_shapes(graph: Graph) -> None:
    """Recompute dtype and shape of every node's outputs in place, from the inputs and constants.

    Values that cannot be inferred keep None, save that graph outputs keep the extents that the model
    declares for them. Raises SecateurError `E_SHAPE` when the operators contradict their inputs.
    """
    graphs = [graph, *graph.all_bodies()]
    declared = {value: value.shape for g in graphs for value in g.outputs}
    nodes = list(graph.all_nodes())
    states = loop_states(nodes)
    settled = False
    while not settled:
        for node in nodes:
            for value in node.outputs:
                value.shape = None
        for state in states:
            state.result.shape = state.shape
        _infer(graph, nodes)
        widened = [state.widen() for state in states]
        settled = not any(widened)
    symbols = {d for value in graph.inputs for d in value.shape or () if isinstance(d, str)}
    names = Counter(d for shape in declared.values() for d in shape or () if d not in symbols)
    # A name that the exporter gives to several extents says nothing of them (torch names two axes alike).
    trusted = symbols.union(name for name, count in names.items() if isinstance(name, str) and count == 1)
    for value, shape in declared.items():
        value.shape = _refine(value.shape, shape, trusted)


def _infer(graph: Graph, nodes: Sequence[Node]) -> None:
    """One round: the standard operators, then the others, which may let the standard ones know more."""
    _infer_standard(graph)
    for _ in nodes:
        if not _apply_rules(graph, nodes):
            break
        _infer_standard(graph)
    if any(v.static_shape is None for node in nodes for v in node.outputs if v.name):
        ranked = _Naming(graph).run()
        if ranked and any(True for _ in graph.all_bodies()):
            _infer_standard(graph)
            _Naming(graph).run()


def _apply_rules(graph: Graph, nodes: Sequence[Node]) -> bool:
    """Type the results of operators that onnx does not know; True when that is news.

    On the way, standard operators are inferred one by one as far as the next of the others needs it, so that a deep
    network takes one walk. What is found of them is forgotten again: onnx sees more in the whole graph.
    """
    news, guessed = False, []
    for node in nodes:
        rule = SHAPE_RULES.get((node.domain, node.op))
        if rule is not None:
            before = [v.shape for v in node.outputs]
            for value, (dtype, shape) in zip(node.outputs, rule(node), strict=False):
                value.dtype, value.shape = dtype, shape
            news |= before != [v.shape for v in node.outputs]
        elif news and any(v.shape is None for v in node.outputs):
            for value, (dtype, shape) in zip(node.outputs, _infer_node(node, graph), strict=False):
                if value.shape is None and shape is not None:
                    guessed.append(value)
                    value.dtype, value.shape = dtype, shape
    for value in guessed:
        value.shape = None
    return news


class _Naming:
    """One walk that replaces the names that onnx makes up by what they are in terms of the inputs' symbols."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._values = ShapeValues()
        self._seen = {d for value in graph.inputs for d in value.shape or ()}
        self._resolved: dict[Dim, Dim] = {}
        self._made_up = 0

    def run(self) -> bool:
        """Rewrite shapes in place; True when the rank of a value became known."""
        return self._visit_all(self._graph)

    def _visit_all(self, graph: Graph) -> bool:
        found = False
        for node in graph.nodes:
            for body in subgraphs(node):
                for value in body.inputs:
                    self._rename(value)
                    self._seen.update(value.shape or ())
                facts = dict(self._values.facts)
                found |= self._visit_all(body)
                self._values.facts = facts  # what a body shows need not hold where it does not run
            found |= self._visit(node)
        return found

    def _visit(self, node: Node) -> bool:
        """Name the extents of a node's results; True when a rank that was not known is."""
        unranked = [v for v in node.outputs if v.name and v.shape is None]
        for value in node.outputs:
            self._rename(value)
        if unranked or any(self._is_new(d) for v in node.outputs for d in v.shape or ()):
            for value, shape in zip(node.outputs, self._better(node), strict=False):
                if value.name:
                    self._adopt(value, shape)
        self._seen.update(d for v in node.outputs for d in v.shape or ())
        if node.op == "Reshape" and not node.domain:
            learn(node, self._values)
        self._values.evaluate(node)
        return any(v.shape is not None for v in unranked)

    def _rename(self, value: Value) -> None:
        if value.shape is not None and self._resolved:
            value.shape = tuple(self._resolved.get(d, d) for d in value.shape)

    def _is_new(self, dim: Dim) -> bool:
        """True for an extent without a name, or whose made-up name appears for the first time."""
        return dim is None or (isinstance(dim, str) and dim.startswith(INVENTED) and dim not in self._seen)

    def _better(self, node: Node) -> list[tuple[Dim, ...] | None]:
        if any(v is not None and v.shape is None for v in node.inputs):
            rule = None
        else:
            rule = SYMBOLIC_RULES.get(node.op) if not node.domain else None
        if rule is not None:
            return rule(node, self._values)
        if (node.domain, node.op) in SHAPE_RULES:
            return [shape for _, shape in SHAPE_RULES[node.domain, node.op](node)]
        return [shape for _, shape in _infer_node(node, self._graph)]

    def _adopt(self, value: Value, shape: tuple[Dim, ...] | None) -> None:
        """Take over what is new; what onnx knows, and is not made up, stays."""
        if shape is None or (value.shape is not None and len(shape) != len(value.shape)):
            return
        if value.shape is None:
            value.shape = (None,) * len(shape)
        for old, new in zip(value.shape, shape, strict=True):
            if old is not None and self._is_new(old) and new is not None and len(str(new)) <= _LONGEST:
                self._resolved[old] = new
        value.shape = tuple(
            self._resolved.get(old, old) if old is not None else self._name(new)
            for old, new in zip(value.shape, shape, strict=True)
        )

    def _name(self, dim: Dim) -> Dim:
        """An extent, or a name that nothing else has for one that is not known."""
        if dim is not None and len(str(dim)) <= _LONGEST:
            return dim
        self._made_up += 1
        return f"{INVENTED}s{self._made_up}"


def _infer_node(node: Node, graph: Graph) -> list[tuple[np.dtype | None, tuple[Dim, ...] | None]]:
    """What onnx infers of one node from the types of its operands."""
    if any(True for _ in subgraphs(node)) or any(v is not None and v.dtype is None for v in node.inputs):
        return []
    operands = [v for v in node.inputs if v is not None]
    small = [v for v in operands if v.data is not None and v.data.size <= _SHAPE_DATA_LIMIT]
    try:
        version = graph.domains.get(node.domain, 1) if node.domain else max(graph.opset, _INFERENCE_OPSET)
        types = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op, version, node.domain),
            node_proto(node),
            {v.name: value_info(v).type for v in operands},
            {v.name: tensor_proto(v) for v in small},
            opset_imports=[helper.make_opsetid(node.domain, version)],
        )
    except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, RuntimeError):
        return []
    return [_read_type(types[v.name]) if v.name in types else (None, None) for v in node.outputs]


def _refine(
    inferred: tuple[Dim, ...] | None, declared: tuple[Dim, ...] | None, trusted: set[str]
) -> tuple[Dim, ...] | None:
    """The inferred shape; extents that are neither numbers nor said in symbols of inputs are as declared."""
    if inferred is None:
        return None if declared is None else tuple(d if isinstance(d, int) or d in trusted else None for d in declared)
    if declared is None or len(inferred) != len(declared):
        return inferred
    return tuple(
        d if isinstance(d, int | str) and (isinstance(d, int) or d in trusted) and _is_made_up(i, trusted) else i
        for i, d in zip(inferred, declared, strict=True)
    )


def _is_made_up(dim: Dim, symbols: set[str]) -> bool:
    return dim is None or any(INVENTED in atom and atom not in symbols for atom in Extent.of(dim).symbols)


def _infer_standard(graph: Graph) -> None:
    skeleton = model_proto(graph, data_limit=_SHAPE_DATA_LIMIT)
    _prepare(skeleton.graph, {t.name: t for t in skeleton.graph.initializer})
    for imported in skeleton.opset_import:
        if not imported.domain:
            imported.version = max(imported.version, _INFERENCE_OPSET)
    try:
        inferred = _run_inference(skeleton)
    except onnx.shape_inference.InferenceError as error:
        raise SecateurError(
            "E_SHAPE",
            "the operators contradict the shapes of their inputs",
            where=str(error).strip().splitlines()[-1].strip()[:300],
            hint="check the model with onnx.checker; bind symbolic dimensions with --shape where they must agree",
        ) from None
    _adopt(graph, inferred.graph)


def _prepare(proto: onnx.GraphProto, data: Mapping[str, onnx.TensorProto], body: bool = False) -> None:
    """Make a graph and its bodies such that onnx infers what it can. data: the small constants, by name."""
    for node in proto.node:
        if node.op_type in _LIKE_FIRST_OPERAND and not node.domain:
            node.op_type = "Identity"
            del node.input[1:]
            del node.attribute[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _prepare(attribute.g, data, body=True)
    if body:  # onnx does not look outside of a body for the data of shapes and axes
        read = dict.fromkeys(name for node in proto.node for name in node.input if name in data)
        proto.initializer.extend(data[name] for name in read)


def _run_inference(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        if "data propagation" not in str(error):
            raise
        # Integers that are no shapes may overflow, which only the propagation of values minds.
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def _adopt(graph: Graph, proto: onnx.GraphProto) -> None:
    types = {info.name: info.type for info in (*proto.value_info, *proto.output)}
    for node in graph.nodes:
        for value in node.outputs:
            if value.name in types:
                dtype, shape = _read_type(types[value.name])
                value.dtype = dtype if dtype is not None else value.dtype
                value.shape = shape if shape is not None else value.shape
    bodies = {n.name: n for n in proto.node if any(a.HasField("g") for a in n.attribute)}
    for node in graph.nodes:
        if node.name in bodies:
            for attribute in bodies[node.name].attribute:
                if isinstance(body := node.attributes.get(attribute.name), Graph):
                    _adopt(body, attribute.g)


def _read_type(proto: onnx.TypeProto) -> tuple[np.dtype | None, tuple[Dim, ...] | None]:
    if not proto.HasField("tensor_type"):
        return None, None
    tensor = proto.tensor_type
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return dtype, None
    return dtype, tuple(_read_dim(d) for d in tensor.shape.dim)


def _read_dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return dim.dim_param or None


def same_type(a: Value, b: Value) -> bool:
    """True when two values have the same dtype and the same shape."""
    return a.dtype == b.dtype and a.shape == b.shape
