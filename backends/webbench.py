"""The benchmark of a WebAssembly package: kernels to time, and the scripts that do it in Node and in pages.

What it writes is a profile (see profile.py) of the engine, as a C library's benchmark program does of a processor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from backends.aot import RUNTIME
from backends.probes import probes
from backends.profile import SCHEMA, VERSION, described
from backends.target import Target
from backends.trials import calls_source, contents, trial
from backends.weblink import linked
from backends.webpage import PAGE
from compiler.version import __version__

BENCH = RUNTIME / "web" / "bench"
_REPEAT = """
int32_t secateur_probe_repeat(int32_t index, void *const *p, int32_t calls) {
  while (calls-- > 0)
    if (secateur_probe_call(index, p) != 0) return -1;
  return 0;
}
"""
EXPORTS = ("secateur_probe_repeat", "__heap_base")


def bench_files(variants: Mapping[str, Target]) -> dict[str, bytes]:
    """What lies in `bench/` of a package. variants: the targets that its code is compiled for, by name of its file."""
    target = next(iter(variants.values()))
    found = probes(target)
    trials = [trial(probe.make(target), probe.spec, probe.weights) for probe in found]
    places, data = contents(trials)
    kernels = {made.kernel.symbol: made.kernel.func for made in trials}
    calls = calls_source([made.kernel for made in trials], "secateur_probe_call") + _REPEAT
    code = {
        file.replace("model", "probes"): linked({"calls.c": calls}, kernels, variant, EXPORTS)
        for file, variant in variants.items()
    }
    header = {"schema": SCHEMA, "version": VERSION, "secateur": __version__, "target": described(target)}
    rows = [
        {"name": probe.name, "multiplyAdds": probe.multiply_adds, "arrays": place}
        for probe, place in zip(found, places, strict=True)
    ]
    listed = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    script = (
        "/* Written by Secateur. arrays: bytes of each, and where its content begins in probes.bin, or -1. */\n"
        f"export const header = {json.dumps(header)};\nexport const probes = [\n{listed},\n];\n"
    )
    texts = {name: (BENCH / name).read_bytes() for name in ("index.html", "bench.js", "page.js", "run.js")}
    texts |= {name: (PAGE / name).read_bytes() for name in ("page.css", "icon.svg")}
    files = texts | code | {"probes.js": script.encode(), "probes.bin": data}
    return {f"bench/{name}": content for name, content in files.items()}
