"""Sequences of tensors, which travel as Python lists, inside of a graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from compiler.exporters.torch.differentiable.operators.movement import split_sizes
from compiler.exporters.torch.differentiable.rules import Operation, torch_rule

Sequence = list[Tensor]


@torch_rule("SequenceConstruct")
def _construct(op: Operation, *items: Tensor) -> tuple[Sequence]:
    return (list(items),)


@torch_rule("SequenceEmpty")
def _empty(op: Operation) -> tuple[Sequence]:
    return ([],)


@torch_rule("SequenceAt", host=(1,))
def _at(op: Operation, sequence: Sequence, index: int) -> Tensor:
    return sequence[index]


@torch_rule("SequenceLength")
def _length(op: Operation, sequence: Sequence) -> Tensor:
    return torch.tensor(len(sequence), dtype=torch.int64)


@torch_rule("SequenceInsert", host=(2,))
def _insert(op: Operation, sequence: Sequence, item: Tensor, index: int | None = None) -> tuple[Sequence]:
    place = len(sequence) if index is None else index
    place = place + len(sequence) if place < 0 else place
    return ([*sequence[:place], item, *sequence[place:]],)


@torch_rule("SequenceErase", host=(1,))
def _erase(op: Operation, sequence: Sequence, index: int | None = None) -> tuple[Sequence]:
    place = (-1 if index is None else index) % len(sequence)
    return ([*sequence[:place], *sequence[place + 1 :]],)


@torch_rule("ConcatFromSequence")
def _concat(op: Operation, sequence: Sequence) -> Tensor:
    join: Any = torch.stack if op.attribute("new_axis", 0) else torch.cat
    return join(sequence, op.attribute("axis"))


@torch_rule("SplitToSequence", host=(1,))
def _split(op: Operation, x: Tensor, sizes: int | list[int] | None = None) -> tuple[Sequence]:
    axis = op.attribute("axis", 0)
    if sizes is None:
        parts = list(torch.split(x, 1, axis))
        return (parts if op.attribute("keepdims", 1) else [p.squeeze(axis) for p in parts],)
    if isinstance(sizes, int):
        return (list(torch.split(x, sizes, axis)),)
    return (list(torch.split(x, split_sizes(op, x.shape[axis], sizes, len(sizes)), axis)),)
