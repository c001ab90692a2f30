"""Graph, Node and Value: the framework-agnostic, SSA form of a network.

The operators are those of the ONNX standard at `Graph.opset`; frontends convert to it, passes map
Graph to Graph, backends read it. See `text.py` for the printed form and `verify.py` for the rules
that hold between passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
import numpy as np

from compiler.errors import SecateurError
from compiler.ir.constant import ArrayConstant, Constant, Selection

Dim = int | str | None
"""One extent of a shape: a number, the name of a symbolic dimension, or None when unknown."""

MIN_OPSET = 21
"""Frontends lift older models to this ONNX opset; newer models keep their own."""


@dataclass(frozen=True)
class Origin:
    """Where a node came from, for messages and for writing a result back to its source."""

    framework: str
    path: str


class Value:
    """A tensor: a graph input, a node's output, or a constant (then `data` is set).

    Identity is the object; `name` is unique in its graph. `shape` is None when even the rank is unknown. `selection`
    says which elements of a constant are left where some were removed; it is None where none were, and in files.
    """

    __slots__ = ("data", "dtype", "name", "producer", "selection", "shape")

    def __init__(
        self,
        name: str,
        dtype: np.dtype | type | str | None = None,
        shape: tuple[Dim, ...] | None = None,
        data: Constant | np.ndarray | None = None,
    ) -> None:
        if isinstance(data, np.ndarray | np.generic):
            data = ArrayConstant(np.asarray(data))
        self.name = name
        self.data = data
        self.dtype: np.dtype | None = data.dtype if data is not None else (None if dtype is None else np.dtype(dtype))
        self.shape: tuple[Dim, ...] | None = data.shape if data is not None else shape
        self.producer: Node | None = None
        self.selection: Selection | None = None

    @property
    def is_constant(self) -> bool:
        """True when the data is known at compile time."""
        return self.data is not None

    @property
    def rank(self) -> int | None:
        """Number of axes, or None when unknown."""
        return None if self.shape is None else len(self.shape)

    @property
    def static_shape(self) -> tuple[int, ...] | None:
        """The shape when every extent is a number, else None."""
        if self.shape is None or not all(isinstance(d, int) for d in self.shape):
            return None
        return tuple(d for d in self.shape if isinstance(d, int))

    def numpy(self) -> np.ndarray:
        """The data of a constant; an error for any other value."""
        if self.data is None:
            raise SecateurError("E_NOT_CONSTANT", f"value {self.name!r} is not a constant", where=self.name)
        return self.data.numpy()

    def __repr__(self) -> str:
        return f"Value({self.name!r}, {self.dtype}, {self.shape})"


class Node:
    """One operator: ONNX `op` of `domain` ("" is the standard), inputs (None where omitted), outputs, attributes.

    Attribute values are int, float, str, list of these, numpy arrays (tensors) or Graph (bodies).
    """

    __slots__ = ("attributes", "domain", "inputs", "name", "op", "origin", "outputs")

    def __init__(
        self,
        op: str,
        inputs: list[Value | None],
        outputs: list[Value],
        attributes: dict[str, Any] | None = None,
        *,
        name: str = "",
        domain: str = "",
        origin: Origin | None = None,
    ) -> None:
        self.op = op
        self.domain = domain
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.attributes: dict[str, Any] = dict(attributes or {})
        self.name = name or (outputs[0].name if outputs else op)
        self.origin = origin
        for value in self.outputs:
            value.producer = self

    def input(self, index: int) -> Value | None:
        """The input at `index`, or None when it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute's value, or `default`."""
        return self.attributes.get(name, default)

    @property
    def qualified_op(self) -> str:
        """`Conv`, or `domain::Op` outside the standard."""
        return f"{self.domain}::{self.op}" if self.domain else self.op

    def describe(self) -> str:
        """How messages name this node."""
        path = f", from {self.origin.path}" if self.origin and self.origin.path not in ("", self.name) else ""
        return f"node {self.name!r} ({self.qualified_op}{path})"

    def __repr__(self) -> str:
        return f"Node({self.qualified_op}, {self.name!r})"


@dataclass(eq=False)
class Graph:
    """A network: typed inputs, topologically ordered nodes, outputs.

    `opset` is the version of the standard domain, `domains` those of the others. `metadata` holds
    free text of the source (producer, licence), kept on export.
    """

    name: str
    inputs: list[Value]
    outputs: list[Value]
    nodes: list[Node]
    opset: int = MIN_OPSET
    domains: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def values(self) -> Iterator[Value]:
        """Every value once: inputs, then constants and results in the order of their first use."""
        seen: set[int] = set()
        for value in self._all_values():
            if id(value) not in seen:
                seen.add(id(value))
                yield value

    def _all_values(self) -> Iterator[Value]:
        yield from self.inputs
        for node in self.nodes:
            yield from (v for v in node.inputs if v is not None)
            yield from node.outputs
        yield from self.outputs

    def constants(self) -> list[Value]:
        """The constants that some node or output of this graph uses, in the order of first use; see all_constants."""
        return [v for v in self.values() if v.is_constant]

    def all_nodes(self) -> Iterator[Node]:
        """Every node, those of bodies, however deep, before the node that carries them."""
        for node in self.nodes:
            for body in subgraphs(node):
                yield from body.all_nodes()
            yield node

    def all_bodies(self) -> Iterator[Graph]:
        """The bodies of all nodes, however deep, each before those inside it."""
        for node in self.nodes:
            for body in subgraphs(node):
                yield body
                yield from body.all_bodies()

    def all_constants(self) -> list[Value]:
        """The constants that the graph and its bodies use, each once, in the order of first use."""
        return list(dict.fromkeys(self._read_constants()))

    def _read_constants(self) -> Iterator[Value]:
        for node in self.nodes:
            yield from (v for v in node.inputs if v is not None and v.is_constant)
            for body in subgraphs(node):
                yield from body._read_constants()
        yield from (v for v in self.outputs if v.is_constant)

    def value(self, name: str) -> Value:
        """The value called `name`; KeyError when there is none."""
        for v in self.values():
            if v.name == name:
                return v
        raise KeyError(name)

    def consumers(self) -> dict[Value, list[tuple[Node, int]]]:
        """For each value that is read, the (node, input index) pairs that read it, in bodies too."""
        uses: dict[Value, list[tuple[Node, int]]] = {}
        for node in self.all_nodes():
            for index, value in enumerate(node.inputs):
                if value is not None:
                    uses.setdefault(value, []).append((node, index))
        return uses

    def outer_values(self) -> list[Value]:
        """For a body: the values of enclosing graphs that it or a body inside it reads; constants are not listed."""
        own = {*self.inputs, *(v for n in self.nodes for v in n.outputs)}
        read = list(self.values())
        read += [v for node in self.nodes for body in subgraphs(node) for v in body.outer_values()]
        return [v for v in dict.fromkeys(read) if v not in own and not v.is_constant]

    def replace_value(self, old: Value, new: Value) -> None:
        """Make every reader of `old`, and the graph's outputs, read `new` instead."""
        for node in self.nodes:
            node.inputs = [new if v is old else v for v in node.inputs]
        self.outputs = [new if v is old else v for v in self.outputs]

    def names(self) -> set[str]:
        """The names that values carry, bodies included."""
        return {v.name for part in (self, *self.all_bodies()) for v in part.values()}

    def fresh_name(self, base: str) -> str:
        """`base`, or `base_1`, `base_2`, … whichever no value carries yet, bodies included."""
        names = self.names()
        name, count = base, 0
        while name in names:
            count += 1
            name = f"{base}_{count}"
        return name

    def sort(self) -> None:
        """Order the nodes topologically, keeping the present order where it is free; refuse cycles."""
        position = {node: i for i, node in enumerate(self.nodes)}
        dag = nx.DiGraph()
        dag.add_nodes_from(self.nodes)
        for node in self.nodes:
            reads = [v for v in node.inputs if v is not None]
            for body in subgraphs(node):
                reads += body.outer_values()
            dag.add_edges_from((v.producer, node) for v in reads if v.producer in position)
        try:
            self.nodes = list(nx.lexicographical_topological_sort(dag, key=position.__getitem__))
        except nx.NetworkXUnfeasible:
            cycle = " -> ".join(n.name for n, _ in nx.find_cycle(dag))
            raise SecateurError(
                "E_CYCLE", "the graph has a cycle", where=cycle, hint="break the cycle; ONNX graphs are acyclic"
            ) from None

    def copy(self) -> Graph:
        """A copy whose nodes and values are new and whose constant data is shared."""
        return self._copy({})

    def _copy(self, mapping: dict[Value, Value]) -> Graph:
        def clone(value: Value) -> Value:
            if value not in mapping:
                mapping[value] = Value(value.name, value.dtype, value.shape, value.data)
                mapping[value].selection = value.selection
            return mapping[value]

        def clone_attribute(item: Any) -> Any:
            if isinstance(item, Graph):
                return item._copy(mapping)
            return list(item) if isinstance(item, list) else item

        inputs = [clone(v) for v in self.inputs]
        nodes = [
            Node(
                n.op,
                [None if v is None else clone(v) for v in n.inputs],
                [clone(v) for v in n.outputs],
                {k: clone_attribute(a) for k, a in n.attributes.items()},
                name=n.name,
                domain=n.domain,
                origin=n.origin,
            )
            for n in self.nodes
        ]
        outputs = [clone(v) for v in self.outputs]
        return Graph(self.name, inputs, outputs, nodes, self.opset, dict(self.domains), dict(self.metadata))

    def __str__(self) -> str:
        from compiler.ir.text import format_graph

        return format_graph(self)


def subgraphs(node: Node) -> list[Graph]:
    """The bodies that a node carries in its attributes (If, Loop, Scan)."""
    found = []
    for item in node.attributes.values():
        if isinstance(item, Graph):
            found.append(item)
        elif isinstance(item, list):
            found.extend(g for g in item if isinstance(g, Graph))
    return found
