"""Run a C library's artifact from Python, through its own program: on a machine of its kind, or under qemu-user.

Inputs and outputs go through files of raw elements; each call is a process of its own.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from backends.runtime.loader import architecture, check_inputs, read_manifest, tensor_info
from compiler.errors import SecateurError


def runner(manifest: Mapping[str, Any]) -> list[str] | None:
    """The words before an artifact's program that make it run here: none, or an emulator; None if it cannot run."""
    if not manifest.get("program") or platform.system() != "Linux":
        return None
    there = architecture(str(manifest["target"]["triple"]).partition("-")[0])
    if there == architecture(platform.machine()):
        return []
    emulator = shutil.which(f"qemu-{there}") or shutil.which(f"qemu-{there}-static")
    return None if emulator is None else [emulator]


class ProgramExecutable:
    """A C library's artifact that runs as a process. `run` may be called from several threads at once."""

    def __init__(self, path: Path, threads: int = 1, manifest: dict[str, Any] | None = None) -> None:
        self.path, self.threads = path, threads
        self.manifest = read_manifest(path) if manifest is None else manifest
        command = runner(self.manifest)
        if command is None:
            name = self.manifest["target"]["name"]
            raise SecateurError(
                "E_TARGET",
                f"the artifact was compiled for {name}, which cannot run here",
                where=str(path),
                hint="install qemu-user (Debian, Ubuntu), or copy the artifact to a device: see docs/arm.md"
                if self.manifest.get("program")
                else "link its library into a program on a device: see docs/arm.md",
            )
        self.emulated = bool(command)
        self._command = [*command, str((path / self.manifest["program"]).resolve())]
        self.inputs = tuple(tensor_info(i) for i in self.manifest["inputs"])
        self.outputs = tuple(tensor_info(o) for o in self.manifest["outputs"])
        self._lock = threading.Lock()
        self._closed = False

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs by name for inputs by name, as `Executable.run`."""
        return self._run(inputs, 1)[1]

    def time(self, inputs: Mapping[str, np.ndarray], times: int) -> list[float]:
        """Seconds of each of so many runs, measured by the program itself.

        Raises SecateurError E_EMULATED under an emulator, whose seconds say nothing of a device.
        """
        if self.emulated:
            raise SecateurError(
                "E_EMULATED",
                "an emulator's times say nothing about the processor that it emulates",
                where=str(self.path),
                hint=f"on the device: ./{self.manifest['program']} -n 50; modelled figures: docs/arm.md",
            )
        return self._run(inputs, times)[0]

    def close(self) -> None:
        """Nothing is held; later runs are refused all the same."""
        self._closed = True

    def __enter__(self) -> ProgramExecutable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ProgramExecutable({str(self.path)!r}, threads={self.threads})"

    def _run(self, inputs: Mapping[str, np.ndarray], times: int) -> tuple[list[float], dict[str, np.ndarray]]:
        arrays = check_inputs(inputs, self.inputs)
        if self._closed:
            raise SecateurError("E_CLOSED", "the executable is closed", hint="load the artifact again")
        with tempfile.TemporaryDirectory(prefix="secateur-run-") as name:
            folder = Path(name)
            command = [*self._command, "-t", str(self.threads), "-n", str(times), "-s", "seconds.txt"]
            if "weights.bin" in self.manifest["files"]:
                command += ["-w", str((self.path / "weights.bin").resolve())]
            for index, array in enumerate(arrays):
                (folder / f"in{index}.bin").write_bytes(array.tobytes())
                command += ["-i", f"in{index}.bin"]
            for index in range(len(self.outputs)):
                command += ["-o", f"out{index}.bin"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SecateurError(
                    "E_RUN",
                    f"the model's program ended with status {done.returncode}",
                    where=done.stderr.strip()[-500:] or str(self.path),
                )
            seconds = [float(line) for line in (folder / "seconds.txt").read_text().split()]
            results = {
                info.name: np.fromfile(folder / f"out{index}.bin", info.dtype).reshape(info.shape)
                for index, info in enumerate(self.outputs)
            }
        return seconds, results
