"""`python -m tests.benchmarks.bench [--models …] [--sparsity …] [--seconds …]` measures and writes docs/performance.md.

What was measured is kept in build/bench, so that an interrupted run goes on; when a source changes, it is measured
anew. `--again 0.15` measures once more what varied by more than 15 %, and keeps of both runs the calmer. `--quick`
measures two networks shortly and writes nothing; `--so-far` writes the page of what there is; `--deepsparse` measures
beside DeepSparse, which `make bench-deepsparse` installs, and writes that section alone.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from backends.aot import POOL
from tests.benchmarks.case import DENSE, OURS, OURS_DENSE, Case
from tests.benchmarks.findings import SPARSE, Findings
from tests.benchmarks.models import NETWORKS
from tests.benchmarks.page import HEADS, machine, number, percent, write_deepsparse, write_page
from tests.benchmarks.variants import VARIANTS
from tests.pages import PERFORMANCE
from tests.runs import Facts, Limits, Record, Task, digest, run_task

ROOT = Path(__file__).parents[2]
MEASURE = "tests.benchmarks.measure"
LIMITS = Limits(seconds=3600, gigabytes=20)
_SOURCES = ("backends", "passes/simplify", "passes/structured", "tests/benchmarks/models")
_HARNESS = ("case", "deepsparse_worker", "measure", "memory", "peak", "peers", "variants")
_PACKAGES = ("apache-tvm", "numpy", "onnxruntime")
QUICK = [
    Case(network, variant, threads=(1,), seconds=2, rounds=10)
    for network in ("MobileNetV1", "ResNet-18")
    for variant in (DENSE, "90")
]


def cases(models: Iterable[str], variants: Iterable[str], seconds: float) -> list[Case]:
    """One for each network and variant, the dense ones first."""
    return [Case(network, variant, seconds=seconds) for variant in variants for network in models]


def deepsparse_cases(models: Iterable[str], variants: Iterable[str], seconds: float) -> list[Case]:
    """The same beside DeepSparse, one thread; not what is exported anew, in an opset that DeepSparse does not read."""
    own = [case for case in cases(models, variants, seconds) if case.variant in (DENSE, *SPARSE)]
    return [replace(case, threads=(1,), peers=("onnxruntime", "deepsparse")) for case in own]


def state() -> str:
    """A digest of all that the timings depend on."""
    versions = " ".join(f"{package}=={metadata.version(package)}" for package in _PACKAGES)
    pool = (f"backends/runtime/{name}" for name in POOL)
    sources = (*_SOURCES, *(f"tests/benchmarks/{name}.py" for name in _HARNESS), *pool)
    return digest(versions, sources)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure what is missing, write the page."""
    options = _parser().parse_args(arguments)
    if options.quick:
        _measure(QUICK, None)
        return
    choose, write = (deepsparse_cases, write_deepsparse) if options.deepsparse else (cases, _write_page)
    whole = choose(NETWORKS, VARIANTS, options.seconds)
    record = Record(ROOT / "build" / "bench" / "timings.jsonl")

    def write_found() -> int:
        found = {case: record.found[task] for case in whole if (task := _task(case)) in record.found}
        write(Findings.of(found))
        return len(found)

    if not options.so_far:
        _measure(choose(options.models, options.sparsity, options.seconds), record, write_found, options.again)
    print(f"{write_found()} of {len(whole)} cases are in {PERFORMANCE.path}")


def _write_page(findings: Findings) -> None:
    write_page(findings, machine(), Case.rounds)


def _measure(
    wanted: Iterable[Case],
    record: Record | None,
    done: Callable[[], object] = lambda: None,
    again: float = math.inf,
) -> None:
    """Measure what the record lacks or what varied by more than `again`; tell of each, and call `done` after it."""
    for case in wanted:
        task = _task(case)
        known = None if record is None else record.found.get(task)
        facts = known
        if facts is None or "error" in facts or unrest(facts) > again:
            start = time.monotonic()
            facts = run_task(task, LIMITS)
            if known is not None and "error" not in known:
                facts = known if "error" in facts else calmer(known, facts)
            if record is not None:
                record.add(task, facts)
                done()
            print("\n".join(lines(case, facts)), f"  ({time.monotonic() - start:.0f} s)", flush=True)
        else:
            print("\n".join(lines(case, facts)), "  (measured before)", flush=True)


def unrest(facts: Facts, threads: int | None = None) -> float:
    """The largest distance of the quartiles over the median, of all sides and numbers of threads or of one."""
    runs = [v for k, v in facts.items() if k.startswith("threads ") and threads in (None, int(k.split()[1]))]
    return max((side["spread"] for run in runs for side in run.values() if isinstance(side, dict)), default=0.0)


def calmer(first: Facts, second: Facts) -> Facts:
    """The later facts, but for each number of threads the timings that varied less."""
    counts = [int(k.split()[1]) for k in second if k.startswith("threads ") and k in first]
    return second | {f"threads {n}": first[f"threads {n}"] for n in counts if unrest(first, n) < unrest(second, n)}


def _task(case: Case) -> Task:
    return Task(MEASURE, case.name, state())


def lines(case: Case, facts: Facts) -> list[str]:
    """What a terminal shows of a case."""
    findings, cell = Findings.of({case: facts}), (case.network, case.variant)
    shown = [f"{case.network}, {HEADS[case.variant]}"]
    if "difference" in facts:
        shown[0] += (
            f": compiled in {facts['compile']:.1f} s, artifact {percent(findings.size(cell))} of the dense file, "
            f"activations {percent(findings.memory(cell))} of ONNX Runtime's, difference {facts['difference']:.1e}"
        )
    for threads in case.threads:
        own = findings.seconds(cell, OURS, threads)
        if own is None:
            continue
        rate = f"{number(findings.gflops(cell, threads), 0)} GFLOP/s, "
        shown_spread = percent(findings.spread(cell, OURS, threads))
        parts = [f"  {threads} thread{'s' if threads > 1 else ' '} {1e3 * own:8.2f} ms ±{shown_spread}"]
        for side in (OURS_DENSE, *case.peers):
            gain, seconds = findings.gain(cell, side, threads), findings.seconds(cell, side, threads)
            if gain is not None and seconds is not None:
                shown_spread = percent(findings.spread(cell, side, threads))
                parts.append(f"{side} {1e3 * seconds:.2f} ms ±{shown_spread} ({gain:.2f})")
        parts.append(rate + f"{percent(findings.share_of_peak(cell, threads))} of peak")
        shown.append(", ".join(parts))
    kinds = [f"{kind} {percent(share)}" for kind, share in facts.get("shares", {}).items() if share >= 0.01]
    shown += [f"  {', '.join(kinds)}"] if kinds else []
    return shown + ([f"  error: {facts['error']}"] if "error" in facts else [])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench", description=__doc__)
    parser.add_argument("--models", type=_names(NETWORKS), default=list(NETWORKS), help=", ".join(NETWORKS))
    parser.add_argument("--sparsity", type=_names(VARIANTS), default=list(VARIANTS), help=", ".join(VARIANTS))
    parser.add_argument("--seconds", type=float, default=Case.seconds, help="at least, for each number of threads")
    parser.add_argument("--again", type=float, default=math.inf, help="measure anew what varied by more, such as 0.15")
    parser.add_argument("--quick", action="store_true", help="two networks, one thread, nothing written")
    parser.add_argument("--deepsparse", action="store_true", help="measure beside DeepSparse instead, one thread")
    parser.add_argument("--so-far", action="store_true", help="measure nothing, write the page of what there is")
    return parser


def _names(known: Iterable[str]):  # type: ignore[no-untyped-def]
    """Reads names with commas in between; an empty text means all."""
    known = list(known)

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()] or known
        unknown = [name for name in names if name not in known]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse


if __name__ == "__main__":
    main(sys.argv[1:])
