"""The reference executor: a Graph run by ONNX Runtime, and inputs to run it on.

Certificates, verification and activation statistics compare with what this computes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from compiler.errors import SecateurError
from compiler.ir.graph import Graph
from compiler.ir.proto import model_proto

if TYPE_CHECKING:
    import onnxruntime

_PROTOBUF_LIMIT = 1_800_000_000


def session(model: Graph | onnx.ModelProto | str | Path, *, threads: int = 0, optimize: bool = True) -> Any:
    """An ONNX Runtime CPU session. threads=0 leaves their number to the runtime.

    E_REFERENCE when the runtime refuses the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1 if threads else 0
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        if isinstance(model, str | Path):
            return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        if isinstance(model, Graph) and sum(c.data.nbytes for c in model.all_constants() if c.data) > _PROTOBUF_LIMIT:
            return _session_from_disk(model, options)
        proto = model_proto(model) if isinstance(model, Graph) else model
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except SecateurError:
        raise
    except Exception as error:  # the runtime's own exception types are not importable by a stable name
        raise SecateurError(
            "E_REFERENCE",
            "ONNX Runtime does not accept this model",
            where=str(error).strip()[:400],
            hint="the reference answer cannot be computed; check the model with onnx.checker",
        ) from None


def _session_from_disk(graph: Graph, options: onnxruntime.SessionOptions) -> Any:
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        path = str(Path(folder) / "model.onnx")
        onnx.save_model(model_proto(graph), path, save_as_external_data=True, location="model.onnx.data")
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def execute(
    model: Graph | onnx.ModelProto | str | Path, inputs: Mapping[str, np.ndarray], *, optimize: bool = True
) -> dict[str, np.ndarray]:
    """Run once; returns every output by name."""
    runner = session(model, optimize=optimize)
    names = [o.name for o in runner.get_outputs()]
    return dict(zip(names, runner.run(names, dict(inputs)), strict=True))


def random_inputs(graph: Graph, seed: int = 0, symbol: int = 2) -> dict[str, np.ndarray]:
    """Normal noise for each floating-point input, small integers for the rest; symbolic extents become `symbol`."""
    rng = np.random.default_rng(seed)
    made = {}
    for value in graph.inputs:
        if value.shape is None or value.dtype is None:
            raise SecateurError(
                "E_SHAPE",
                f"the type of input {value.name!r} is unknown",
                where=value.name,
                hint="bind it with --shape NAME=1x3x224x224",
            )
        shape = tuple(d if isinstance(d, int) else symbol for d in value.shape)
        if value.dtype.kind == "b":
            made[value.name] = rng.integers(0, 2, shape).astype(bool)
        elif value.dtype.kind in "iu":
            made[value.name] = rng.integers(0, 2, shape).astype(value.dtype)
        else:
            made[value.name] = rng.standard_normal(shape).astype(value.dtype)
    return made


def relative_difference(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The largest, over outputs, of |actual - expected| / |expected| in the Euclidean norm.

    inf where shapes differ or where only one side is not a number.
    """
    worst = 0.0
    for name, reference in expected.items():
        other = actual[name]
        if other.shape != reference.shape:
            return float("inf")
        a, b = np.asarray(other, np.float64), np.asarray(reference, np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        if same.all():
            continue
        norm = float(np.linalg.norm(np.where(np.isfinite(b), b, 0).ravel()))
        gap = float(np.linalg.norm(np.where(same, 0, a - b).ravel()))
        ratio = gap / max(norm, 1e-30)
        worst = max(worst, ratio if np.isfinite(ratio) else float("inf"))
    return worst
