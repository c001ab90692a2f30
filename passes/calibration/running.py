"""Running a graph on samples while looking inside: ONNX Runtime with inner values as further outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from compiler.ir import Graph, Value
from compiler.ir.execute import session
from passes.calibration.samples import Feeds
from passes.simplify.eliminate_dead import eliminate_dead


def observe(graph: Graph, values: Sequence[Value], batches: Iterable[Feeds]) -> Iterator[dict[Value, np.ndarray]]:
    """For each batch, the arrays of some values of the graph (its inputs among them)."""
    inner = [v for v in dict.fromkeys(values) if v not in graph.inputs]
    twin = dict(zip(graph.values(), (copy := graph.copy()).values(), strict=True))
    copy.outputs = [twin[v] for v in inner]
    eliminate_dead(copy)
    runner = session(copy) if inner else None
    names = [v.name for v in inner]
    for feeds in batches:
        found = runner.run(names, feeds) if runner is not None else []
        yield dict(zip(inner, found, strict=True)) | {v: feeds[v.name] for v in values if v in graph.inputs}
