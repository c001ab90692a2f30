"""A graph as an nn.Module of its own, computed by one rule an operator: what an ONNX file is trained and scored with.

No source code of the network is needed, unlike for `export_torch`, which writes into the user's own module.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from compiler.frontends.torch import require_torch
from compiler.ir import Graph

if TYPE_CHECKING:
    from compiler.exporters.torch.differentiable.module import DifferentiableGraph

__all__ = ["from_module", "to_module"]


def to_module(
    graph: Graph, *, trainable: Sequence[str] = ("*",), keep_zeros: bool = False, verify: bool = True
) -> DifferentiableGraph:
    """An nn.Module that computes `graph`, differentiable in its parameters and its floating-point inputs.

    Constants that count as parameters and reach an output through differentiable operators become nn.Parameters,
    where one of the patterns `trainable` matches their name; statistics of BatchNormalization and the other
    floating-point constants become buffers. It is in evaluation mode, which means what ONNX says; in training mode
    BatchNormalization normalises by the batch and moves its statistics, and Dropout drops.
    keep_zeros: parameters of two and more axes stay zero where they are, whatever is learnt: for sparse networks.
    verify: run it on noise and compare with ONNX Runtime, at most 1e-4 relative (1e-2 in half precision).

    Raises E_NO_TORCH, E_NO_TORCH_RULE for an operator that cannot be computed, E_SHAPE where noise cannot be made
    because an input's type is unknown, and CheckFailed E_TORCH_MODULE, naming the first node that differs.
    """
    require_torch()
    from compiler.exporters.torch.differentiable.checking import check_module
    from compiler.exporters.torch.differentiable.module import DifferentiableGraph

    module = DifferentiableGraph(graph, trainable, keep_zeros).eval()
    if verify:
        check_module(graph, module)
    return module


def from_module(graph: Graph, module: DifferentiableGraph) -> Graph:
    """A copy of `graph` that holds what the parameters and buffers of `module`, made of it, hold now.

    Names, shapes and element types of the constants stay, whatever precision the module was trained in. Raises
    E_NO_TORCH, and E_TORCH_WRITE_BACK when the module's tensors do not fit the graph.
    """
    require_torch()
    from compiler.exporters.torch.differentiable.write_back import with_tensors

    return with_tensors(graph, module)
