"""The nn.Module that computes a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import nn

import compiler.exporters.torch.differentiable.operators  # noqa: F401  (registers the rules)
from compiler.exporters.torch.differentiable.dtypes import FLOATS, Floats, as_tensor, carried, torch_dtype
from compiler.exporters.torch.differentiable.program import Compiler, Run
from compiler.exporters.torch.differentiable.state import Role, hold, place, roles
from compiler.ir import Graph, SecateurError
from compiler.ir.cost import is_parameter


class DifferentiableGraph(nn.Module):
    """A graph as an nn.Module; made by `to_module`.

    Call it with the graph's inputs, in order or by name. It returns its output, or a tuple of the outputs in the
    graph's order where there are several. Parameters and buffers have the names of their constants wherever torch
    can have these (`state_names` has every constant's).
    """

    def __init__(self, graph: Graph, trainable: Sequence[str] = ("*",), keep_zeros: bool = False) -> None:
        super().__init__()
        self.input_names = tuple(v.name for v in graph.inputs)
        self.output_names = tuple(v.name for v in graph.outputs)
        self.state_names: dict[str, str] = {}
        self._opset = graph.opset
        self._inputs = [(v.name, v.shape) for v in graph.inputs]
        self._output_dtypes = [v.dtype for v in graph.outputs]
        compiler = Compiler()
        self._program = compiler.compile(graph)
        self._bodies = compiler.bodies
        self._slots = {v.name: compiler.slot(v) for v in (*graph.inputs, *(v for n in graph.nodes for v in n.outputs))}
        self._held: dict[int, str] = {}
        self._host: dict[int, torch.Tensor] = {}
        self._masks: dict[int, str] = {}
        for name in FLOATS:
            self.register_buffer(f"_{name}", torch.empty(0, dtype=torch_dtype(name)), persistent=False)
        for value, role in roles(graph, trainable).items():
            if role is Role.HOST:
                self._host[compiler.slot(value)] = carried(as_tensor(value.numpy()))
                continue
            name = place(self, value.name, set(self.state_names.values()))
            hold(self, name, value.numpy(), role, persistent=is_parameter(value))
            self._held[compiler.slot(value)] = self.state_names[value.name] = name
            if keep_zeros and role is Role.PARAMETER and (value.rank or 0) > 1:
                self._mask(compiler.slot(value), value.numpy())

    def constant(self, name: str) -> torch.Tensor:
        """The parameter or buffer that holds the graph's constant `name`; KeyError when none does."""
        return self._tensor(self.state_names[name])

    def parameters_by_constant(self) -> dict[str, nn.Parameter]:
        """The parameters by the names of the graph's constants."""
        found = {name: self.constant(name) for name in self.state_names}
        return {name: tensor for name, tensor in found.items() if isinstance(tensor, nn.Parameter)}

    def forward(self, /, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """The graph's outputs for its inputs; E_TORCH_ARGS when those do not fit."""
        results = self._run(self._bind(args, kwargs), keep=False).outputs
        return results[0] if len(results) == 1 else tuple(results)

    def intermediate(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Every value that the nodes outside of bodies give, by name."""
        values = self._run(self._bind((), inputs), keep=True).values
        return {name: values[slot] for name, slot in self._slots.items() if slot in values}

    def _run(self, inputs: Mapping[str, torch.Tensor], keep: bool) -> _Finished:
        values: dict[int, Any] = dict(self._host)
        values.update((slot, self._tensor(name)) for slot, name in self._held.items())
        values.update((slot, values[slot] * getattr(self, mask)) for slot, mask in self._masks.items())
        values.update((self._slots[name], carried(tensor)) for name, tensor in inputs.items())
        floats = Floats({name: getattr(self, f"_{name}") for name in FLOATS})
        run = Run(self._bodies, floats, self._opset, self.training, values, keep)
        outputs = run.execute(self._program)
        for index, (output, dtype) in enumerate(zip(outputs, self._output_dtypes, strict=True)):
            if isinstance(output, torch.Tensor) and dtype is not None:  # quantised values travel as floats
                outputs[index] = output.to(floats.outside(dtype))
        return _Finished(outputs, run.values)

    def _mask(self, slot: int, array: np.ndarray) -> None:
        """Multiply what a slot holds by 0 where it is zero now, so that its gradient is zero there too."""
        if np.count_nonzero(array) < array.size:
            self._masks[slot] = f"_mask_{slot}"
            self.register_buffer(self._masks[slot], torch.from_numpy(np.asarray(array != 0)), persistent=False)

    def _tensor(self, name: str) -> torch.Tensor:
        return reduce(getattr, name.split("."), self)  # type: ignore[return-value]

    def _bind(self, args: Sequence[torch.Tensor], kwargs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if len(args) > len(self._inputs):
            raise self._refuse(f"{len(args)} tensors are given where the graph has {len(self._inputs)} inputs")
        bound = dict(zip(self.input_names, args, strict=False))
        for name, tensor in kwargs.items():
            if name not in self.input_names or name in bound:
                raise self._refuse(f"input {name!r} is {'given twice' if name in bound else 'none of the graph'}")
            bound[name] = tensor
        for name, shape in self._inputs:
            if name not in bound:
                raise self._refuse(f"input {name!r} is missing")
            tensor = bound[name]
            if not isinstance(tensor, torch.Tensor):
                raise self._refuse(f"input {name!r} is a {type(tensor).__name__}, not a tensor")
            fits = shape is None or (
                len(shape) == tensor.dim()
                and all(not isinstance(d, int) or d == n for d, n in zip(shape, tensor.shape, strict=True))
            )
            if not fits:
                raise self._refuse(f"input {name!r} is {list(tensor.shape)} where the graph has {list(shape or ())}")
        return bound

    def _refuse(self, message: str) -> SecateurError:
        return SecateurError(
            "E_TORCH_ARGS",
            message,
            where=", ".join(self.input_names),
            hint="give a tensor for each input, in this order or by name; only symbolic extents are free",
        )


class _Finished:
    def __init__(self, outputs: list[Any], values: dict[int, Any]) -> None:
        self.outputs = outputs
        self.values = values
