"""The module's tensors as the graph has them: by name where the layout is the same, else undone step by step.

simplify folds what the network computes from weights alone into new constants (the transpose of a Linear's weight,
an LSTM's gates in ONNX's order). Those steps only move elements, so each has an inverse.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import nn

from compiler.frontends.torch.capture import Call, Captured, TensorKey, capture, tensor_key
from compiler.frontends.torch.lifting import lift_program
from compiler.ir import Graph, Node, SecateurError, Value


@dataclass(frozen=True)
class Tensors:
    """The tensors of a module by their first name, as the frontend calls them. parameters: those of them to train."""

    by_key: dict[TensorKey, str]
    shapes: dict[str, tuple[int, ...]]
    parameters: frozenset[str]

    @classmethod
    def of(cls, module: nn.Module) -> Tensors:
        """All parameters, buffers, and tensors that are plain attributes."""
        found: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
        parameters = {tensor_key(p) for p in found.values()}
        found |= dict(module.named_buffers(remove_duplicate=False))
        for path, part in module.named_modules():
            plain = {k: t for k, t in part.__dict__.items() if isinstance(t, torch.Tensor)}
            found |= {f"{path}.{key}" if path else key: tensor for key, tensor in plain.items()}
        by_key: dict[TensorKey, str] = {}
        for name, tensor in found.items():
            by_key.setdefault(tensor_key(tensor), name)
        shapes = {name: tuple(found[name].shape) for name in by_key.values()}
        return cls(by_key, shapes, frozenset(name for key, name in by_key.items() if key in parameters))

    def name(self, tensor: torch.Tensor) -> str | None:
        """The first name of a tensor, or None when it was not the module's."""
        return self.by_key.get(tensor_key(tensor))


class Trace:
    """The unpruned module traced again, once and only if somebody asks."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        self.module = module
        self.call = call

    @cached_property
    def captured(self) -> Captured:
        """torch's own trace, whose tensors are the module's."""
        return capture(self.module, self.call.args, self.call.kwargs, self.call.dynamic_shapes)

    @cached_property
    def graph(self) -> Graph:
        """The trace as a graph: what `load` made of the module."""
        return lift_program(self.captured, {}, type(self.module).__name__)


def new_tensors(constants: dict[str, Value], tensors: Tensors, trace: Trace) -> dict[str, np.ndarray]:
    """The value that a graph's constants, by name, give to each of the module's tensors, in the module's layout.

    Raises E_TORCH_WRITE_BACK for a parameter that the network uses and the constants do not hold.
    """
    found = {name: array for name in tensors.shapes if (array := by_name(name, constants)) is not None}
    if not tensors.parameters <= found.keys():
        # Unused, or held in another layout: tracing the module again tells.
        inverse = _Inverse(trace.graph, constants, found)
        for name in sorted(tensors.parameters & {v.name for v in trace.graph.all_constants()}):
            inverse.require(name)
        found = inverse.found
    for name, array in found.items():
        if array.ndim != len(tensors.shapes[name]):
            raise _lost(name, "has another rank in the graph")
    return found


def by_name(name: str, constants: dict[str, Value]) -> np.ndarray | None:
    """A weight that the graph holds as it is, or transposed as MatMul wants a Linear's; None when it does neither."""
    claims = [constants[name].numpy()] if name in constants else []
    for count in itertools.count():
        other = constants.get(f"{name}.T_{count}" if count else f"{name}.T")
        if other is None or other.rank != 2:
            break
        claims.append(other.numpy().T)
    if any(c.shape != claims[0].shape or not np.array_equal(c, claims[0]) for c in claims[1:]):
        raise _lost(name, "is shared, and was pruned differently in two places")
    return claims[0] if claims else None


def weight_steps(graph: Graph) -> list[Node]:
    """The nodes that read nothing but constants and each other's results, in order."""
    weights = set(graph.all_constants())
    steps = []
    for node in graph.all_nodes():
        if all(v in weights for v in node.inputs if v is not None):
            weights.update(node.outputs)
            steps.append(node)
    return steps


Region = tuple[tuple[int, int], ...]
"""(first, last + 1) along each axis of an unpruned tensor."""


class _Inverse:
    """Runs the moves of an unpruned graph backwards, from the constants of the pruned one to the weights."""

    def __init__(self, unpruned: Graph, constants: dict[str, Value], found: dict[str, np.ndarray]) -> None:
        self.found = found
        self._pieces: dict[Value, list[tuple[Region, np.ndarray]]] = {}
        steps = weight_steps(unpruned)
        for node in steps:
            for value in node.outputs:
                if value.name in constants and value.static_shape is not None:
                    self._add(value, _whole(value), constants[value.name].numpy())
        for node in reversed(steps):
            for value in node.outputs:
                if value in self._pieces and node.op in _BACKWARDS:
                    _BACKWARDS[node.op](self, node, value, self._assemble(value))
        for value in unpruned.all_constants():
            if value in self._pieces:
                self._settle(value)

    def require(self, name: str) -> None:
        """Raise unless the weight has a value."""
        if name not in self.found:
            raise _lost(name, "was folded into others, or removed")

    def _settle(self, weight: Value) -> None:
        array = self._assemble(weight)
        other = self.found.setdefault(weight.name, array)
        if other.shape != array.shape or not np.array_equal(other, array):
            raise _lost(weight.name, "is shared, and was pruned differently in two places")

    def _add(self, value: Value, region: Region, array: np.ndarray) -> None:
        self._pieces.setdefault(value, []).append((region, array))

    def _assemble(self, value: Value) -> np.ndarray:
        """The pieces of a value side by side, along the one axis in which they differ."""
        pieces = dict(self._pieces[value])
        for region, array in self._pieces[value]:
            if not np.array_equal(pieces[region], array):
                raise _lost(value.name, "is shared, and was pruned differently in two places")
        if len(pieces) == 1 and _whole(value) in pieces:
            return pieces[_whole(value)]
        cut = [a for a, bounds in enumerate(_whole(value)) if any(region[a] != bounds for region in pieces)]
        ordered = sorted(pieces, key=lambda region: region[cut[0]])
        bounds = [region[cut[0]] for region in ordered]
        tiled = [0, *(last for _, last in bounds)] == [*(first for first, _ in bounds), _whole(value)[cut[0]][1]]
        if len(cut) != 1 or not tiled:
            raise _lost(value.name, "is used in part only")
        return np.concatenate([pieces[region] for region in ordered], axis=cut[0])

    def _same(self, node: Node, value: Value, array: np.ndarray) -> None:
        self._back(node, 0, array)

    def _transpose(self, node: Node, value: Value, array: np.ndarray) -> None:
        perm = node.attribute("perm", list(range(array.ndim))[::-1])
        self._back(node, 0, np.transpose(array, np.argsort(perm)))

    def _reshape(self, node: Node, value: Value, array: np.ndarray) -> None:
        x = node.inputs[0]
        assert x is not None and x.static_shape is not None and value.static_shape is not None
        shape = reshaped_back(x.static_shape, value.static_shape, array.shape)
        if shape is None:
            raise _lost(value.name, "cannot be reshaped back without guessing")
        self._back(node, 0, array.reshape(shape))

    def _expand(self, node: Node, value: Value, array: np.ndarray) -> None:
        x = node.inputs[0]
        assert x is not None and x.static_shape is not None and value.static_shape is not None
        lead = array.ndim - len(x.static_shape)
        # Along an axis that was one position wide, every position holds that one.
        axes = range(lead, array.ndim)
        one = tuple(slice(0, 1) if x.static_shape[a - lead] == 1 else slice(None) for a in axes)
        source = array[(0,) * lead + one] if array.size else array
        if not np.array_equal(np.broadcast_to(source, array.shape), array):
            raise _lost(value.name, "was repeated, and its copies were changed differently")
        self._back(node, 0, source)

    def _slice(self, node: Node, value: Value, array: np.ndarray) -> None:
        x, region = node.inputs[0], _sliced(node)
        if x is None or region is None:
            raise _lost(value.name, "is a slice that cannot be undone")
        self._add(x, region, array)

    def _gather(self, node: Node, value: Value, array: np.ndarray) -> None:
        x, indices = node.inputs[0], node.inputs[1]
        assert x is not None and x.static_shape is not None and indices is not None
        axis = node.attribute("axis", 0) % len(x.static_shape)
        if not indices.is_constant:
            raise _lost(value.name, "is picked from by numbers that are not constant")
        places = indices.numpy() % x.static_shape[axis]
        read, first = np.unique(places, return_index=True)
        if array.shape[axis : axis + places.ndim] != places.shape or len(read) != x.static_shape[axis]:
            raise _lost(value.name, "is used in part only")
        flat = array.reshape(*array.shape[:axis], places.size, *array.shape[axis + places.ndim :])
        source = flat.take(first, axis)
        if not np.array_equal(source.take(places.ravel(), axis), flat):
            raise _lost(value.name, "was read several times, and pruned differently each time")
        self._back(node, 0, source)

    def _split(self, node: Node, value: Value, array: np.ndarray) -> None:
        x = node.inputs[0]
        assert x is not None
        self._add(x, _cut_off(node, value), array)

    def _concat(self, node: Node, value: Value, array: np.ndarray) -> None:
        axis = node.attribute("axis") % array.ndim
        shapes = [v.static_shape for v in node.inputs if v is not None]
        sizes = [s[axis] for s in shapes if s is not None]
        total, width = sum(sizes), array.shape[axis]
        if any(size * width % total for size in sizes):
            raise _lost(value.name, "was concatenated from weights that were not pruned alike")
        bounds = np.cumsum([size * width // total for size in sizes])[:-1]
        for index, piece in enumerate(np.split(array, bounds, axis)):
            self._back(node, index, piece)

    def _back(self, node: Node, index: int, array: np.ndarray) -> None:
        x = node.inputs[index]
        if x is not None and x.static_shape is not None:
            self._add(x, _whole(x), array)


_BACKWARDS = {
    **dict.fromkeys(("Identity", "Cast", "CastLike"), _Inverse._same),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _Inverse._reshape),
    "Transpose": _Inverse._transpose,
    "Expand": _Inverse._expand,
    "Gather": _Inverse._gather,
    "Slice": _Inverse._slice,
    "Split": _Inverse._split,
    "Concat": _Inverse._concat,
}
"""Operators that only move elements, and how each gives its result back to its operands."""


def reshaped_back(source: tuple[int, ...], result: tuple[int, ...], found: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape that `source` has become when its reshape to `result` has become `found`; None when that is open."""
    shape: list[int] = []
    i = j = 0
    while i < len(source) or j < len(result):
        # The shortest runs of extents, from i and from j on, that hold the same number of elements.
        to_i, to_j = min(i + 1, len(source)), min(j + 1, len(result))
        while math.prod(source[i:to_i]) != math.prod(result[j:to_j]):
            if math.prod(source[i:to_i]) < math.prod(result[j:to_j]):
                to_i += 1
            else:
                to_j += 1
            if to_i > len(source) or to_j > len(result):
                return None
        before, elements = source[i:to_i], math.prod(found[j:to_j])
        wide = [k for k, d in enumerate(before) if d != 1]
        options = []
        for k in wide[:1] if elements == math.prod(before) else wide:
            rest = math.prod(before) // before[k]
            if elements % rest == 0:
                options.append((*before[:k], elements // rest, *before[k + 1 :]))
        if wide and len(options) != 1:
            return None
        if not wide and elements != 1:
            return None
        shape += options[0] if options else before
        i, j = to_i, to_j
    return tuple(shape)


def _sliced(node: Node) -> Region | None:
    """The part of its operand that a Slice reads; None where its numbers are not constant, or skip positions."""
    x = node.inputs[0]
    assert x is not None and x.static_shape is not None
    operands = [v.numpy().tolist() if v is not None and v.is_constant else None for v in node.inputs[1:]]
    starts, ends = operands[:2]
    if starts is None or ends is None or any(s != 1 for s in (operands[3:4] or [[1]])[0] or []):
        return None
    axes = operands[2] if len(operands) > 2 and operands[2] is not None else list(range(len(starts)))
    region = list(_whole(x))
    for axis, first, last in zip(axes, starts, ends, strict=True):
        first, last, _ = slice(first, last).indices(x.static_shape[axis])
        region[axis % len(region)] = (first, last)
    return tuple(region)


def _cut_off(node: Node, value: Value) -> Region:
    """The part of its operand that a Split gives to one of its results."""
    x = node.inputs[0]
    assert x is not None and x.static_shape is not None
    axis = node.attribute("axis", 0) % len(x.static_shape)
    sizes = [v.static_shape[axis] for v in node.outputs if v.static_shape is not None]
    index = node.outputs.index(value)
    region = list(_whole(x))
    region[axis] = (sum(sizes[:index]), sum(sizes[: index + 1]))
    return tuple(region)


def moved(node: Node, value: Value, arrays: list[np.ndarray | None]) -> np.ndarray | None:
    """What a node that only moves elements makes of arrays in its operands' places; None where it is another node."""
    array, shape = arrays[0], value.static_shape
    if array is None or shape is None:
        return None
    if node.op in ("Identity", "Cast", "CastLike"):
        return array
    if node.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return array.reshape(shape)
    if node.op == "Transpose":
        return np.transpose(array, node.attribute("perm", None))
    if node.op == "Expand":
        return np.broadcast_to(array, shape)
    if node.op == "Gather" and (indices := node.inputs[1]) is not None and indices.is_constant:
        return array.take(indices.numpy(), node.attribute("axis", 0))
    if node.op in ("Slice", "Split"):
        region = _sliced(node) if node.op == "Slice" else _cut_off(node, value)
        return None if region is None else array[tuple(slice(*bounds) for bounds in region)]
    if node.op == "Concat" and all(a is not None for a in arrays):
        return np.concatenate([a for a in arrays if a is not None], node.attribute("axis"))
    return None


def _whole(value: Value) -> Region:
    assert value.static_shape is not None
    return tuple((0, d) for d in value.static_shape)


def _lost(name: str, what: str) -> SecateurError:
    hint = (
        "give back a graph that was loaded from this module and only pruned: with simplify(weights=false), "
        "and with the experts that are modules of their own (ignore=['expert'])"
    )
    if "parametrizations" in name:
        hint = "before load, make it a plain weight: torch.nn.utils.parametrize.remove_parametrizations"
    return SecateurError(
        "E_TORCH_WRITE_BACK", f"the weight {name!r} {what}, so the module cannot have it back", where=name, hint=hint
    )
