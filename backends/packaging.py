"""What an artifact holds beside its manifest and its model: a strategy for each kind of target.

A packager is a frozen dataclass whose fields are its options. `backends.native.build` writes what it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from backends.lowering.program import Program
from backends.memory import MemoryPlan
from backends.target import Target
from compiler.errors import SecateurError


@dataclass(frozen=True)
class Package:
    """files: content by path, relative to the artifact, with forward slashes. manifest: entries to add to it.
    executables: paths of programs among the files."""

    files: dict[str, bytes]
    manifest: dict[str, Any] = field(default_factory=dict)
    executables: frozenset[str] = frozenset()


class Packager(Protocol):
    """How a lowered and planned program becomes files. parallel: its kernels may share loops among threads."""

    @property
    def parallel(self) -> bool: ...

    def require(self, target: Target) -> None:
        """Raise SecateurError if artifacts for `target` cannot be built here."""

    def package(self, program: Program, memory: MemoryPlan, target: Target) -> Package:
        """The files."""


_REGISTRY: dict[str, Callable[[], Packager]] = {}
_HOMES = {"library": "backends.native", "web": "backends.wasm", "c": "backends.clibrary"}
"""Modules that register the packagers of this package."""


def register_packager(kind: str, factory: Callable[[], Packager]) -> None:
    """Let `packager_for` answer with `factory()` for targets of this kind of package."""
    _REGISTRY[kind] = factory


def packager_for(target: Target, kind: str | None = None) -> Packager:
    """The packager of a kind, or the one that a target has; E_PACKAGE for a kind that nobody registered."""
    kind = kind or target.package
    if kind in _HOMES:
        import_module(_HOMES[kind])
    factory = _REGISTRY.get(kind)
    if factory is None:
        known = ", ".join(sorted({*_HOMES, *_REGISTRY}))
        raise SecateurError("E_PACKAGE", f"unknown kind of package {kind!r}", hint=f"use one of: {known}")
    return factory()
