"""If, Loop and Scan: their bodies run as often as the data says, and gradients flow through what was run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler.exporters.torch.differentiable.rules import Operation, torch_rule


def _scalar(value: Any) -> Any:
    while isinstance(value, list):
        (value,) = value
    return value


@torch_rule("If", host=(0,))
def _if(op: Operation, condition: Any) -> tuple[Any, ...]:
    return tuple(op.call(op.attribute("then_branch" if _scalar(condition) else "else_branch")))


@torch_rule("Loop", host=(0, 1))
def _loop(op: Operation, trips: Any, condition: Any, *states: Any) -> tuple[Any, ...]:
    """Stops after `trips` rounds, or when the body's first result is false; the rest of the results is stacked."""
    body = op.attribute("body")
    count, going = _scalar(trips), True if condition is None else bool(_scalar(condition))
    rounds: list[list[Tensor]] = []
    index = 0
    while going and (count is None or index < count):
        again, *results = op.call(body, torch.tensor(index), torch.tensor(going), *states)
        states = tuple(results[: len(states)])
        rounds.append(results[len(states) :])
        going, index = bool(again), index + 1
    scanned = [torch.stack(column) for column in zip(*rounds, strict=True)]
    if not rounds:
        scanned = [_nothing(op, value.shape, value.dtype) for value in body.outputs[1 + len(states) :]]
    return *states, *scanned


def _nothing(op: Operation, shape: Any, dtype: Any) -> Tensor:
    """What no round gives: a stack of none."""
    sizes = [n if isinstance(n, int) else 0 for n in shape or ()]
    return torch.zeros((0, *sizes), dtype=op.dtype(dtype), device=op.device)


@torch_rule("Scan")
def _scan(op: Operation, *operands: Tensor) -> tuple[Tensor, ...]:
    body = op.attribute("body")
    sequences = op.attribute("num_scan_inputs")
    count = len(operands) - sequences
    states, scanned = list(operands[:count]), operands[count:]
    axes = op.attribute("scan_input_axes") or [0] * sequences
    backwards = op.attribute("scan_input_directions") or [0] * sequences
    slices = [x.unbind(axis) for x, axis in zip(scanned, axes, strict=True)]
    slices = [tuple(reversed(s)) if back else s for s, back in zip(slices, backwards, strict=True)]
    rounds = []
    for step in zip(*slices, strict=True):
        results = op.call(body, *states, *step)
        states = results[:count]
        rounds.append(results[count:])
    outputs = len(body.outputs) - count
    out_axes = op.attribute("scan_output_axes") or [0] * outputs
    out_backwards = op.attribute("scan_output_directions") or [0] * outputs
    if not rounds:
        return *states, *(_nothing(op, v.shape, v.dtype) for v in body.outputs[count:])
    stacked = []
    for column, axis, back in zip(zip(*rounds, strict=True), out_axes, out_backwards, strict=True):
        stacked.append(torch.stack(tuple(reversed(column)) if back else column, axis))
    return *states, *stacked
