"""What a C library's benchmark program links beside the model: kernels to time, and what is needed to call them.

The archive serves every model of a target; runtime/c/bench.h is its interface.
"""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from backends.aot import RUNTIME, compile_kernels
from backends.platforms import Platform
from backends.probes import Probe, probes
from backends.profile import SCHEMA, VERSION, described
from backends.target import Target
from backends.trials import Trial, calls_source, contents, trial
from backends.zig import zig
from compiler.version import __version__

_FLAGS = ("-O2", "-g0", "-fPIC", "-std=c11", "-fno-ident")


@functools.lru_cache(maxsize=8)
def probe_archive(target: Target, platform: Platform) -> bytes:
    """A static library of the kernels that a device is timed with."""
    found = probes(target)
    trials = [trial(probe.make(target), probe.spec, probe.weights) for probe in found]
    tables, data = probe_tables(found, trials, target)
    with tempfile.TemporaryDirectory(prefix="secateur-") as temporary:
        folder = Path(temporary)
        (folder / "bench.h").write_text((RUNTIME / "c" / "bench.h").read_text())
        (folder / "tables.c").write_text(tables)
        (folder / "probes.data").write_bytes(data)
        (folder / "data.S").write_text(embedded("secateur_probe_data", "probes.data", platform.darwin))
        objects = ["tables.o", "data.o"]
        for source, file in zip(("tables.c", "data.S"), objects, strict=True):
            zig(folder, "cc", "-target", platform.zig, *_FLAGS, *platform.flags, "-c", source, "-o", file)
        for index, code in enumerate(compile_kernels({t.kernel.symbol: t.kernel.func for t in trials}, target)):
            objects.append(f"probes{index}.o")
            (folder / objects[-1]).write_bytes(code)
        zig(folder, "ar", f"--format={'darwin' if platform.darwin else 'gnu'}", "rcsD", "probes.a", *objects)
        return (folder / "probes.a").read_bytes()


def probe_tables(found: Sequence[Probe], trials: Sequence[Trial], target: Target) -> tuple[str, bytes]:
    """The C source of what bench.h declares, and the content of the arrays that hold positions."""
    places, data = contents(trials)
    arrays, rows = "", ""
    for index, (probe, place) in enumerate(zip(found, places, strict=True)):
        cells = ", ".join(f"{{{size}u, {offset}}}" for size, offset in place)
        arrays += f"static const secateur_probe_array arrays{index}[] = {{{cells}}};\n"
        rows += f"  {{{json.dumps(probe.name)}, {probe.multiply_adds}.0, {len(place)}, arrays{index}}},\n"
    lines = (
        f'"schema": "{SCHEMA}", "version": {VERSION}, "secateur": "{__version__}"',
        f'"target": {json.dumps(described(target))}',
    )
    header = "".join(f'  {json.dumps(f" {line},")} "\\n"\n' for line in lines)
    source = (
        f'#include "bench.h"\n{arrays}const secateur_probe secateur_probes[] = {{\n{rows}}};\n'
        f"const int32_t secateur_probe_count = {len(found)};\n"
        f"const char secateur_probe_header[] =\n{header};\n"
    )
    return source + calls_source([made.kernel for made in trials], "secateur_probe_call"), data


def embedded(symbol: str, file: str, darwin: bool) -> str:
    """Assembly that holds a file under a symbol, hidden from what a shared library offers."""
    symbol = f"_{symbol}" if darwin else symbol
    if darwin:
        head, tail = f".section __TEXT,__const\n.globl {symbol}\n.private_extern {symbol}\n", ""
    else:
        head = f'.section .rodata,"a"\n.globl {symbol}\n.hidden {symbol}\n'
        tail = '.section .note.GNU-stack,"",%progbits\n'
    return f'{head}.p2align 6\n{symbol}:\n.incbin "{file}"\n{tail}'
