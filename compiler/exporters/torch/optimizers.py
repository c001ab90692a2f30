"""Optimisers that outlive a pruning: their state is cut as the parameters are, and handed to the new parameters.

The graph's constants say which of their elements a pruning left (`Value.selection`). Numbers that stand for the
elements of every parameter take the road that the weights took: forwards through what simplify moved, through the
selection, and backwards into the module's layout.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from compiler.exporters.torch.tensors import Tensors, Trace, by_name, moved, new_tensors, weight_steps
from compiler.ir import SecateurError, Value

_ANEW = "optimizer.state.clear() before the export, or a new optimizer after it, begins anew"


class Handover:
    """What becomes of optimisers when `module` is pruned: computed and refused first, done by `finish`.

    target: the module that is going to be written, `module` or its copy, still as it was.
    """

    def __init__(
        self,
        optimizers: Optimizer | Sequence[Optimizer],
        module: nn.Module,
        target: nn.Module,
        positions: dict[str, np.ndarray],
        tensors: Tensors,
    ) -> None:
        self._optimizers = [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)
        self._names: dict[torch.Tensor, list[str]] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            self._names.setdefault(parameter, []).append(name)
        copies = dict(target.named_parameters(remove_duplicate=False))
        self._positions = {
            parameter: found
            for parameter, names in self._names.items()
            if (found := positions.get(tensors.name(copies[names[0]]) or "")) is not None
            and not _is_whole(found, tuple(parameter.shape))
        }
        for optimizer in self._optimizers:
            self._check(optimizer)
        self._states = [self._cut(optimizer) for optimizer in self._optimizers]

    def finish(self, result: nn.Module) -> None:
        """Make the optimisers train the parameters of `result`."""
        known = dict(result.named_parameters(remove_duplicate=False))
        # A parameter that forward never reads is no part of a traced module, and stays where it is.
        new = {
            parameter: next((known[n] for n in names if n in known), parameter)
            for parameter, names in self._names.items()
        }
        for optimizer, states in zip(self._optimizers, self._states, strict=True):
            for group in optimizer.param_groups:
                group["params"] = [new.get(p, p) for p in group["params"]]
            optimizer.state.clear()
            for key, state in states:
                optimizer.state[new.get(key, key)] = state

    def _check(self, optimizer: Any) -> None:
        """Raise for what is no optimiser of this module, or knows its parameters in ways of its own."""
        if not isinstance(optimizer, Optimizer):
            raise _refused(f"a {type(optimizer).__name__} is no torch.optim.Optimizer", "give export(…, optimizer=…)")
        held = [p for group in optimizer.param_groups for p in group["params"]]
        if not any(p in self._names for p in held):
            raise _refused(
                f"{type(optimizer).__name__} holds none of the module's parameters",
                "make it from the parameters of the module that is given; after an export without optimizer=, "
                "or of a copy, it still holds those of the old module",
            )
        for attribute, item in vars(optimizer).items():
            inside = isinstance(item, Optimizer) or any(t in self._names for t in _tensors_in(item))
            if inside and attribute not in ("param_groups", "state"):
                raise _refused(
                    f"{type(optimizer).__name__} keeps parameters in its attribute {attribute!r} too",
                    "make a new optimizer after the export",
                )

    def _cut(self, optimizer: Optimizer) -> list[tuple[Any, Any]]:
        """(old key, new state) of all that an optimiser remembers."""
        return [
            (key, {name: self._sliced(optimizer, key, name, item) for name, item in state.items()})
            if key in self._positions
            else (key, state)
            for key, state in optimizer.state.items()
        ]

    def _sliced(self, optimizer: Optimizer, parameter: torch.Tensor, name: str, item: Any) -> Any:
        """One entry of a parameter's state, cut as the parameter."""
        if item is None or isinstance(item, bool | int | float | str):
            return item
        plain = isinstance(item, torch.Tensor) and item.layout == torch.strided
        if plain and item.shape == parameter.shape:
            positions = torch.from_numpy(self._positions[parameter]).to(item.device)
            return item.reshape(-1)[positions.reshape(-1)].reshape(positions.shape)
        if plain and item.numel() == 1:
            return item
        found = f"of shape {tuple(item.shape)}" if plain else f"a {type(item).__name__}"
        raise _refused(
            f"{type(optimizer).__name__} remembers {name!r}, {found}, for {self._names[parameter][0]!r}, of shape "
            f"{tuple(parameter.shape)}: which of it belongs to the elements that stay is not known",
            _ANEW,
        )


def kept_positions(constants: dict[str, Value], tensors: Tensors, trace: Trace) -> dict[str, np.ndarray]:
    """For each of the module's tensors that the constants hold: where its elements were before, in C order.

    int64, of the tensor's new shape. E_TORCH_OPTIMIZER where the constants do not tell.
    """
    sizes = [math.prod(shape) for shape in tensors.shapes.values()]
    starts = dict(zip(tensors.shapes, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
    whole = {
        n: start + np.arange(math.prod(tensors.shapes[n])).reshape(tensors.shapes[n]) for n, start in starts.items()
    }
    for name in list(whole):
        if whole[name].ndim == 2:
            whole |= {c: whole[name].T for c in constants if c == f"{name}.T" or c.startswith(f"{name}.T_")}
    if any(by_name(name, constants) is None for name in tensors.parameters):
        for node in weight_steps(trace.graph):
            arrays = [None if v is None else whole.get(v.name) for v in node.inputs]
            made = ((v.name, moved(node, v, arrays)) for v in node.outputs)
            whole |= {name: array for name, array in made if array is not None}
    numbered = {n: Value(n, data=_selected(v, whole[n])) for n, v in constants.items() if n in whole}
    found = {n: array - starts[n] for n, array in new_tensors(numbered, tensors, trace).items()}
    for name, positions in found.items():
        if positions.size and not 0 <= positions.min() <= positions.max() < math.prod(tensors.shapes[name]):
            raise _unknown(name)
    return found


def _selected(constant: Value, whole: np.ndarray) -> np.ndarray:
    """What is left of the numbers of a constant."""
    assert constant.data is not None
    selection = constant.selection
    if selection is None and constant.data.shape == whole.shape:
        return whole
    if selection is None or selection.shape != whole.shape or selection.positions.shape != constant.data.shape:
        raise _unknown(constant.name)
    return whole.reshape(-1)[selection.positions.numpy()]


def _is_whole(positions: np.ndarray, shape: tuple[int, ...]) -> bool:
    return positions.shape == shape and np.array_equal(positions.reshape(-1), np.arange(positions.size))


def _tensors_in(item: Any) -> Iterable[torch.Tensor]:
    """The tensors that an attribute is, or holds directly."""
    parts = (item, *item, *item.values()) if isinstance(item, dict) else item
    held = parts if isinstance(parts, list | tuple | set | frozenset) else (item,)
    return (part for part in held if isinstance(part, torch.Tensor))


def _unknown(name: str) -> SecateurError:
    return SecateurError(
        "E_TORCH_OPTIMIZER",
        f"the graph does not say which elements of {name!r} it has left",
        where=name,
        hint="give the graph that prune returned, as it is: a file, or a pass after prune, does not keep that; or "
        + _ANEW.split(", or ")[1],
    )


def _refused(message: str, hint: str) -> SecateurError:
    return SecateurError("E_TORCH_OPTIMIZER", message, where="export(optimizer=…)", hint=hint)
