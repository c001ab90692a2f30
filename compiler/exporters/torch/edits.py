"""Changes to a module that can be taken back: its tensors, and the attributes that tell their sizes."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
import torch
from torch import nn

from compiler.exporters.torch.attributes import attributes_of
from compiler.exporters.torch.tensors import Tensors
from compiler.ir import Graph, Node


class Edits:
    """Entries of mappings that were replaced, and what they held."""

    def __init__(self) -> None:
        self._done: list[tuple[MutableMapping[str, Any], str, Any]] = []

    def put(self, place: MutableMapping[str, Any], key: str, value: Any) -> None:
        """Set `place[key]`, which exists."""
        self._done.append((place, key, place[key]))
        place[key] = value

    def undo(self) -> None:
        """Put everything back as it was."""
        while self._done:
            place, key, value = self._done.pop()
            place[key] = value


def write_module(
    edits: Edits, module: nn.Module, graph: Graph, tensors: Tensors, values: dict[str, np.ndarray]
) -> None:
    """Give a module new tensors, then the attributes that follow from them."""
    write_tensors(edits, module, tensors, values)
    nodes: dict[str, list[Node]] = {}
    for node in graph.all_nodes():
        # A graph that was saved and loaded again has the path in its nodes' names only: `layer1.0.conv1/Conv`.
        known = node.origin is not None and node.origin.framework == "torch"
        path = node.origin.path if known and node.origin is not None else node.name.rpartition("/")[0]
        nodes.setdefault(path, []).append(node)
    own: dict[nn.Module, list[Node]] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        own.setdefault(part, []).extend(nodes.get(path, []))
    for part, made in own.items():
        for key, value in attributes_of(part, made).items():
            if key in part.__dict__:
                edits.put(part.__dict__, key, value)


def write_tensors(edits: Edits, module: nn.Module, tensors: Tensors, values: dict[str, np.ndarray]) -> None:
    """Replace the tensors whose values change, in every place that holds them; shared ones stay shared."""
    made: dict[str, torch.Tensor] = {}
    for place, key in places(module):
        old = place[key]
        name = tensors.name(old)
        if name is None or name not in values:
            continue
        if name not in made:
            made[name] = renewed(old, values[name])
        if made[name] is not old:
            edits.put(place, key, made[name])


def places(module: nn.Module) -> Iterator[tuple[MutableMapping[str, Any], str]]:
    """Every entry that holds a tensor: parameters, buffers, plain attributes."""
    for part in module.modules():
        for place in (part._parameters, part._buffers, part.__dict__):
            yield from ((place, key) for key, value in list(place.items()) if isinstance(value, torch.Tensor))


def renewed(old: torch.Tensor, array: np.ndarray) -> torch.Tensor:
    """A tensor of `old`'s kind, dtype and device that holds `array`; `old` itself when it does already."""
    # numpy has no bfloat16 of its own; every value of it is a float32.
    plain = array.astype(np.float32) if array.dtype.kind == "V" or array.dtype.name == "bfloat16" else array
    data = torch.from_numpy(np.array(plain)).to(device=old.device, dtype=old.dtype)
    if data.shape == old.shape and torch.equal(data, old.detach()):
        return old
    if isinstance(old, nn.Parameter):
        return nn.Parameter(data, requires_grad=old.requires_grad)
    return data
