"""Running a graph on samples while looking inside: ONNX Runtime with inner values as further outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from compiler.ir import ArrayConstant, Graph, Value
from compiler.ir.execute import session
from passes.calibration.samples import Samples
from passes.calibration.stepping import own_statistics
from passes.simplify.eliminate_dead import eliminate_dead


def observe(graph: Graph, values: Sequence[Value], samples: Samples) -> Iterator[dict[Value, np.ndarray]]:
    """For each batch, the arrays of some values of the graph (its inputs among them)."""
    inner = [v for v in dict.fromkeys(values) if v not in graph.inputs]
    twin = dict(zip(graph.values(), (copy := graph.copy()).values(), strict=True))
    if inner and samples.noise:
        _normalize_anew(copy, samples)
    copy.outputs = [twin[v] for v in inner]
    eliminate_dead(copy)
    runner = session(copy) if inner else None
    names = [v.name for v in inner]
    for feeds in samples:
        found = runner.run(names, feeds) if runner is not None else []
        yield dict(zip(inner, found, strict=True)) | {v: feeds[v.name] for v in values if v in graph.inputs}


def _normalize_anew(graph: Graph, samples: Samples) -> None:
    """Give each BatchNormalization the statistics of these samples."""
    for node, found in own_statistics(graph, samples).items():
        for index, array in zip((3, 4), found, strict=True):
            like = node.inputs[index]
            assert like is not None
            node.inputs[index] = Value(graph.fresh_name(like.name), data=ArrayConstant(array.astype(like.dtype)))
