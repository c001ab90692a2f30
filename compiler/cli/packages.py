"""What `secateur compile` puts into an artifact: the options of every kind of package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compiler.cli import web
from compiler.ir import SecateurError

if TYPE_CHECKING:
    from backends.packaging import Packager

Package = Annotated[
    str | None,
    typer.Option(
        help="What the artifact holds: library (for Python here), c (C library), web; the target's own unless given."
    ),
]
LibraryName = Annotated[
    str | None, typer.Option("--name", help="C libraries: what files and functions begin with (model).")
]
EmbedWeights = Annotated[
    bool,
    typer.Option("--embed-weights", help="wasm, C libraries: put the weights into the code, not beside it."),
]


def packager(
    target: str,
    package: str | None,
    name: str | None,
    embed_weights: bool,
    threads: bool,
    bench: bool,
    demo: bool,
    class_names: Path | None,
    samples: Path | None,
    normalize: str | None,
) -> Packager | None:
    """What the options ask for; None where they leave it to the target.

    Raises SecateurError E_OPTION_VALUE for options that belong to another kind of package, E_FILE, E_TARGET.
    """
    from backends.packaging import packager_for
    from backends.target import target as named_target

    chosen = named_target(target)
    if (package or chosen.package) == "c" and not (demo or threads or bench):
        from backends.clibrary import CLibrary

        return CLibrary(name or "model", embed_weights)
    if name is not None:
        raise SecateurError("E_OPTION_VALUE", "--name is for C libraries", hint="add --package c, or leave --name out")
    found = web.packager(target, embed_weights, threads, bench, demo, class_names, samples, normalize)
    return packager_for(chosen, package) if found is None and package is not None else found
