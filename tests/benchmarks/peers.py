"""The engines beside which the benchmark runs: each opens a model for a number of threads and closes it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path

import numpy as np

from backends.benchmark import Timed, onnxruntime_session, timed
from compiler.errors import SecateurError

Peer = Callable[[Path, int, Path], AbstractContextManager[Timed]]
"""(model file, threads, file of inputs) -> what runs it."""


@contextmanager
def onnxruntime(model: Path, threads: int, inputs: Path) -> Iterator[Timed]:
    """ONNX Runtime, as it comes."""
    session, feeds = onnxruntime_session(model, threads), dict(np.load(inputs))
    yield timed(lambda: session.run(None, feeds))


@contextmanager
def openvino(model: Path, threads: int, inputs: Path) -> Iterator[Timed]:
    """OpenVINO for latency. In float32, because by itself it computes in bfloat16 where the processor can; without
    pinning, because it would pin the thread that everything else here runs on."""
    try:
        import openvino
    except ImportError:
        raise SecateurError(
            "E_NO_PEER", "OpenVINO is not installed", hint="`make bench` installs it; by hand: pip install openvino"
        ) from None
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    feeds = dict(np.load(inputs))
    yield timed(lambda: request.infer(feeds, share_inputs=True, share_outputs=True))


PEERS: dict[str, Peer] = {"onnxruntime": onnxruntime, "openvino": openvino}


def version(peer: str) -> str:
    """Its version; E_NO_PEER where it is not installed."""
    try:
        return metadata.version(peer)
    except metadata.PackageNotFoundError:
        raise SecateurError(
            "E_NO_PEER", f"{peer} is not installed", hint="`make bench` installs what it compares with"
        ) from None
