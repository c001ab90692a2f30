"""What a run of the benchmark found, by network, variant and number of threads; and where it must land."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks.case import DENSE, OURS, OURS_DENSE, Case
from tests.benchmarks.models import NETWORKS
from tests.runs import Facts

Cell = tuple[str, str]
"""Network and variant."""


@dataclass(frozen=True)
class Findings:
    """The facts of the cases that ran. statistic: what counts of a side's calls, median or least."""

    found: Mapping[Cell, Facts]
    statistic: str = "median"

    @classmethod
    def of(cls, cases: Mapping[Case, Facts]) -> Findings:
        """Cases that ended early count as far as they came."""
        return cls({(case.network, case.variant): facts for case, facts in cases.items()})

    def fact(self, cell: Cell, name: str) -> Any:
        """None where it is not known."""
        return self.found.get(cell, {}).get(name)

    def seconds(self, cell: Cell, side: str, threads: int = 1) -> float | None:
        """Median of a side's calls, or the fastest."""
        return self._timing(cell, side, threads, self.statistic)

    def least(self, cell: Cell, side: str, threads: int = 1) -> float | None:
        """A side's fastest call."""
        return self._timing(cell, side, threads, "least")

    def spread(self, cell: Cell, side: str, threads: int = 1) -> float | None:
        """Distance of a side's quartiles over its median."""
        return self._timing(cell, side, threads, "spread")

    def gain(self, cell: Cell, over: str, threads: int = 1, side: str = OURS) -> float | None:
        """How many times faster a side is than another, which ran beside it."""
        own, other = self.seconds(cell, side, threads), self.seconds(cell, over, threads)
        return None if own is None or other is None else other / own

    def gflops(self, cell: Cell, threads: int = 1) -> float | None:
        """GFLOP/s on weights that are not zero; a multiply-add counts two."""
        seconds, macs = self.seconds(cell, OURS, threads), self.fact(cell, "nonzero_macs")
        return None if seconds is None or macs is None else 2 * macs / seconds / 1e9

    def share_of_peak(self, cell: Cell, threads: int = 1) -> float | None:
        """Of what that many cores could do, by the peak of one that was measured in the same run."""
        rate, peak = self.gflops(cell, threads), self._run(cell, threads).get("peak")
        return None if rate is None or peak is None else rate / (peak * threads)

    def scaling(self, cell: Cell) -> float | None:
        """How many times faster two threads are than one."""
        one, two = self.seconds(cell, OURS, 1), self.seconds(cell, OURS, 2)
        return None if one is None or two is None else one / two

    def size(self, cell: Cell) -> float | None:
        """Bytes of the artifact over those of the dense model's file."""
        return self._quotient(cell, "artifact_bytes", "dense_bytes")

    def memory(self, cell: Cell) -> float | None:
        """Bytes for activations over ONNX Runtime's."""
        return self._quotient(cell, "arena_bytes", "peer_arena_bytes")

    def peak(self) -> float | None:
        """GFLOP/s of one core: the best that any of the runs saw."""
        return max((run["peak"] for facts in self.found.values() for run in _runs(facts)), default=None)

    def _timing(self, cell: Cell, side: str, threads: int, what: str) -> float | None:
        timing = self._run(cell, threads).get(side)
        return None if timing is None else float(timing[what])

    def _run(self, cell: Cell, threads: int) -> Facts:
        return self.found.get(cell, {}).get(f"threads {threads}", {})

    def _quotient(self, cell: Cell, above: str, below: str) -> float | None:
        a, b = self.fact(cell, above), self.fact(cell, below)
        return None if a is None or b is None else a / b


def _runs(facts: Facts) -> list[Facts]:
    return [value for key, value in facts.items() if key.startswith("threads ")]


def geometric_mean(values: Sequence[float]) -> float:
    """The mean of ratios."""
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def family(name: str) -> list[str]:
    """Networks of a family."""
    return [network for network, n in NETWORKS.items() if n.family == name]


@dataclass(frozen=True)
class Goal:
    """What must be reached. cells: those that it is about. measure: a cell's value. over: how many become one. least:
    true where the value must be at least `bound`, false where at most."""

    text: str
    bound: float
    cells: tuple[Cell, ...]
    measure: Callable[[Findings, Cell], float | None]
    over: Callable[[Sequence[float]], float]
    least: bool = True

    def missing(self, findings: Findings) -> list[Cell]:
        """Cells without a value."""
        return [cell for cell in self.cells if self.measure(findings, cell) is None]

    def value(self, findings: Findings) -> float | None:
        """None while a cell is missing."""
        values = [self.measure(findings, cell) for cell in self.cells]
        return None if None in values else self.over([v for v in values if v is not None])

    def reached(self, value: float) -> bool:
        """True where the bound is kept."""
        return value >= self.bound if self.least else value <= self.bound


def _over(side: str, own: str = OURS) -> Callable[[Findings, Cell], float | None]:
    return lambda findings, cell: findings.gain(cell, side, side=own)


def _cells(networks: Iterable[str], *variants: str) -> tuple[Cell, ...]:
    return tuple((network, variant) for variant in variants for network in networks)


_CNNS, _TRANSFORMERS = family("cnn"), family("transformer")
_ORT = _over("onnxruntime")
SPARSE = ("50", "70", "80", "90", "95", "90-4x1", "2:4")

DEEPSPARSE_GOALS = (
    Goal("90 % sparse CNNs over DeepSparse, the least", 1.3, _cells(_CNNS, "90"), _over("deepsparse"), min),
)
GOALS = (
    Goal("dense CNNs over ONNX Runtime", 1.0, _cells(_CNNS, DENSE), _ORT, geometric_mean),
    Goal("the least of them", 0.85, _cells(_CNNS, DENSE), _ORT, min),
    Goal("70 % sparse CNNs over dense ONNX Runtime", 1.8, _cells(_CNNS, "70"), _ORT, geometric_mean),
    Goal("90 % sparse CNNs over dense ONNX Runtime", 3.5, _cells(_CNNS, "90"), _ORT, geometric_mean),
    Goal("90 % in blocks of 4, CNNs over ONNX Runtime", 4.5, _cells(_CNNS, "90-4x1"), _ORT, geometric_mean),
    Goal("half of the MACs, CNNs over our own dense", 1.8, _cells(_CNNS, "half"), _over(OURS_DENSE), geometric_mean),
    Goal("dense transformers over ONNX Runtime, the least", 0.9, _cells(_TRANSFORMERS, DENSE), _ORT, min),
    Goal("90 % in blocks of 4, BERT-base over ONNX Runtime", 2.5, _cells(["BERT-base"], "90-4x1"), _ORT, min),
    Goal("sparse over our own dense, the least of all", 1.0, _cells(NETWORKS, *SPARSE), _over(OURS_DENSE), min),
    Goal("two threads over one, dense, the least", 1.7, _cells(NETWORKS, DENSE), Findings.scaling, min),
    Goal("two threads over one, 90 % sparse, the least", 1.7, _cells(NETWORKS, "90"), Findings.scaling, min),
    Goal(
        "compiling, the longest, s",
        20,
        _cells(NETWORKS, DENSE, *SPARSE),
        lambda findings, cell: findings.fact(cell, "compile"),
        max,
        least=False,
    ),
    Goal("artifact at 90 % over the dense file, the largest", 0.25, _cells(NETWORKS, "90"), Findings.size, max, False),
    Goal("activations over ONNX Runtime's, the most", 1.0, _cells(NETWORKS, DENSE, "90"), Findings.memory, max, False),
    Goal(
        "difference from ONNX Runtime, the largest",
        1e-4,
        _cells(NETWORKS, DENSE, *SPARSE),
        lambda findings, cell: findings.fact(cell, "difference"),
        max,
        least=False,
    ),
)
