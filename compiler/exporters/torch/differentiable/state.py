"""Which constants of a graph a module holds, as what, and under which name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import Enum
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from compiler.exporters.torch.differentiable.dtypes import as_tensor, carried, is_float, torch_dtype
from compiler.exporters.torch.differentiable.rules import rule_for
from compiler.ir import Graph, SecateurError, Value, subgraphs
from compiler.ir.cost import is_parameter

_SMALL = 64
"""Integer constants of up to this many elements stay in host memory: they are shapes, axes and indices."""

_INTEGER_PRODUCTS = ("ConvInteger", "MatMulInteger")


class Role(Enum):
    """What a constant is in the module."""

    PARAMETER = "parameter"
    BUFFER = "buffer"
    HOST = "host"


def roles(graph: Graph, trainable: Sequence[str]) -> dict[Value, Role]:
    """The role of every constant of the graph and its bodies.

    Raises E_NO_TORCH_RULE where torch has no tensors of a constant's or an input's elements.
    """
    reached = differentiable(graph)
    found = {}
    for value in (*graph.inputs, *graph.all_constants()):
        if value.dtype is None or value.dtype.kind in "OUS" or torch_dtype(value.dtype) is None:
            raise _no_elements(value)
        if not value.is_constant:
            continue
        chosen = any(fnmatchcase(value.name, pattern) for pattern in trainable)
        if chosen and value in reached and is_float(value.dtype) and is_parameter(value) and _finite(value):
            found[value] = Role.PARAMETER
        elif is_float(value.dtype) or value.data is None or value.data.size > _SMALL:
            found[value] = Role.BUFFER
        else:
            found[value] = Role.HOST
    return found


def _finite(value: Value) -> bool:
    """False for masks, which hold infinities and are nothing to train."""
    return bool(np.isfinite(value.numpy()).all())


def _no_elements(value: Value) -> SecateurError:
    return SecateurError(
        "E_NO_TORCH_RULE",
        f"{value.name!r} holds elements of type {value.dtype}, which torch tensors cannot",
        where=value.name,
        hint="export the network without it; strings belong in front of the network",
    )


def differentiable(graph: Graph) -> set[Value]:
    """The values that a gradient of the graph's floating-point outputs reaches."""
    reached = {v for v in graph.outputs if _carries(v)}
    _reach(graph, reached)
    return reached


def _reach(graph: Graph, reached: set[Value]) -> None:
    for node in reversed(graph.nodes):
        if reached.isdisjoint(node.outputs):
            continue
        for body in subgraphs(node):
            reached.update(v for v in body.outputs if _carries(v))
            _reach(body, reached)
        rule = rule_for(node)
        blind: Collection[int] = rule.host | rule.state
        reached.update(v for i, v in enumerate(node.inputs) if v is not None and i not in blind and _carries(v))


def _carries(value: Value) -> bool:
    """True for floating-point values, and for quantised ones, through which gradients go straight."""
    if value.dtype is None or is_float(value.dtype):
        return True
    quantised = value.dtype.kind in "iu" and value.dtype.itemsize == 1
    return quantised or (value.producer is not None and value.producer.op in _INTEGER_PRODUCTS)


class Namespace(nn.Module):
    """A part of the module's names: the constant `block.conv.weight` is the parameter of that very name."""


def place(root: nn.Module, name: str, taken: Collection[str]) -> str:
    """The name, dots included, under which a constant called `name` can be held; parts are made as needed.

    It is the constant's own, unless torch cannot have it: then the dots become underscores, and a number follows.
    """
    if name not in taken and _prepare(root, name.split(".")):
        return name
    base = name.replace(".", "_") or "constant"
    candidate, count = base, 0
    while candidate in taken or hasattr(root, candidate):
        count += 1
        candidate = f"{base}_{count}"
    return candidate


def _prepare(root: nn.Module, path: list[str]) -> bool:
    """Make the parts that lead to the last name of a path; False, and nothing is made, when one cannot be had."""
    part, missing = root, 0
    for index, name in enumerate(path):
        child = part._modules.get(name)
        if not name or (hasattr(part, name) and (not isinstance(child, Namespace) or index == len(path) - 1)):
            return False
        if child is None:
            missing = index
            break
        part = child
    if any(not n or hasattr(Namespace(), n) for n in path[missing + 1 :]):
        return False
    for name in path[missing:-1]:
        child = Namespace()
        part.add_module(name, child)
        part = child
    return True


def hold(root: nn.Module, name: str, array: np.ndarray, role: Role, *, persistent: bool) -> None:
    """Register the data as a parameter or a buffer under a name that `place` gave."""
    *path, leaf = name.split(".")
    part = root
    for step in path:
        part = part._modules[step]  # type: ignore[assignment]
    tensor = carried(as_tensor(array))
    if role is Role.PARAMETER:
        part.register_parameter(leaf, nn.Parameter(tensor))
    else:
        part.register_buffer(leaf, tensor, persistent=persistent)
