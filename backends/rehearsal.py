"""The last word on schedules: whole networks take turns on this machine, and each layer is taken from the fastest.

A layer that is measured alone finds its data near; in the network it does not, and what it leaves in the caches is
part of what it costs the next. Kernels of two layers can only be compared there.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import numpy as np

from backends.aot import shared_library
from backends.artifact import describe, write_artifact
from backends.benchmark import random_inputs
from backends.kept import read_kept, write_kept
from backends.lowering import Program, lower
from backends.lowering.program import Step
from backends.memory import plan
from backends.runtime.loader import Executable, load
from backends.selector import Selector, Settled
from backends.target import Target
from compiler.ir.graph import Graph
from compiler.version import __version__

#: Runs in one turn, of which the median counts, and turns at least and at most.
_RUNS, _TURNS = 5, (3, 20)
#: What another variant must gain to be taken instead of the first.
_GAIN = 0.97


@dataclass(frozen=True)
class _Variant:
    """A network with the schedules that were chosen for it."""

    program: Program
    settled: Mapping[str, Settled]

    @classmethod
    def of(cls, graph: Graph, target: Target, preferred: Mapping[str, str]) -> _Variant:
        selector = Selector(target, preferred)
        return cls(lower(graph, target, selector=selector), selector.settled)

    def others(self) -> dict[str, str]:
        """The other side of every choice that cannot be measured alone."""
        return {key: s.other for key, s in self.settled.items() if s.other is not None}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Variant) and self.symbols() == other.symbols()

    __hash__ = None  # type: ignore[assignment]

    def symbols(self) -> list[str]:
        """What it calls."""
        return [step.symbol for step in self.program.steps]


def rehearse(
    graph: Graph, target: Target, preferred: Mapping[str, str], seconds: float, folder: str | Path
) -> dict[str, str]:
    """Labels by key for the layers of `graph`, of all that was tried the fastest in the network, on one thread.

    What is tried: the choices by cost, `preferred`, and these with the other side of what cannot be measured alone.
    folder: where the outcome is kept. seconds: about how long to measure, compiling not included.
    """
    by_cost, by_layer = _Variant.of(graph, target, {}), _Variant.of(graph, target, preferred)
    variants = [by_cost]
    for other in (by_layer, _Variant.of(graph, target, {**preferred, **by_layer.others()})):
        if other not in variants:
            variants.append(other)
    if len(variants) == 1:
        return dict(preferred)
    file = Path(folder) / f"network-{_digest(variants, target)}.json"
    found = read_kept(file, str)
    if found is None:
        found = _fastest(variants, _measure(variants, target, seconds))
        write_kept(file, found)
    return found


def _measure(variants: Sequence[_Variant], target: Target, seconds: float) -> list[list[float]]:
    """Median seconds of each step of each variant."""
    with tempfile.TemporaryDirectory(prefix="secateur-tune-") as name:
        executables = [_loaded(v.program, target, Path(name) / str(i)) for i, v in enumerate(variants)]
        feeds = random_inputs(executables[0])
        turns: list[list[list[float]]] = [[] for _ in variants]
        end = time.perf_counter() + seconds
        least, most = _TURNS
        for turn in range(most):
            if turn >= least and time.perf_counter() >= end:
                break
            for executable, times in zip(executables, turns, strict=True):
                times.append(executable.profile(feeds, _RUNS))
        for executable in executables:
            executable.close()
    return [[float(t) for t in np.median(times, axis=0)] for times in turns]


def _loaded(program: Program, target: Target, path: Path) -> Executable:
    memory = plan(program)
    files = {"model.so": shared_library(program, memory, target), "weights.bin": memory.weights()}
    write_artifact(path, files, frozenset(), describe(program, memory, target), None, False)
    executable = load(path)
    assert isinstance(executable, Executable)
    return executable


def _fastest(variants: Sequence[_Variant], seconds: Sequence[Sequence[float]]) -> dict[str, str]:
    """For nodes that share a kernel in some variant, and for equal layers: the labels of the fastest variant."""
    found: dict[str, str] = {}
    for part in nx.connected_components(_together(variants)):
        spent = [
            sum(t for step, t in zip(v.program.steps, times, strict=True) if _within(step, part))
            for v, times in zip(variants, seconds, strict=True)
        ]
        best = int(np.argmin(spent))
        chosen = variants[best if spent[best] < _GAIN * spent[0] else 0]
        keys = [name for kind, name in part if kind == "key"]
        found |= {key: chosen.settled[key].label for key in keys if key in chosen.settled}
    return found


def _within(step: Step, part: set[tuple[str, str]]) -> bool:
    return bool(step.nodes) and ("node", step.nodes[0]) in part


def _together(variants: Sequence[_Variant]) -> nx.Graph:
    """Nodes and keys of layers, joined where they cannot be chosen for apart."""
    joined = nx.Graph()
    for variant in variants:
        for step in variant.program.steps:
            nx.add_path(joined, [("node", name) for name in step.nodes])
        for key, settled in variant.settled.items():
            nx.add_path(joined, [("key", key), *(("node", name) for name in sorted(settled.nodes))])
    return joined


def _digest(variants: Sequence[_Variant], target: Target) -> str:
    text = json.dumps([__version__, repr(target), *(v.symbols() for v in variants)])
    settled = [sorted((k, s.label) for k, s in v.settled.items()) for v in variants]
    return hashlib.sha256((text + json.dumps(settled)).encode()).hexdigest()
