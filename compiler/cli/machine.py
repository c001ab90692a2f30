"""`secateur doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import typer

from compiler.cli.shared import Json, Quiet, Screen, table

_PACKAGES = (
    *("numpy", "onnx", "onnx-graphsurgeon", "networkx", "apache-tvm", "ziglang", "onnxruntime"),
    *("typer", "rich", "torch"),
)
_OPTIONAL = {"torch"}


def doctor_command(json: Json = False, quiet: Quiet = False) -> None:
    """Check the installation: packages, target, linker; exit 1 when something needed is missing."""
    screen = Screen(json, quiet)
    found = {name: _version(name) for name in _PACKAGES}
    missing = [n for n, v in found.items() if v is None and n not in _OPTIONAL]
    linker = _linker()
    target = _target()
    rows = [["python", platform.python_version()], ["system", f"{platform.system()} {platform.machine()}"]]
    rows += [
        [name, version or ("not installed (optional)" if name in _OPTIONAL else "MISSING")]
        for name, version in found.items()
    ]
    rows += [["target", target], ["linker", linker or "MISSING: pip install ziglang, or a C compiler"]]
    screen.print(table("secateur doctor", "", "", rows=rows))
    healthy = not missing and linker is not None and not target.startswith("MISSING")
    screen.print("all is well" if healthy else "something is missing: see above")
    screen.finish({"packages": found, "linker": linker, "target": target, "healthy": healthy})
    if not healthy:
        raise typer.Exit(1)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _target() -> str:
    try:
        from backends import Target

        target = Target.native()
    except Exception as error:  # whatever TVM's import raises is the diagnosis
        return f"MISSING: {error}"
    return f"{target.cpu}, {8 * target.vector_bytes}-bit vectors, {target.vector_registers} registers"


def _linker() -> str | None:
    """The first C compiler driver that links a shared library here."""
    for command in ([sys.executable, "-m", "ziglang", "cc"], ["cc"]):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.c"
            source.write_text("int probe(void) { return 0; }\n", encoding="utf-8")
            try:
                done = subprocess.run(
                    [*command, "-shared", str(source), "-o", str(Path(folder) / "probe.so")],
                    capture_output=True,
                    timeout=120,
                    check=False,
                )
            except (OSError, subprocess.TimeoutExpired):
                continue
            if done.returncode == 0:
                return " ".join(command[-2:])
    return None
