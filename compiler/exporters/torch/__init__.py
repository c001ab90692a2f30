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
    from torch.optim import Optimizer

__all__ = ["export_torch"]


def export_torch(
    graph: Graph,
    module: nn.Module,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    *,
    inplace: bool = False,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
) -> nn.Module:
    """Give `module` the weights and widths of `graph`, which was loaded from it and then pruned.

    args, kwargs: inputs to compare with; by default those that the module was loaded with, else noise in the shapes
    of the graph's inputs. inplace: change the module itself, not a copy. Modes, devices, dtypes and requires_grad
    stay. Returns the module; where its forward depends on the old widths, a traced GraphModule (with `inplace`,
    which cannot do that, E_TORCH_WRITE_BACK).

    optimizer: one or several that train the module; from then on they train what is returned, with what they
    remember: state of a parameter's shape (momentum, exp_avg, exp_avg_sq, sums of squares), which must belong to it
    element by element, is cut as the parameter was, numbers (step) stay, and so do the groups with their options and
    their order, parameters of other modules, and learning-rate schedulers.

    Raises E_NO_TORCH, E_TORCH_ARGS, E_TORCH_WRITE_BACK when neither computes what the graph does, and
    E_TORCH_OPTIMIZER for an optimiser of another module, state of another form, or a graph that came from a file and
    does not say what it has left; the module and the optimisers are then as they were.
    """
    require_torch()
    from compiler.exporters.torch.edits import Edits, write_module
    from compiler.exporters.torch.optimizers import Handover, kept_positions
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
    constants = {v.name: v for v in graph.all_constants()}
    values = new_tensors(constants, tensors, trace)
    handover = None
    if optimizer is not None:
        handover = Handover(optimizer, module, target, kept_positions(constants, tensors, trace), tensors)
    edits = Edits()
    try:
        write_module(edits, target, graph, tensors, values)
        problem = reference.problem(target)
    except BaseException:
        edits.undo()
        raise
    if problem is not None:
        edits.undo()
    if problem is not None and inplace:
        raise SecateurError(
            "E_TORCH_WRITE_BACK",
            f"the module's own forward depends on the old widths: {problem}",
            where=type(module).__name__,
            hint="write sizes in forward in terms of x.shape, or take the traced module: export(graph, module)",
        )
    result = target if problem is None else write_traced(graph, trace, tensors, values, reference)
    if handover is not None:
        handover.finish(result)
    return result
