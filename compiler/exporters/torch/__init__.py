"""Graph back into the user's own nn.Module: parameters sliced, attributes updated, ready to train.

What a module's forward spells out in numbers (`x.view(b, 512)`) no new parameter can change; such a module is
returned as a traced torch.fx GraphModule whose numbers are rewritten. Either is compared with the graph first.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compiler.frontends.torch import require_torch
from compiler.ir import Graph, SecateurError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["export_torch"]


def export_torch(
    graph: Graph,
    module: nn.Module,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    inplace: bool = False,
) -> nn.Module:
    """Give `module` the weights and widths of `graph`, which was loaded from it and then pruned.

    args, kwargs: inputs to compare with; by default those that the module was loaded with, else noise in the shapes
    of the graph's inputs. inplace: change the module itself, not a copy. Modes, devices, dtypes and requires_grad
    stay. Returns the module; where its forward depends on the old widths, a traced GraphModule (with `inplace`,
    which cannot do that, E_TORCH_WRITE_BACK).

    Raises E_NO_TORCH, E_TORCH_ARGS, and E_TORCH_WRITE_BACK when neither computes what the graph does; the module
    is then as it was.
    """
    require_torch()
    from compiler.exporters.torch.edits import Edits, write_module
    from compiler.exporters.torch.tensors import Tensors, Trace, new_tensors
    from compiler.exporters.torch.traced import write_traced
    from compiler.exporters.torch.verifying import Reference, example_call
    from compiler.frontends.torch.capture import quiet

    call = example_call(graph, module, args, kwargs)
    reference = Reference(graph, module, call)
    with quiet():
        target = module if inplace else copy.deepcopy(module)
    trace = Trace(target, call)
    tensors = Tensors.of(target)
    values = new_tensors(graph, tensors, trace)
    edits = Edits()
    try:
        write_module(edits, target, graph, tensors, values)
        problem = reference.problem(target)
    except BaseException:
        edits.undo()
        raise
    if problem is None:
        return target
    edits.undo()
    if inplace:
        raise SecateurError(
            "E_TORCH_WRITE_BACK",
            f"the module's own forward depends on the old widths: {problem}",
            where=type(module).__name__,
            hint="write sizes in forward in terms of x.shape, or take the traced module: export(graph, module)",
        )
    return write_traced(graph, trace, tensors, values, reference)
