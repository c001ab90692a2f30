"""docs/performance.md, from what the benchmark found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.case import DENSE, OURS, OURS_DENSE
from tests.benchmarks.findings import DEEPSPARSE_GOALS, GOALS, SPARSE, Cell, Findings, Goal, family, geometric_mean
from tests.benchmarks.models import NETWORKS
from tests.pages import PERFORMANCE, Page

Value = Callable[[Cell], float | None]
_MEANS = {"geometric mean, CNNs": "cnn", "geometric mean, transformers": "transformer"}
HEADS = {variant: f"{variant} %" for variant in ("50", "70", "80", "90", "95")} | {
    DENSE: "dense",
    "90-4x1": "90 %, 4x1",
    "2:4": "2:4",
    "half": "half the MACs",
}
_COLUMNS = (*SPARSE, "half")

_METHOD = """\
`make bench` builds the networks from their papers with random weights (parameters and multiply-accumulates are checked
against the published ones), prunes them, compiles them, measures, and writes this page; what it has measured it keeps
in build/bench, so that an interrupted run goes on. `MODELS=ResNet-18,…`, `SPARSITY=0,90,…` and `SECONDS=…` restrict it.
`AGAIN=0.15` measures once more what varied by more than so much, and keeps the run that varied less: other users of the
machine move the ratios of sparse networks, which live from the caches, by up to 15 %. Sections that it does not write
stay as they are.

- Machine: {machine}.
- Peak: {peak} GFLOP/s is the most that a loop of fused multiply-adds in registers does on one core, in the same runs.
- Versions: {versions}.
- Batch 1, float32, images of 224x224, BERT-base with 128 tokens. Each network and variant is a process of its own, in
  which all take turns: at least {rounds} rounds, in each of which everyone, after a pause, is called once and then up
  to five times, and these count (calls of 0.1 s or more: once). Times are medians. The number of threads is given to
  all, and none is pinned. OpenVINO runs with the hint for latency, and in float32 as all others: by itself it computes
  in bfloat16 where the processor can.
- Peers run the dense model. Ratios are their time over ours: 2 means that we are twice as fast.
- Sparse networks are pruned by magnitude, each layer alike, except for the first, depthwise convolutions and layers of
  less than 1,024 weights; "4x1" are blocks of 4 output channels, "2:4" two of four consecutive inputs. "Half the MACs"
  is structured pruning, which leaves a smaller dense network.
- GFLOP/s count the multiply-adds of the network as it is defined, two for each, those of zero weights left out;
  Winograd's transformation needs fewer, so that dense 3x3 convolutions may exceed the peak.
- Each artifact's outputs are compared with ONNX Runtime's on the same sparse file.
"""


_GOALS = """\
One thread where it does not say otherwise. What is found are ratios of medians, and these decide; beside them the
ratios of everyone's fastest calls, which other users of the machine disturb least."""


def write_page(findings: Findings, machine: str, rounds: int, page: Page = PERFORMANCE) -> None:
    """Write the sections of `make bench`."""
    versions = sorted({f"{peer} {v}" for peer in ("onnxruntime", "openvino") for v in _values(findings, peer)})
    peak = findings.peak()
    page.write(
        "How it was measured",
        _METHOD.format(
            machine=machine,
            peak="?" if peak is None else f"{peak:.0f}",
            versions=", ".join(versions),
            rounds=rounds,
        ),
    )
    page.write("Where it must land", goals(findings))
    page.write("Dense", "\n".join(dense(findings, threads) for threads in (1, 2)))
    page.write("Sparse", "\n".join(sparse(findings)))
    page.write("Where the time goes", shares(findings))
    page.write("Compiling, size, memory", sizes(findings))


def goals(findings: Findings, wanted: Sequence[Goal] = GOALS) -> str:
    """Each goal, what was found by medians and by everyone's fastest calls, and what is missing for it."""
    rows, undisturbed = [], replace(findings, statistic="least")
    for goal in wanted:
        value, bound = goal.value(findings), f"{'at least' if goal.least else 'at most'} {goal.bound:g}"
        if value is None:
            cells = goal.missing(findings)
            some = ", ".join(f"{network} {HEADS[variant]}" for network, variant in cells[:4])
            rows.append([goal.text, bound, "", "", f"missing: {some}{', …' if len(cells) > 4 else ''}"])
        else:
            best = goal.value(undisturbed)
            told = "" if best is None or best == value else f"{best:.3g}"
            rows.append([goal.text, bound, f"{value:.3g}", told, "yes" if goal.reached(value) else "no"])
    return f"{_GOALS}\n\n" + table(["", "goal", "found", "by the fastest calls", "reached"], rows)


def dense(findings: Findings, threads: int) -> str:
    """Everybody's time on the dense networks."""
    heads = ["network", "ms", "ONNX Runtime", "OpenVINO", "over ONNX Runtime", "over OpenVINO"]
    heads += ["GFLOP/s", "of peak", "spread"]
    rows: list[list[str]] = []
    for network in NETWORKS:
        cell = network, DENSE
        if findings.seconds(cell, OURS, threads) is None:
            continue
        times = [findings.seconds(cell, side, threads) for side in (OURS, "onnxruntime", "openvino")]
        gains = [findings.gain(cell, side, threads) for side in ("onnxruntime", "openvino")]
        rates = [number(findings.gflops(cell, threads), 0), percent(findings.share_of_peak(cell, threads))]
        shown = [number(t and 1e3 * t, 2) for t in times] + [number(g, 2) for g in gains]
        spreads = [findings.spread(cell, side, threads) for side in (OURS, "onnxruntime", "openvino")]
        rows.append([network, *shown, *rates, " / ".join(map(percent, spreads))])
    for text, name in _MEANS.items():
        means = [
            _mean(name, lambda cell, side=side: findings.gain(cell, side, threads))  # type: ignore[misc]
            for side in ("onnxruntime", "openvino")
        ]
        rows.append([text, "", "", "", *means, "", "", ""])
    text = f"### {_threads(threads).capitalize()}\n\nMilliseconds and ratios; spread is the distance of the quartiles "
    return text + "over the median, of each of the three.\n\n" + table(heads, _known(rows))


def sparse(findings: Findings) -> list[str]:
    """Tables of one value for each network and variant."""
    parts = []
    for threads in (1, 2):
        for text, side in (("dense ONNX Runtime", "onnxruntime"), ("dense OpenVINO", "openvino")):
            title = f"Times faster than {text}, {_threads(threads)}"
            parts.append(_grid(title, lambda cell, s=side, t=threads: findings.gain(cell, s, t)))  # type: ignore[misc]
    parts.append(_grid("Times faster than our own dense", lambda cell: findings.gain(cell, OURS_DENSE)))
    rates: Callable[[Cell], str] = lambda cell: (  # noqa: E731
        f"{number(findings.gflops(cell), 0)} ({percent(findings.share_of_peak(cell))})" if findings.gflops(cell) else ""
    )
    rows = [[network, *(rates((network, variant)) for variant in _COLUMNS)] for network in NETWORKS]
    title = "### GFLOP/s on nonzeros, and share of the peak, one thread\n\n"
    return [*parts, title + table(["network", *(HEADS[v] for v in _COLUMNS)], _known(rows))]


def write_deepsparse(findings: Findings, page: Page = PERFORMANCE) -> None:
    """Write the section of `make bench-deepsparse`."""
    page.write("Beside DeepSparse", deepsparse(findings))


def deepsparse(findings: Findings) -> str:
    """What DeepSparse does on the same files."""
    versions = ", ".join(_values(findings, "deepsparse"))
    text = "`make bench-deepsparse` measures it in the same way, in turns with a process in a virtual environment of "
    text += f"its own: DeepSparse {versions} runs the same file as we do, ONNX Runtime the dense one. "
    text += goals(findings, DEEPSPARSE_GOALS) + "\n"
    ours = _grid("Times faster than DeepSparse on the same file", lambda cell: findings.gain(cell, "deepsparse"))
    theirs = _grid(
        "DeepSparse: times faster than dense ONNX Runtime",
        lambda cell: findings.gain(cell, "onnxruntime", side="deepsparse"),
    )
    failed = [f"- {' '.join(cell)}: {f['error']}\n" for cell, f in sorted(findings.found.items()) if "error" in f]
    times = deepsparse_times(findings)
    return text + "\n".join([ours, theirs, times]) + ("\nWhat did not run:\n\n" + "".join(failed) if failed else "")


def deepsparse_times(findings: Findings) -> str:
    """Everybody's time at 90 %, the median and the least."""
    rows = []
    for network in NETWORKS:
        cell, row = (network, "90"), [network]
        for side in (OURS, "deepsparse", "onnxruntime"):
            median, least = findings.seconds(cell, side), findings.least(cell, side)
            row.append("" if median is None or least is None else f"{1e3 * median:.2f} ({1e3 * least:.2f})")
        rows.append(row)
    heads = ["network", "ours", "DeepSparse", "ONNX Runtime, dense"]
    return "### Milliseconds at 90 %, and the fastest call\n\n" + table(heads, _known(rows))


def shares(findings: Findings) -> str:
    """Share of time by kind of layer."""
    rows = []
    for network in NETWORKS:
        for variant in (DENSE, "90"):
            found = findings.fact((network, variant), "shares") or {}
            shown = [f"{kind} {percent(share)}" for kind, share in found.items() if share >= 0.01]
            rows.append([network, HEADS[variant], ", ".join(shown)])
    return "One thread; kinds of layers with at least one per cent, layers timed one by one.\n\n" + table(
        ["network", "", "share of time"], [row for row in rows if row[2]]
    )


def sizes(findings: Findings) -> str:
    """Compile time, artifact, activations, agreement."""
    heads = ["network", "", "compiled in, s", "artifact, MB", "over dense file", "activations, MiB"]
    heads += ["ONNX Runtime's, MiB", "difference"]
    rows = []
    for network in NETWORKS:
        for variant in (DENSE, "90", "90-4x1", "half"):
            cell = network, variant
            if findings.fact(cell, "difference") is None:
                continue
            row = [number(findings.fact(cell, "compile"), 1), number(findings.fact(cell, "artifact_bytes") / 1e6, 1)]
            row += [percent(findings.size(cell))]
            row += [number(findings.fact(cell, name) / 2**20, 2) for name in ("arena_bytes", "peer_arena_bytes")]
            rows.append([network, HEADS[variant], *row, f"{findings.fact(cell, 'difference'):.1e}"])
    text = "From the ONNX file to the artifact; its code and weights, without the model that it carries for checking. "
    text += (
        "Activations: our static plan, and what ONNX Runtime asks of its arena for a run of the dense model once it "
    )
    text += "has planned (`tests/benchmarks/memory.py`).\n\n"
    return text + table(heads, rows)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Names at the left, numbers at the right."""
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    return "".join(f"{line}\n" for line in [*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def number(value: float | None, digits: int) -> str:
    """Empty where it is not known."""
    return "" if value is None else f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    """Empty where it is not known."""
    return "" if value is None else f"{value:.0%}".replace("%", " %")


def _grid(title: str, value: Value) -> str:
    rows = [[network, *(number(value((network, v)), 2) for v in _COLUMNS)] for network in NETWORKS]
    rows += [
        [text, *(_mean(name, lambda cell, v=v: value((cell[0], v))) for v in _COLUMNS)]  # type: ignore[misc]
        for text, name in _MEANS.items()
    ]
    return f"### {title}\n\n" + table(["network", *(HEADS[v] for v in _COLUMNS)], _known(rows))


def _mean(name: str, value: Value) -> str:
    """The geometric mean over a family, once all of it is known."""
    values = [value((network, DENSE)) for network in family(name)]
    return "" if None in values else number(geometric_mean([v for v in values if v is not None]), 2)


def _known(rows: Iterable[Sequence[str]]) -> list[Sequence[str]]:
    return [row for row in rows if any(row[1:])]


def _threads(count: int) -> str:
    return "one thread" if count == 1 else "two threads" if count == 2 else f"{count} threads"


def _values(findings: Findings, name: str) -> list[str]:
    return sorted({facts[name] for facts in findings.found.values() if name in facts})


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor, its caches and its vectors, in words."""
    from backends.target import Target

    here = Target.native()
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    facts: Mapping[str, str] = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    model = f"{facts['model name']}, " if "model name" in facts else ""
    caches = f"{here.l1_bytes >> 10} KiB of first and {here.l2_bytes >> 10} KiB of second level cache"
    return f"{model}LLVM's {here.cpu}, {here.threads} cores, vectors of {8 * here.vector_bytes} bits, {caches}"
