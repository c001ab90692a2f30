"""The check of a sparsification: its zeros follow the pattern, and nothing else has changed."""

from __future__ import annotations

import numpy as np

from compiler.ir import CheckFailed
from passes.sparsity.patterns import NM, Blocks, Pattern, parse_pattern
from passes.sparsity.report import SparsifyReport
from passes.sparsity.weights import weights


def sparsity_error(report: SparsifyReport) -> float:
    """The largest relative difference between what a constant holds after and before, where it is not zero after.

    Exact zeros in places that the pattern allows are what may be new. CheckFailed E_VERIFY for others.
    """
    pattern = parse_pattern(report.pattern)
    layouts = {w.value: w.layouts[0] for w in weights(report.before) if w.layouts}
    taken = {w.name for w in report.eligible}
    largest = 0.0
    for old, new in zip(report.before.all_constants(), report.after.all_constants(), strict=True):
        if old.data is new.data:
            continue
        before, after = np.asarray(old.numpy()), np.asarray(new.numpy())
        if old.name not in taken or before.dtype != after.dtype or before.shape != after.shape:
            raise _broken(f"{old.name!r} was to stay as it is", old.name)
        view = layouts[old].view
        if not _follows(view(before != 0), view(after != 0), pattern):
            raise _broken(f"the zeros of {old.name!r} do not follow {pattern}", old.name)
        was, is_now = before[after != 0].astype(np.float64), after[after != 0].astype(np.float64)
        largest = max(largest, float(np.linalg.norm(is_now - was) / np.linalg.norm(was)))
    return largest


def _follows(before: np.ndarray, after: np.ndarray, pattern: Pattern) -> bool:
    """Whether nonzeros [groups, outputs, inputs, taps] follow a pattern, in blocks but for what was zero before."""
    if (after & ~before).any():
        return False
    if isinstance(pattern, NM):
        axis = -2 if pattern.along == "in" else -3
        starts = np.arange(0, after.shape[axis], pattern.m)
        return bool((np.add.reduceat(after, starts, axis, dtype=np.int32) <= pattern.n).all())
    return not (_some(after, pattern) & _some(before & ~after, pattern)).any()


def _some(flags: np.ndarray, blocks: Blocks) -> np.ndarray:
    """Which blocks hold a flag."""
    for axis, step in ((-3, blocks.outputs), (-2, blocks.inputs)):
        flags = np.logical_or.reduceat(flags, np.arange(0, flags.shape[axis], step), axis)
    return flags


def _broken(message: str, where: str) -> CheckFailed:
    return CheckFailed(
        "E_VERIFY", message, where=where, hint="this is a defect worth reporting together with the model"
    )
