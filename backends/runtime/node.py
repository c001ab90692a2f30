"""Run a WebAssembly artifact in Node, from Python: to verify what was compiled, to run it and to time it.

Node is a child process; frames of bytes go through its standard input and output (see web/node.mjs).
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import struct
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from backends.runtime.loader import check_inputs, read_manifest, tensor_info
from compiler.errors import SecateurError

OLDEST = 20
"""The first major version of Node that is supported."""
MOST_THREADS = 64
"""As many as the code for threads has room for."""
_SCRIPT = Path(__file__).parent / "web" / "node.mjs"


@functools.cache
def node() -> str | None:
    """The command of a Node that is new enough; None without one."""
    found = shutil.which("node")
    if found is None:
        return None
    try:
        version = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    major = re.match(r"v(\d+)\.", version)
    return found if major and int(major[1]) >= OLDEST else None


class NodeExecutable:
    """A WebAssembly artifact that runs in Node. `run` may be called from several threads: they take turns.

    threads: more than one for artifacts with code for several, which wasm's `--threads` adds. variant: "relaxed" or
    "simd"; the better one that Node has if it is not given.
    """

    def __init__(
        self, path: Path, threads: int = 1, manifest: dict[str, Any] | None = None, variant: str | None = None
    ) -> None:
        self.path, self.threads = path, threads
        self.manifest = read_manifest(path) if manifest is None else manifest
        most = MOST_THREADS if "threads" in self.manifest else 1
        if not 1 <= threads <= most:
            raise SecateurError(
                "E_THREADS",
                f"this WebAssembly artifact runs on at most {most} thread{'s' * (most > 1)}, not {threads}",
                where=str(path),
                hint="compile it with --threads, or run it on one" if most == 1 else f"use 1 to {most} threads",
            )
        if variant is not None and variant not in self.manifest.get("variants", ()):
            known = ", ".join(self.manifest.get("variants", ()))
            raise SecateurError("E_OPTION_VALUE", f"the artifact has no variant {variant!r}", hint=f"use: {known}")
        command = node()
        if command is None:
            raise SecateurError(
                "E_NO_NODE",
                f"WebAssembly artifacts run in Node {OLDEST} or newer, which is not on PATH",
                where=str(path),
                hint="install Node, or open the artifact in a browser: secateur serve",
            )
        self.inputs = tuple(tensor_info(i) for i in self.manifest["inputs"])
        self.outputs = tuple(tensor_info(o) for o in self.manifest["outputs"])
        self._turn = threading.Lock()
        self._closed = False
        self._process = subprocess.Popen(
            [command, str(_SCRIPT), str(path), variant or "auto", str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            self.variant = str(json.loads(self._answer())["variant"])
        except BaseException:
            self.close()
            raise

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name for inputs by name, as `Executable.run`."""
        return self._run(inputs, 1)[1]

    def time(self, inputs: Mapping[str, np.ndarray], times: int) -> list[float]:
        """Seconds of each of so many runs, measured in Node around the loader's `run`."""
        return self._run(inputs, times)[0]

    def close(self) -> None:
        """End the process. Closing twice does nothing."""
        self._closed = True
        if self._process.poll() is None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> NodeExecutable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()

    def __repr__(self) -> str:
        return f"NodeExecutable({str(self.path)!r})"

    def _run(self, inputs: Mapping[str, np.ndarray], times: int) -> tuple[list[float], dict[str, np.ndarray]]:
        arrays = check_inputs(inputs, self.inputs)
        if self._closed:
            raise SecateurError("E_CLOSED", "the executable is closed", hint="load the artifact again")
        with self._turn:
            self._send(struct.pack("<I", times), *(array.tobytes() for array in arrays))
            body = self._answer()
        seconds = np.frombuffer(body, "<f8", times) / 1e3
        results, at = {}, seconds.nbytes
        for info in self.outputs:
            size = int(np.prod(info.shape))
            results[info.name] = np.frombuffer(body, info.dtype, size, at).reshape(info.shape).copy()
            at += results[info.name].nbytes
        return [float(s) for s in seconds], results

    def _send(self, *parts: bytes) -> None:
        assert self._process.stdin is not None
        try:
            for part in parts:
                self._process.stdin.write(part)
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None

    def _answer(self) -> bytes:
        assert self._process.stdout is not None
        head = self._process.stdout.read(8)
        if len(head) < 8:
            raise self._ended()
        status, length = struct.unpack("<II", head)
        body = self._process.stdout.read(length)
        if len(body) < length:
            raise self._ended()
        if status:
            error = json.loads(body)
            raise SecateurError(error["code"], error["message"], where=str(self.path))
        return body

    def _ended(self) -> SecateurError:
        return SecateurError(
            "E_RUN", f"Node ended with status {self._process.wait()}", where=str(self.path), hint="see its own message"
        )
