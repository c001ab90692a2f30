"""How much memory ONNX Runtime plans for a model's activations, as its own allocator tells."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np

_EXTENDED = re.compile(r"Extended allocation by (\d+) bytes")
_MARK = "the run that counts"
_SAME_AS_REQUESTED = 1
_INFO, _ERROR = 1, 3


def activation_bytes(model: Path, inputs: Path) -> int:
    """Bytes that ONNX Runtime asks of its arena for a run on one thread; inputs: an .npz file.

    The first run shows it what lives how long, and what it has taken is given back; for the second it asks for one
    piece of the size that it has planned. Weights, inputs and outputs do not count. The arena tells its growth in
    the log only, so this is a process of its own; the arena grows by no more than it is asked for, as it can be told.
    """
    command = [sys.executable, "-m", __spec__.name, str(model), str(inputs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, errors="replace")
    return sum(int(size) for size in _EXTENDED.findall(done.stderr.partition(_MARK)[2]))


def main(model: str, inputs: str) -> None:
    """Run it twice, and log what the arena does."""
    import onnxruntime

    kinds = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    arena = onnxruntime.OrtArenaCfg({"arena_extend_strategy": _SAME_AS_REQUESTED, "initial_chunk_size_bytes": 256})
    onnxruntime.create_and_register_allocator(onnxruntime.OrtMemoryInfo("Cpu", *kinds), arena)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = _ERROR
    options.add_session_config_entry("session.use_env_allocators", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    run = onnxruntime.RunOptions()
    run.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    with np.load(inputs) as feeds:
        session.run(None, dict(feeds), run)
        print(_MARK, file=sys.stderr, flush=True)
        onnxruntime.set_default_logger_severity(_INFO)
        session.run(None, dict(feeds), run)


if __name__ == "__main__":
    main(*sys.argv[1:])
