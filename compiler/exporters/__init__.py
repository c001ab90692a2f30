"""The roads out of the IR: a Graph becomes a file that other tools read, or a torch module that trains on.

`export` writes into a file or into the user's own module; `to_module` makes a module of its own out of any graph, and
`from_module` takes what was trained in it back into the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from compiler.exporters.onnx import save_onnx, to_model_proto
from compiler.exporters.output import check_output
from compiler.exporters.torch import export_torch
from compiler.exporters.torch.differentiable import from_module, to_module
from compiler.frontends.torch import is_module
from compiler.ir import Graph, SecateurError

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

__all__ = ["check_output", "export", "export_torch", "from_module", "save_onnx", "to_model_proto", "to_module"]


@overload
def export(
    graph: Graph, target: str | Path, *, external_data: bool | None = None, overwrite: bool = False
) -> tuple[Path, ...]: ...


@overload
def export(
    graph: Graph,
    target: nn.Module,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    inplace: bool = False,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
) -> nn.Module: ...


def export(
    graph: Graph,
    target: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    inplace: bool = False,
    optimizer: Any = None,
    external_data: bool | None = None,
    overwrite: bool = False,
) -> Any:
    """Write the graph as an ONNX file, or back into the module that it was loaded from.

    A path: see `save_onnx`; returns the files written, the model first. An nn.Module: see `export_torch`, which takes
    its optimiser along; returns the module. Raises E_EXPORT_TARGET for anything else.
    """
    if is_module(target):
        return export_torch(graph, target, args, kwargs, inplace=inplace, optimizer=optimizer)
    if optimizer is not None:
        raise SecateurError(
            "E_EXPORT_TARGET", "an optimizer goes with a module, and the target is a file", where="export(optimizer=…)"
        )
    if not isinstance(target, str | Path):
        raise SecateurError(
            "E_EXPORT_TARGET",
            f"a graph cannot be exported to a {type(target).__module__}.{type(target).__qualname__}",
            hint="give the path of an ONNX file, or the torch.nn.Module that the graph was loaded from",
        )
    return save_onnx(graph, target, external_data=external_data, overwrite=overwrite)
