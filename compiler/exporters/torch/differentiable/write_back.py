"""The module's tensors as constants of the graph that it was made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compiler.exporters.torch.differentiable.dtypes import as_array, is_float
from compiler.ir import ArrayConstant, Graph, SecateurError, Value

if TYPE_CHECKING:
    from compiler.exporters.torch.differentiable.module import DifferentiableGraph


def with_tensors(graph: Graph, module: DifferentiableGraph) -> Graph:
    """See `from_module`. Constants that no training changes keep their data, read or not."""
    result = graph.copy()
    constants = {v.name: v for v in result.all_constants()}
    for name in module.state_names:
        if name not in constants:
            raise _refuse(f"the graph has no constant {name!r}, which the module holds", graph.name)
        value = constants[name]
        if not value.shape or not is_float(value.dtype):
            continue
        _write(value, module)
    return result


def _write(value: Value, module: DifferentiableGraph) -> None:
    tensor = module.constant(value.name)
    if tuple(tensor.shape) != value.shape:
        raise _refuse(
            f"constant {value.name!r} is {list(value.shape or ())} in the graph and {list(tensor.shape)} in the module",
            value.name,
        )
    assert value.dtype is not None
    value.data = ArrayConstant(as_array(tensor, value.dtype))


def _refuse(message: str, where: str) -> SecateurError:
    return SecateurError(
        "E_TORCH_WRITE_BACK", message, where=where, hint="give the graph that the module was made of: to_module(graph)"
    )
