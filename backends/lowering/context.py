"""What a lowering rule works with: buffers of values, constants, views, and kernel calls."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tvm

from backends.lowering.program import Buffer, Program, Step
from backends.lowering.rules import no_lowering, rule_for
from backends.schedules.emit import Emitter
from backends.schedules.kernel import Kernel
from backends.selector import Selector
from backends.target import Target
from compiler.ir.graph import Graph, Node, Value

Body = Callable[..., None]
"""`body(emitter, spec, *arrays)` writes a kernel's statements; all that varies is in `spec`."""

STORAGE = {np.dtype(bool): "uint8"}
SUPPORTED = frozenset(
    {"bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64"}
)
_MOST_ELEMENTS = 2**31


def storage_type(dtype: np.dtype) -> str:
    """The element type that a dtype has in memory, in TVM's words; booleans are bytes of 0 and 1."""
    return STORAGE.get(dtype, str(dtype))


class Lowering:
    """A program in the making. `parallel` lets kernels share their outer loop among threads."""

    def __init__(self, graph: Graph, selector: Selector, *, parallel: bool = True) -> None:
        self.selector = selector
        self.target = selector.target
        self.parallel = parallel
        self._buffers: dict[Value, Buffer] = {}
        self._constants: dict[tuple[str, str, tuple[int, ...]], Buffer] = {}
        self._kernels: dict[str, tvm.tirx.PrimFunc] = {}
        self._steps: list[Step] = []
        self._node: Node | None = None
        self._graph = graph
        self.inputs = []
        for index, value in enumerate(graph.inputs):
            buffer = Buffer(value.name, _dtype(value), _shape(value), "input", index)
            self._buffers[value] = buffer
            self.inputs.append(buffer)

    def run(self) -> None:
        """Lower every node by its rule."""
        for node in self._graph.nodes:
            self.lower(node)
        self._node = None

    def lower(self, node: Node) -> None:
        """Lower one node by its rule."""
        self._check_types(node)
        self._node = node
        self.selector.nodes = _names(node)
        rule_for(node)(node, self)

    def _check_types(self, node: Node) -> None:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name and (value.dtype is None or str(value.dtype) not in SUPPORTED):
                raise no_lowering(node, f"{value.name!r} has element type {value.dtype}, which has no native lowering")
            if value is not None and value.name and math.prod(_shape(value)) >= _MOST_ELEMENTS:
                raise no_lowering(
                    node, f"{value.name!r} has {math.prod(_shape(value))} elements; kernels count to 2**31"
                )

    def scheduled(self, dtype: np.dtype | str | None) -> Target | None:
        """The target of schedules that compute in `dtype`; None if there are none."""
        kind = str(dtype)
        return self.target.computing(kind) if kind in ("float32", self.target.dtype) else None

    def buffer(self, value: Value | None) -> Buffer:
        """The buffer of a value that is already computed, or of a constant."""
        assert value is not None
        if value not in self._buffers:
            self._buffers[value] = self.constant(value.numpy(), value.name)
        return self._buffers[value]

    def constant(self, array: np.ndarray, name: str = "constant") -> Buffer:
        """Data known at compile time; equal data is kept once."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        key = (
            hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest() if array.size else "",
            str(array.dtype),
            array.shape,
        )
        if key not in self._constants:
            self._constants[key] = Buffer(name, array.dtype, array.shape, "constant", data=array)
        return self._constants[key]

    def result(self, value: Value) -> Buffer:
        """A new buffer for a node's output."""
        buffer = Buffer(value.name, _dtype(value), _shape(value))
        self._buffers[value] = buffer
        return buffer

    def temporary(self, shape: Sequence[int], dtype: np.dtype | str = "float32", name: str = "temporary") -> Buffer:
        """A new buffer that no value names."""
        return Buffer(name, np.dtype(dtype), tuple(shape))

    def bind(self, value: Value, buffer: Buffer) -> None:
        """`value` is what `buffer` holds."""
        self._buffers[value] = buffer

    def view(self, buffer: Buffer, shape: Sequence[int], *, offset: int = 0, dtype: np.dtype | None = None) -> Buffer:
        """The `shape` elements of `buffer` from element `offset` on, without a copy."""
        dtype = dtype or buffer.dtype
        return Buffer(buffer.name, dtype, tuple(shape), base=buffer, offset=offset * buffer.dtype.itemsize)

    def alias(self, value: Value, source: Value | None) -> None:
        """`value` is `source` seen in value's shape, without a copy."""
        self.bind(value, self.view(self.buffer(source), _shape(value)))

    def call(
        self,
        body: Body,
        spec: Any,
        reads: Sequence[Buffer],
        writes: Sequence[Buffer],
        *,
        in_place: tuple[int, ...] = (),
        scratch: Sequence[Buffer] = (),
        macs: int = 0,
    ) -> None:
        """Call the kernel that `body` writes for `spec` on buffers: reads, writes, then scratch memory."""
        args = [*reads, *writes, *scratch]
        first = len(reads)
        types = tuple((storage_type(b.dtype), b.size) for b in args)
        symbol = self._symbol(body.__name__.strip("_"), (spec, types))
        if symbol not in self._kernels:
            emitter = Emitter(symbol, self.parallel, max_keeps_nan=self.target.max_keeps_nan)
            arrays = [emitter.param(f"p{i}", size, kind) for i, (kind, size) in enumerate(types)]
            body(emitter, spec, *arrays)
            self._kernels[symbol] = emitter.finish()
        self._append(symbol, args, tuple(range(first, len(args))), in_place, body.__name__.strip("_"), macs)

    def schedule(
        self,
        kernel: Kernel,
        activations: Mapping[str, Buffer],
        packed: Mapping[str, np.ndarray],
        family: str,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Call a kernel of `backends.schedules`: activations by role, packed constants by role.

        details: what reports tell about the choice of the schedule.
        """
        self._kernels.setdefault(kernel.symbol, kernel.func)
        args = []
        for role in kernel.params:
            if role in activations:
                args.append(activations[role])
            elif role == "workspace":
                args.append(self.temporary((kernel.workspace_bytes,), "uint8", "workspace"))
            else:
                args.append(self.constant(kernel.stored(role, packed[role]), role))
        writes = tuple(i for i, role in enumerate(kernel.params) if role in ("y", "workspace"))
        self._append(kernel.symbol, args, writes, (), family, kernel.macs, details)

    def finish(self) -> Program:
        """The program, with every graph output in a buffer of its own."""
        from backends.lowering.layout import copy

        outputs = []
        taken: set[Buffer] = set()
        for index, value in enumerate(self._graph.outputs):
            buffer = self.buffer(value)
            root, _ = buffer.root()
            if root.role != "temporary" or root.nbytes != buffer.nbytes or root in taken:
                root = Buffer(value.name, _dtype(value), _shape(value))
                copy(self, buffer, root)
            taken.add(root)
            outputs.append((index, value, root))
        for index, value, root in outputs:
            root.role, root.index = "output", index
            root.name, root.shape, root.dtype = value.name, _shape(value), _dtype(value)
        return Program(self._graph.name, self.inputs, [r for _, _, r in outputs], self._steps, self._kernels)

    def _append(
        self,
        symbol: str,
        args: list[Buffer],
        writes: tuple[int, ...],
        in_place: tuple[int, ...],
        schedule: str,
        macs: int,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        nodes: tuple[str, ...] = ()
        op = ""
        if self._node is not None:
            nodes = _names(self._node)
            op = self._node.op
        self._steps.append(Step(symbol, args, writes, in_place, nodes, op, schedule, macs, dict(details or {})))

    def _symbol(self, family: str, spec: Any) -> str:
        text = repr((spec, dataclasses.replace(self.target, threads=1), self.parallel))
        return f"{family}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _names(node: Node) -> tuple[str, ...]:
    """The nodes of the graph that became this one."""
    return tuple(node.attribute("nodes", [node.name]))


def _dtype(value: Value) -> np.dtype:
    assert value.dtype is not None, value.name
    return value.dtype


def _shape(value: Value) -> tuple[int, ...]:
    shape = value.static_shape
    assert shape is not None, value.name
    return shape
