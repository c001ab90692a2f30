"""Linking WebAssembly: modules of C sources and compiled kernels, with SIMD and with relaxed SIMD."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import tvm

from backends.aot import RUNTIME, cache_folder, compile_kernels
from backends.target import Target
from compiler.errors import SecateurError

WEB = RUNTIME / "web"
_STACK = 256 << 10
_THREADS_FEATURES = ("+atomics", "+bulk-memory", "+mutable-globals")
_MOST_PAGES = 65535


def variants(target: Target, threads: bool = False) -> dict[str, Target]:
    """File name of each code, and the target that it is compiled for."""
    if threads:
        target = dataclasses.replace(target, features=(*target.features, *_THREADS_FEATURES))
    relaxed = dataclasses.replace(target, features=(*target.features, "+relaxed-simd"), contract=True)
    end = "-threads.wasm" if threads else ".wasm"
    return {f"model{end}": target, f"model-relaxed{end}": relaxed}


def linked(
    sources: Mapping[str, str],
    kernels: dict[str, tvm.tirx.PrimFunc],
    target: Target,
    exports: Sequence[str],
    threads: bool = False,
) -> bytes:
    """A module of C sources, by file name, and of kernels, by symbol; exports: the symbols that it offers."""
    pool = "threads.c" if threads else "launch.c"
    with tempfile.TemporaryDirectory(prefix="secateur-") as name:
        folder = Path(name)
        for file, text in sources.items():
            (folder / file).write_text(text)
        for source in (WEB / pool, RUNTIME / "parallel.h", RUNTIME / "tasks.h"):
            shutil.copy(source, folder)
        names = [*sources, pool]
        for index, code in enumerate(compile_kernels(kernels, target)):
            names.append(f"kernels{index}.o")
            (folder / names[-1]).write_bytes(code)
        try:
            _link(folder, ["-target", "wasm32-freestanding"], names, exports, threads)
        except SecateurError as error:
            if "undefined symbol" not in str(error.where):
                raise
            # Functions of libm: zig builds WASI's C library, which takes half a minute once per machine.
            _link(folder, ["-target", "wasm32-wasi", "-mexec-model=reactor"], names, exports, threads)
        return (folder / "model.wasm").read_bytes()


def _link(folder: Path, flags: list[str], names: list[str], exports: Sequence[str], threads: bool) -> None:
    cpu = "generic+simd128"
    options = ["--no-entry", f"-z,stack-size={_STACK}"]
    if threads:
        cpu += "+atomics+bulk_memory"
        options += ["--shared-memory", "--import-memory", f"--max-memory={_MOST_PAGES << 16}"]
    options += [f"--export={symbol}" for symbol in exports]
    command = [sys.executable, "-m", "ziglang", "cc", *flags, f"-mcpu={cpu}", "-O2", "-std=c11", "-s"]
    command += [f"-Wl,{option}" for option in options]
    environment = os.environ | {name: cache_folder("zig") for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")}
    done = subprocess.run(
        [*command, "-o", "model.wasm", *names], cwd=folder, env=environment, capture_output=True, check=False
    )
    if done.returncode:
        raise SecateurError(
            "E_LINK",
            "linking the compiled model failed",
            where=done.stderr.decode(errors="replace").strip()[-2000:],
            hint="check that the disk is not full and that `python -m ziglang version` works",
        )
