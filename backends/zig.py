"""The C compiler, linker and archiver of the package ziglang, for any target."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from backends.aot import cache_folder, has_zig
from compiler.errors import SecateurError


def require_zig() -> None:
    """Raise SecateurError E_NO_LINKER without the package ziglang."""
    if not has_zig():
        raise SecateurError("E_NO_LINKER", "the package ziglang is missing", hint="pip install ziglang")


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Begin `zig ARGUMENTS` in `folder`; `finish` waits for it."""
    environment = dict(os.environ)
    for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
        environment.setdefault(name, cache_folder("zig"))
    command = [sys.executable, "-m", "ziglang", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for a command; SecateurError E_LINK with what it said when it failed."""
    output, _ = process.communicate()
    if process.returncode:
        raise SecateurError(
            "E_LINK",
            "compiling or linking the model's C code failed",
            where=output.decode(errors="replace").strip()[-2000:],
            hint="check that the disk is not full and that `python -m ziglang version` works",
        )


def zig(folder: Path, *arguments: str) -> None:
    """Run `zig ARGUMENTS` in `folder`."""
    finish(start(folder, *arguments))


def headers(name: str) -> Path:
    """A folder of C headers that zig carries, such as `any-darwin-any`."""
    import ziglang

    return Path(ziglang.__file__).parent / "lib" / "libc" / "include" / name
