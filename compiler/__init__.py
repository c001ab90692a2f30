"""Frontends, intermediate representation, exporters, driver and command line of Secateur."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compiler.version import __version__

if TYPE_CHECKING:
    from compiler.driver import compile
    from compiler.exporters import export
    from compiler.frontends import load

__all__ = ["__version__", "compile", "export", "load"]

_HOMES = {"compile": "compiler.driver", "export": "compiler.exporters", "load": "compiler.frontends"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
