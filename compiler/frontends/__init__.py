"""The roads into the IR: whatever describes a network becomes a Graph.

A frontend registers what it accepts; `load` asks each in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from compiler.frontends.onnx import load_onnx
from compiler.frontends.onnx.bind import parse_shape
from compiler.frontends.operators import check_ops
from compiler.frontends.torch import is_torch_source, load_torch
from compiler.ir import Graph, SecateurError

__all__ = ["FRONTENDS", "Frontend", "check_ops", "load", "load_onnx", "parse_shape", "register_frontend"]


@dataclass(frozen=True)
class Frontend:
    """One road in.

    accepts: true for the sources that `load` reads; it must be cheap and import nothing heavy.
    load: called as load(source, shapes=…, name=…, **options). takes: how messages name the sources.
    """

    name: str
    takes: str
    accepts: Callable[[Any], bool]
    load: Callable[..., Graph]


FRONTENDS: dict[str, Frontend] = {}


def register_frontend(frontend: Frontend) -> Frontend:
    """Add a frontend; one of the same name is replaced."""
    FRONTENDS[frontend.name] = frontend
    return frontend


def load(
    source: Any, *, shapes: Mapping[str, Sequence[int]] | None = None, name: str | None = None, **options: Any
) -> Graph:
    """Read a network from a file's path or an object in memory.

    shapes: input name -> shape, binds symbolic dimensions. name: what to call the graph. `options` are
    the frontend's own. Raises SecateurError E_FRONTEND when nothing reads this kind of source.
    """
    for frontend in FRONTENDS.values():
        if frontend.accepts(source):
            return frontend.load(source, shapes=shapes, name=name, **options)
    accepted = "; ".join(f.takes for f in FRONTENDS.values())
    raise SecateurError(
        "E_FRONTEND", f"nothing reads a {type(source).__module__}.{type(source).__qualname__}", hint=f"give {accepted}"
    )


register_frontend(
    Frontend(
        name="onnx",
        takes="the path of a .onnx file or an onnx.ModelProto",
        accepts=lambda source: isinstance(source, str | Path | ModelProto),
        load=load_onnx,
    )
)

register_frontend(
    Frontend(
        name="torch",
        takes="a torch.nn.Module with args=(…), or an ExportedProgram",
        accepts=is_torch_source,
        load=load_torch,
    )
)
