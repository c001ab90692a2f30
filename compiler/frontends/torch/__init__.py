"""The torch frontend: an nn.Module, an ExportedProgram or a torch.fx GraphModule becomes a Graph.

torch is an extra. Nothing here imports it until a torch object has to be read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from compiler.ir import Graph, SecateurError

__all__ = ["is_module", "is_torch_source", "load_torch", "require_torch"]

_MODULE = ("torch.nn.modules.module", "Module")
_PROGRAM = ("torch.export.exported_program", "ExportedProgram")


def is_module(source: Any) -> bool:
    """True for an nn.Module (a GraphModule is one); torch is not imported to find out."""
    return _MODULE in _bases(source)


def is_torch_source(source: Any) -> bool:
    """True for what `load_torch` reads."""
    return not {_MODULE, _PROGRAM}.isdisjoint(_bases(source))


def _bases(source: Any) -> list[tuple[str, str]]:
    return [(c.__module__, c.__qualname__) for c in type(source).__mro__]


def require_torch() -> None:
    """Raise E_NO_TORCH unless torch and the ONNX exporter that it uses can be imported."""
    for package in ("torch", "onnxscript"):
        try:
            import_module(package)
        except ImportError as error:
            raise SecateurError(
                "E_NO_TORCH",
                f"reading and writing torch modules needs the package {package!r}, which cannot be imported",
                where=str(error),
                hint='pip install "secateur[torch]"',
            ) from None


def load_torch(
    source: Any,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    name: str | None = None,
) -> Graph:
    """Read a torch network in evaluation mode; the module itself keeps its mode and its weights.

    args, kwargs: example inputs of a module's forward (an ExportedProgram carries its own). dynamic_shapes: as for
    torch.export; names may stand for Dims: {"x": {0: "batch"}}. Constants carry the names and the layout of
    parameters and buffers, nodes the path of their module. Raises E_NO_TORCH, E_TORCH_ARGS, E_TORCH_EXPORT.
    """
    require_torch()
    from compiler.frontends.torch.capture import capture
    from compiler.frontends.torch.lifting import lift_program

    captured = capture(source, args, dict(kwargs or {}), dynamic_shapes)
    return lift_program(captured, shapes or {}, name or type(source).__name__)
