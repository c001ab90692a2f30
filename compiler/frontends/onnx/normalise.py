"""Bring any sound ONNX model to one form: known operators, sorted nodes, no functions, MIN_OPSET or newer.

The model holds no large tensors here (see `weights.py`), so serializing it for onnx's checker, inliner
and version converter is cheap.
"""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx
import onnx
from onnx import checker, helper, inliner

from compiler.frontends.onnx.convert import convert
from compiler.frontends.onnx.protos import all_nodes, bodies, defined, first_line, label
from compiler.frontends.operators import is_known, unknown_operator
from compiler.ir import MIN_OPSET, SecateurError
from compiler.ir.proto import RUNTIME_DOMAIN, own_domain

OLDEST_OPSET = 7
"""Older operators broadcast by attributes; onnx's version converter does not take them."""

_ATTRIBUTES = {"FLOAT", "INT", "STRING", "TENSOR", "GRAPH", "FLOATS", "INTS", "STRINGS"}


def normalise(model: onnx.ModelProto, allow_unknown: bool) -> onnx.ModelProto:
    """An equivalent model without local functions, at opset MIN_OPSET or newer, that onnx.checker accepts.

    Raises E_OPSET, E_UNKNOWN_OP, E_CYCLE, E_UNSUPPORTED or E_INVALID_MODEL.
    """
    _use_one_standard_domain(model)
    _use_runtime_domain(model)
    opset = _opset(model)
    _check_interface(model.graph)
    functions = {(f.domain, f.name) for f in model.functions}
    for node in all_nodes(model):
        if (node.domain, node.op_type) not in functions:
            _check_node(node, opset, allow_unknown)
    sort_nodes(model.graph)
    _check_reads(model.graph, set())
    # Version 3 wants every initializer listed as an input; from 4 on they are constants, which they are to us.
    model.ir_version = max(model.ir_version, int(helper.find_min_ir_version_for(model.opset_import, True)), 10)
    _check(model)
    if model.functions:
        model = _inline(model)
    if opset < MIN_OPSET:
        model = convert(model, opset)
    return model


def _use_one_standard_domain(model: onnx.ModelProto) -> None:
    """Write the standard domain as "" everywhere; "ai.onnx" is its other spelling."""
    for carrier in (model, *model.functions):
        for entry in carrier.opset_import:
            if entry.domain == "ai.onnx":
                entry.domain = ""
    for node in all_nodes(model):
        if node.domain == "ai.onnx":
            node.domain = ""


def _use_runtime_domain(model: onnx.ModelProto) -> None:
    """Name the domain of operators that ONNX Runtime's optimiser writes as if the standard had them."""
    for carrier, nodes in ((model, all_nodes(model)), *((f, f.node) for f in model.functions)):
        if own_domain(nodes) and all(e.domain != RUNTIME_DOMAIN for e in carrier.opset_import):
            carrier.opset_import.add(domain=RUNTIME_DOMAIN, version=1)


def _opset(model: onnx.ModelProto) -> int:
    opset = max((e.version for e in model.opset_import if e.domain == ""), default=None)
    current = onnx.defs.onnx_opset_version()
    if opset is None and any(n.domain == "" for n in all_nodes(model)):
        raise SecateurError(
            "E_OPSET", "the model does not say which ONNX opset it uses", hint="export it again with an opset version"
        )
    if opset is None:
        model.opset_import.add(domain="", version=MIN_OPSET)
        return MIN_OPSET
    if opset < OLDEST_OPSET:
        raise SecateurError(
            "E_OPSET",
            f"the model uses ONNX opset {opset}; the oldest that can be read is {OLDEST_OPSET}",
            hint=f"export the network again with opset {MIN_OPSET}",
        )
    if opset > current or model.ir_version > onnx.IR_VERSION:
        raise SecateurError(
            "E_OPSET",
            f"the model (opset {opset}, IR version {model.ir_version}) is newer than the installed onnx package, "
            f"which knows opset {current} and IR version {onnx.IR_VERSION}",
            hint="upgrade onnx, or export the network with an older opset",
        )
    return opset


def _check_interface(graph: onnx.GraphProto) -> None:
    if not graph.output:
        raise SecateurError("E_INVALID_MODEL", "the graph has no outputs", hint="export the model again")
    for kind, infos in (("input", graph.input), ("output", graph.output)):
        for info in infos:
            which = info.type.WhichOneof("value")
            if which not in (None, "tensor_type"):
                raise SecateurError(
                    "E_UNSUPPORTED",
                    f"graph {kind} {info.name!r} is a {which.removesuffix('_type')}, not a tensor",
                    where=f"{kind} {info.name!r}",
                    hint="export the network with tensor inputs and outputs",
                )


def _check_node(node: onnx.NodeProto, opset: int, allow_unknown: bool) -> None:
    if not is_known(node.domain, node.op_type, opset) and not (allow_unknown and node.domain):
        raise unknown_operator(label(node), node.domain, node.op_type, opset)
    for attribute in node.attribute:
        kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
        if kind not in _ATTRIBUTES:
            raise SecateurError(
                "E_UNSUPPORTED",
                f"attribute {attribute.name!r} of {node.op_type} is a {kind.lower()}, which the graph cannot hold",
                where=f"node {node.name!r}",
                hint="export the network without optional or sequence types",
            )


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Order the nodes topologically, bodies too, keeping the order where it is free; E_CYCLE when there is none."""
    for node in graph.node:
        for body in bodies(node):
            sort_nodes(body)
    maker = {name: i for i, n in enumerate(graph.node) for name in n.output if name}
    edges = [(maker[name], i) for i, n in enumerate(graph.node) for name in _reads(n) if name in maker]
    if all(source < target for source, target in edges):
        return
    dag = nx.DiGraph()
    dag.add_nodes_from(range(len(graph.node)))
    dag.add_edges_from(edges)
    nodes = list(graph.node)
    try:
        order = list(nx.lexicographical_topological_sort(dag))
    except nx.NetworkXUnfeasible:
        cycle = " -> ".join(label(nodes[i]) for i, _ in nx.find_cycle(dag))
        raise SecateurError(
            "E_CYCLE", "the graph has a cycle", where=cycle, hint="break the cycle; ONNX graphs are acyclic"
        ) from None
    del graph.node[:]
    graph.node.extend(nodes[i] for i in order)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for body in bodies(node):
        own = {i.name for i in body.input} | {t.name for t in body.initializer}
        own |= {name for n in body.node for name in n.output}
        yield from (name for n in body.node for name in _reads(n) if name not in own)
        yield from (o.name for o in body.output if o.name not in own)


def _check_reads(graph: onnx.GraphProto, outer: set[str]) -> None:
    known = {"", *outer, *defined(graph)}
    for node in graph.node:
        for name in node.input:
            if name not in known:
                raise SecateurError(
                    "E_INVALID_MODEL",
                    f"{name!r} is read, but nothing defines it",
                    where=f"node {label(node)!r} ({node.op_type})",
                    hint="the file is damaged, or the model was cut; export it again",
                )
        for body in bodies(node):
            _check_reads(body, known)


def _check(model: onnx.ModelProto) -> None:
    # An output of unknown rank is fine with runtimes, but the checker wants a shape: it gets one for the check.
    shapeless = [i.type.tensor_type for i in model.graph.output if not i.type.tensor_type.HasField("shape")]
    for kind in shapeless:
        kind.shape.SetInParent()
    try:
        checker.check_model(model)
    except checker.ValidationError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        problem = lines[0].rstrip(".:") if lines else "it breaks the ONNX standard"
        context = next((line.removeprefix("==> Context:").strip() for line in lines if line.startswith("==>")), "")
        raise SecateurError(
            "E_INVALID_MODEL",
            f"onnx.checker refuses the model: {problem[:300]}",
            where=context[:300],
            hint="export the model again with a current exporter",
        ) from None
    finally:
        for kind in shapeless:
            kind.ClearField("shape")


def _inline(model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return inliner.inline_local_functions(model, convert_version=True)
    except RuntimeError as error:
        raise SecateurError(
            "E_INVALID_MODEL",
            f"its local functions cannot be inlined: {first_line(error)}",
            hint="export the model without local functions",
        ) from None
