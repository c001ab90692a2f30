"""Where a result may be written: refused before the work starts, and whole or not at all.

`check_output` is for callers, before they spend time; `replacing` is for writers.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.ir import SecateurError


def check_output(
    path: str | Path, inputs: Iterable[str | Path] = (), overwrite: bool = False, *, directory: bool = False
) -> Path:
    """The path as a Path, if a file (an artifact directory, with `directory`) may be written there.

    Raises E_OUTPUT_IS_INPUT (it is one of `inputs`), E_OUTPUT_EXISTS (and `overwrite` is off), or
    E_OUTPUT (no parent folder, the wrong kind of thing is there, not writable). A directory is replaced only
    when it is an artifact.
    """
    path = Path(path)
    if path.is_dir() and not directory:
        raise _refuse("E_OUTPUT", "the output is a directory", path, "give the name of a file")
    if path.is_dir() and overwrite and not (path / "manifest.json").is_file() and any(path.iterdir()):
        raise _refuse("E_OUTPUT", "the output is a directory that is no artifact", path, "choose another path")
    if not path.parent.is_dir():
        raise _refuse("E_OUTPUT", "the output's folder does not exist", path, f"create it: mkdir -p {path.parent}")
    for source in inputs:
        if _same_file(path, Path(source)):
            raise _refuse("E_OUTPUT_IS_INPUT", "the output would replace its own input", path, "write to another path")
    if path.exists() and not overwrite:
        hint = "choose another path, or replace it: --force (in Python, overwrite=True)"
        raise _refuse("E_OUTPUT_EXISTS", "the output exists already", path, hint)
    right_kind = path.is_dir() if directory else path.is_file()
    if not os.access(path.parent, os.W_OK) or (path.exists() and not right_kind):
        raise _refuse("E_OUTPUT", "the output cannot be written", path, "choose a folder that you may write to")
    return path


@contextmanager
def replacing(*paths: Path) -> Iterator[list[Path]]:
    """Temporary files that take the places of `paths` when the block ends, and vanish when it fails.

    The last path is replaced last, so that a model appears only after its data. E_OUTPUT when the
    system refuses to write.
    """
    temporary = [path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp") for path in paths]
    try:
        yield temporary
        for source, path in zip(temporary, paths, strict=True):
            os.replace(source, path)
    except OSError as error:
        raise _refuse(
            "E_OUTPUT",
            f"the output cannot be written: {error.strerror or error}",
            paths[-1],
            "check the free space and the permissions of the folder",
        ) from error
    finally:
        for source in temporary:
            source.unlink(missing_ok=True)


def _same_file(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return a.absolute() == b.absolute()


def _refuse(code: str, message: str, path: Path, hint: str) -> SecateurError:
    return SecateurError(code, message, where=str(path), hint=hint)
