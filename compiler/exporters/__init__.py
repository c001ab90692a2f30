"""The roads out of the IR: a Graph becomes a file that other tools read."""

from __future__ import annotations

from pathlib import Path

from compiler.exporters.onnx import save_onnx, to_model_proto
from compiler.exporters.output import check_output
from compiler.ir import Graph

__all__ = ["check_output", "export", "save_onnx", "to_model_proto"]


def export(
    graph: Graph, path: str | Path, *, external_data: bool | None = None, overwrite: bool = False
) -> tuple[Path, ...]:
    """Write the graph as an ONNX file; see `save_onnx`. Returns the files written, the model first."""
    return save_onnx(graph, path, external_data=external_data, overwrite=overwrite)
