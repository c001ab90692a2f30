"""Which weights a sparsification leaves alone, and why."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Protocol

from compiler.ir import Graph, SecateurError
from passes.sparsity.patterns import NM, Pattern
from passes.sparsity.scores import Scores
from passes.sparsity.weights import Weight, first_layers, last_layers


class Options(Protocol):
    """The options of `Sparsify` that spare weights."""

    @property
    def keep_first(self) -> bool: ...
    @property
    def keep_last(self) -> bool: ...
    @property
    def depthwise(self) -> bool: ...
    @property
    def min_size(self) -> int: ...
    @property
    def ignore(self) -> tuple[str, ...]: ...
    @property
    def only(self) -> tuple[str, ...]: ...
    @property
    def criterion(self) -> str: ...


class Spared:
    """What the options and the pattern leave alone. E_PATTERN for a pattern of names that matches nothing."""

    def __init__(self, graph: Graph, weights: Sequence[Weight], pattern: Pattern, options: Options) -> None:
        self._options = options
        self._pattern = pattern
        self._first = first_layers(graph) if options.keep_first else set()
        self._last = last_layers(graph) if options.keep_last else set()
        for name in (*options.ignore, *options.only):
            if not any(_matches(weight, name) for weight in weights):
                raise _no_such(name, weights)

    def reason(self, weight: Weight, zeros: int | None, scores: Scores) -> str:
        """Why a weight is left alone, "" where it is not. zeros: how many it holds."""
        options = self._options
        if weight.reason:
            return weight.reason
        if any(_matches(weight, p) for p in options.ignore):
            return "left out (ignore)"
        if options.only and not any(_matches(weight, p) for p in options.only):
            return "left out (only)"
        if not self._first.isdisjoint(weight.nodes):
            return "first layer (keep_first)"
        if not self._last.isdisjoint(weight.nodes):
            return "last layer (keep_last)"
        if weight.depthwise and not options.depthwise:
            return "depthwise (depthwise)"
        if weight.size < options.min_size:
            return f"fewer than {options.min_size:,} weights (min_size)"
        if zeros == weight.size:
            return "all zero already"
        return self._unsuited(weight) or (
            "" if scores.covers(weight) else f"criterion {options.criterion!r} does not score it"
        )

    def _unsuited(self, weight: Weight) -> str:
        """Why the pattern cannot be laid on a weight."""
        pattern, (groups, outputs, inputs, taps) = self._pattern, weight.layouts[0].shape
        if isinstance(pattern, NM):
            extent = inputs if pattern.along == "in" else outputs
            if extent <= pattern.n:
                side = "input" if pattern.along == "in" else "output"
                return f"{pattern} keeps all {extent} {side}s of a group"
        elif outputs <= pattern.outputs and inputs <= pattern.inputs and groups * taps == 1:
            return f"a single block of {pattern}"
        if len(weight.layouts) > 1 and (isinstance(pattern, NM) or not pattern.unstructured):
            return "shared by layers that see its outputs and inputs in different ways"
        return ""

    def nothing(self, reasons: Mapping[Weight, str]) -> SecateurError:
        """The error where every weight is left alone."""
        if not reasons:
            why = "the model has no convolution or matrix product with constant weights"
        else:
            counts = Counter(reasons.values()).most_common(3)
            why = "every weight is left alone: " + "; ".join(f"{count} {reason}" for reason, count in counts)
        hint = "the option that spares a weight stands in brackets; simplify folds weights that are computed"
        return SecateurError("E_NOTHING_TO_SPARSIFY", why, hint=hint)


def _matches(weight: Weight, pattern: str) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for name in _names(weight))


def _names(weight: Weight) -> set[str]:
    return {weight.name, weight.op, *(node.name for node in weight.nodes)}


def _no_such(pattern: str, weights: Sequence[Weight]) -> SecateurError:
    names = sorted({name for weight in weights for name in _names(weight)})
    close = difflib.get_close_matches(pattern.strip("*"), names, 3)
    return SecateurError(
        "E_PATTERN",
        f"the pattern {pattern!r} matches no weight, node or operator",
        hint=f"did you mean {', '.join(close)}?" if close else "`secateur inspect MODEL --sparsity` lists the names",
    )
