"""A module against the pruned graph: the same inputs, ONNX Runtime's outputs, one tolerance."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from compiler.frontends.torch.capture import CALLS, Call, bind, evaluating
from compiler.ir import Graph, SecateurError
from compiler.ir.execute import execute, random_inputs, relative_difference

TOLERANCE = 1e-4
"""Largest relative difference between the module and the graph; half precision gets `HALF_TOLERANCE`."""

HALF_TOLERANCE = 1e-2


class Reference:
    """What the graph computes on the example inputs, and how a module compares with it."""

    def __init__(self, graph: Graph, module: nn.Module, call: Call) -> None:
        self._call = call
        self._outputs = [v.name for v in graph.outputs]
        self._expected = execute(graph, _feeds(graph, module, call))

    def problem(self, module: nn.Module) -> str | None:
        """None when the module computes what the graph does; else what is wrong, in one sentence."""
        with evaluating(module), torch.no_grad():
            try:
                result = module(*self._call.args, **self._call.kwargs)
            except Exception as error:  # whatever a forward raises when the widths do not fit
                line = next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)
                return f"it fails with {line[:240]}"
        found = [as_numpy(t) for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
        if len(found) != len(self._outputs):
            return f"it returns {len(found)} tensors where the graph has {len(self._outputs)} outputs"
        half = any(self._expected[n].dtype.itemsize == 2 for n in self._outputs)
        difference = relative_difference(dict(zip(self._outputs, found, strict=True)), self._expected)
        if difference <= (HALF_TOLERANCE if half else TOLERANCE):
            return None
        return f"it differs from the graph by {difference:.1e} (relative)"


def example_call(graph: Graph, module: nn.Module, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None) -> Call:
    """How to call the module: as given, else as it was loaded, else with noise named as forward's parameters."""
    known = CALLS.get(module)
    if args is not None or kwargs:
        given = (args,) if isinstance(args, torch.Tensor) else tuple(args or ())
        call = Call(given, dict(kwargs or {}), known.dynamic_shapes if known else None)
        return call if known else Call(call.args, call.kwargs, _open_dimensions(graph, bind(module, call)))
    if known is not None:
        return known
    names = [v.name for v in graph.inputs]
    accepted = inspect.signature(module.forward).parameters
    if unknown := [n for n in names if n not in accepted]:
        raise SecateurError(
            "E_TORCH_ARGS",
            f"input {unknown[0]!r} of the graph is no parameter of the module's forward",
            where=type(module).__name__,
            hint="give inputs to compare with: export(graph, module, args=(x,))",
        )
    device = next((t.device for t in module.parameters()), torch.device("cpu"))
    noise = {name: torch.from_numpy(array).to(device) for name, array in random_inputs(graph).items()}
    # By position where forward's first parameters are the inputs, so that positional-only ones work too.
    return Call((), noise, _open_dimensions(graph, noise))


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's data; bfloat16 widens to float32, which numpy has."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _open_dimensions(graph: Graph, bound: Mapping[str, Any]) -> dict[str, dict[int, str]] | None:
    if len(bound) != len(graph.inputs) or not all(isinstance(t, torch.Tensor) for t in bound.values()):
        return None
    return {
        name: {axis: d for axis, d in enumerate(value.shape or ()) if isinstance(d, str)}
        for name, value in zip(bound, graph.inputs, strict=True)
    }


def _feeds(graph: Graph, module: nn.Module, call: Call) -> dict[str, np.ndarray]:
    tensors = list(_tensors(bind(module, call)))
    if len(tensors) != len(graph.inputs):
        raise SecateurError(
            "E_TORCH_ARGS",
            f"the module is called with {len(tensors)} tensors, and the graph has {len(graph.inputs)} inputs",
            where=", ".join(v.name for v in graph.inputs),
            hint="give the inputs that the graph was loaded with: export(graph, module, args=(x,))",
        )
    return {
        value.name: as_numpy(tensor).astype(value.dtype, copy=False)
        for value, tensor in zip(graph.inputs, tensors, strict=True)
    }


def _tensors(item: Any) -> Iterator[torch.Tensor]:
    yield from (leaf for leaf in pytree.tree_leaves(item) if isinstance(leaf, torch.Tensor))
