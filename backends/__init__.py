"""Backends: from a graph to an artifact that runs. Importing this package imports neither TVM nor onnx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.artifact import Artifact
    from backends.native import build
    from backends.runtime.loader import Executable, load
    from backends.target import Target

__all__ = ["Artifact", "Executable", "Target", "build", "load"]

_HOMES = {
    "Artifact": "backends.artifact",
    "Executable": "backends.runtime.loader",
    "Target": "backends.target",
    "build": "backends.native",
    "load": "backends.runtime.loader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
