"""The module against ONNX Runtime on noise, and the first node at which they part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from compiler.exporters.torch.differentiable.dtypes import as_array, as_tensor
from compiler.exporters.torch.verifying import HALF_TOLERANCE, TOLERANCE
from compiler.frontends.torch.capture import evaluating
from compiler.ir import CheckFailed, Graph, SecateurError
from compiler.ir.execute import execute, random_inputs, relative_difference

if TYPE_CHECKING:
    from compiler.exporters.torch.differentiable.module import DifferentiableGraph


def check_module(graph: Graph, module: DifferentiableGraph, inputs: Mapping[str, np.ndarray] | None = None) -> float:
    """The relative difference between a module and the graph that it was made of; inputs: noise by default.

    Raises CheckFailed E_TORCH_MODULE when it is more than 1e-4 (1e-2 in half precision).
    """
    feeds = random_inputs(graph) if inputs is None else dict(inputs)
    expected = execute(graph, feeds)
    found = _outputs(graph, module, feeds)
    difference = relative_difference(found, expected)
    if difference <= _tolerance(expected):
        return difference
    raise CheckFailed(
        "E_TORCH_MODULE",
        f"the module differs from ONNX Runtime by {difference:.1e} (relative) on noise",
        where=_first_difference(graph, module, feeds) or graph.name,
        hint="if the node only amplifies rounding (a quantiser, a choice of the largest), pass verify=False; "
        "otherwise please report it with the model",
    )


def _outputs(graph: Graph, module: DifferentiableGraph, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    with evaluating(module), torch.no_grad():
        results = module(**_tensors(module, feeds))
    results = results if isinstance(results, tuple) else (results,)
    return {v.name: as_array(t, np.dtype(v.dtype)) for v, t in zip(graph.outputs, results, strict=True)}


def _tensors(module: DifferentiableGraph, feeds: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    device = next((t.device for t in module.buffers()), torch.device("cpu"))
    return {name: as_tensor(array).to(device) for name, array in feeds.items()}


def _tolerance(values: Mapping[str, np.ndarray]) -> float:
    return HALF_TOLERANCE if any(a.dtype.itemsize == 2 and a.dtype.kind in "fV" for a in values.values()) else TOLERANCE


def _first_difference(graph: Graph, module: DifferentiableGraph, feeds: Mapping[str, np.ndarray]) -> str | None:
    """The first node, bodies aside, whose results differ; None when the runtime cannot give them all out."""
    watched = graph.copy()
    watched.outputs = [v for n in watched.nodes for v in n.outputs if v.dtype is not None]
    try:
        expected = execute(watched, feeds, optimize=False)
    except (SecateurError, RuntimeError):
        return None
    with evaluating(module), torch.no_grad():
        found = module.intermediate(_tensors(module, feeds))
    for node in graph.nodes:
        for value in node.outputs:
            if value.name not in expected or not isinstance(found.get(value.name), torch.Tensor):
                continue
            reference = {value.name: expected[value.name]}
            difference = relative_difference(
                {value.name: as_array(found[value.name], expected[value.name].dtype)}, reference
            )
            if difference > _tolerance(reference):
                return f"{node.describe()}: {value.name!r} is the first to differ, by {difference:.1e}"
    return None
