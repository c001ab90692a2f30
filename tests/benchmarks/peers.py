"""The engines beside which the benchmark runs: each opens a model for a number of threads and closes it again."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from backends.benchmark import Timed, onnxruntime_session, timed
from compiler.errors import SecateurError
from tests.benchmarks.deepsparse_worker import MARK

_ROOT = Path(__file__).parents[2]
_WORKER = Path(__file__).with_name("deepsparse_worker.py")
_HERE = Path(sys.executable)
_ELSEWHERE = _ROOT / "build" / "deepsparse" / "bin" / "python"


@dataclass(frozen=True)
class Peer:
    """open: (model file, threads, file of inputs) -> what runs it. python: the interpreter that has it. install: how
    it gets there."""

    open: Callable[[Path, int, Path], AbstractContextManager[Timed]]
    python: Path = _HERE
    install: str = "make bench"


@contextmanager
def onnxruntime(model: Path, threads: int, inputs: Path) -> Iterator[Timed]:
    """ONNX Runtime, as it comes."""
    session, feeds = onnxruntime_session(model, threads), dict(np.load(inputs))
    yield timed(lambda: session.run(None, feeds))


@contextmanager
def openvino(model: Path, threads: int, inputs: Path) -> Iterator[Timed]:
    """OpenVINO for latency. In float32, because by itself it computes in bfloat16 where the processor can; without
    pinning, because it would pin the thread that everything else here runs on."""
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    feeds = dict(np.load(inputs))
    yield timed(lambda: request.infer(feeds, share_inputs=True, share_outputs=True))


@contextmanager
def worker(command: Sequence[str], environment: dict[str, str] | None = None) -> Iterator[Timed]:
    """A process that times itself, see `deepsparse_worker`. E_PEER with its last words when it ends."""
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | (environment or {}),
        )
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None and stdout is not None

        def answer() -> list[str]:
            line = next((text for text in stdout if text.startswith(MARK)), None)
            if line is not None:
                return line.removeprefix(MARK).split()
            errors.seek(0)
            last = next((text.strip() for text in reversed(errors.read().splitlines()) if text.strip()), "no word")
            raise SecateurError("E_PEER", f"the peer ended with status {process.wait()}: {last}")

        def run(times: int) -> list[float]:
            print(times, file=stdin, flush=True)
            return [float(seconds) for seconds in answer()]

        try:
            answer()
            yield run
        finally:
            process.kill()
            process.wait()
            stdout.close()


def deepsparse(model: Path, threads: int, inputs: Path) -> AbstractContextManager[Timed]:
    """DeepSparse, which tells nobody that it runs."""
    command = [str(_ELSEWHERE), str(_WORKER), str(model), str(inputs), str(threads)]
    return worker(command, {"NM_DISABLE_ANALYTICS": "1"})


PEERS = {
    "onnxruntime": Peer(onnxruntime),
    "openvino": Peer(openvino),
    "deepsparse": Peer(deepsparse, _ELSEWHERE, "make bench-deepsparse"),
}


def version(name: str) -> str:
    """The version of a peer; E_NO_PEER where it is not installed."""
    peer = PEERS[name]
    program = f"from importlib import metadata; print(metadata.version({name!r}))"
    try:
        return subprocess.run([peer.python, "-c", program], check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        hint = f"`{peer.install}` installs it"
        raise SecateurError("E_NO_PEER", f"{name} is not installed for {peer.python}", hint=hint) from None
