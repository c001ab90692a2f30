"""`python -m tests.torchvision.coverage [MODEL,…]` runs every model and writes the section "torchvision" of the page.

Results are kept in build/, so that an interrupted run goes on; what was found with other sources is found again. Named
models are only run and printed; `--so-far` runs nothing and writes the page of what an unfinished run has found.
Without torchvision and Torch-Pruning (`make coverage` installs them) it says so.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from importlib import metadata, util
from pathlib import Path

from tests.pages import COVERAGE
from tests.runs import Facts, Limits, Record, Task, digest, preload, run_all

ROOT = Path(__file__).parents[2]
LIMITS = Limits(seconds=240, gigabytes=10)
LARGE = {"vit_h_14": Limits(900, 20), "regnet_y_128gf": Limits(900, 20)}
"""Models of more than 2 GB, which run first: not beside others that may take as much as they are allowed."""
OURS, PEER = "tests.torchvision.ours", "tests.torchvision.peer"
PACKAGES = ("torch", "torchvision", "torch-pruning")

_INTRODUCTION = """\
Every model of `torchvision.models` with random weights, under the test of the zoo: dependency groups, permutation
certificate, half of the parameters pruned with scope local and global, ONNX Runtime runs the result, shapes of inputs
and outputs are kept, the ratio is reached within 3 %, and the result equals the original with the removed units
silenced wherever that is defined. Written by `python -m tests.torchvision.coverage`.

Torch-Pruning prunes the same models, with the same inputs, in the same run: half of the channels of each layer with
`BasePruner` and `GroupMagnitudeImportance`, the layers that make outputs spared and heads told as in its own examples
(`tests/torchvision/peer.py`). It passes when at least 20 % of the parameters went, the pruned model runs and its
outputs keep their shapes; neither a ratio, nor a certificate, nor global scope, nor an export is asked of it.

Inputs are as small as each architecture allows. Each test is a process of its own on one core, with a limit of
{seconds:g} s of processor time and {gigabytes:g} GiB ({longer:g} s and {large:g} GiB for models of more than 2 GB).
The exporter is torch's TorchScript exporter, or torch.export and our torch frontend where the former fails, leaves
lists of tensors, or meets more than 2 GB; detectors are exported whole, with NonMaxSuppression, and those of one
stage are certified on the scores and boxes that it chooses from. torchvision's compiled part is not used. "s" are
the seconds of processor time of grouping and one local pruning for us, and of building the dependency graph and
pruning for Torch-Pruning.
"""


def tasks(names: Iterable[str]) -> list[Task]:
    """Both tests of each model."""
    versions = " ".join(f"{p}=={metadata.version(p)}" for p in PACKAGES)
    own, shared = ("compiler", "passes", "tests/zoo/checks.py"), ("models.py", "operators.py")
    harness = [f"tests/torchvision/{name}" for name in shared]
    states = {
        OURS: digest(versions, [*own, *harness, "tests/torchvision/ours.py"]),
        PEER: digest(versions, [*harness, "tests/torchvision/peer.py"]),
    }
    return [Task(module, name, state) for name in names for module, state in states.items()]


def passes(facts: Facts) -> bool:
    """True for a model that passes the whole of its test."""
    if "failures" in facts:
        return not facts["failures"] and "error" not in facts
    return bool(facts.get("passed"))


def reason(facts: Facts) -> str:
    """Why a model does not pass; empty for one that does."""
    if passes(facts):
        return ""
    if "export_error" in facts:
        return f"does not export: {facts['export_error']}"
    if facts.get("failures"):
        return "; ".join(f"{what}: {why}" for what, why in facts["failures"].items())
    failure = facts.get("failure") or facts.get("error") or "unknown"
    return f"{failure} ({facts['step']})" if "step" in facts else str(failure)


def row(name: str, ours: Facts, peer: Facts) -> str:
    """One line of the table."""
    cells = [
        name,
        str(ours.get("exporter", "no")),
        _number(ours.get("groups"), "d"),
        _number(ours.get("share"), ".1%"),
        _number(ours.get("certificate"), ".1e"),
        _number(ours.get("local"), ".1%"),
        _number(ours.get("global"), ".1%"),
        _seconds(ours, "prune_local_seconds"),
        "yes" if passes(peer) else "no",
        _number(peer.get("gone") if passes(peer) else None, ".1%"),
        _seconds(peer, "prune_seconds"),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _seconds(facts: Facts, key: str) -> str:
    return _number(facts.get(key), ".1f")


_HEAD = """| model | exported by | groups | prunable | certificate | local | global | s | Torch-Pruning | gone | s |
|---|---|---:|---:|---:|---:|---:|---:|---|---:|---:|
"""


def section(results: dict[str, tuple[Facts, Facts]], total: int) -> str:
    """The counts, the table, and the reasons of what does not pass; total: how many models there are."""
    text = _INTRODUCTION.format(
        seconds=LIMITS.seconds,
        gigabytes=LIMITS.gigabytes,
        longer=max(x.seconds for x in LARGE.values()),
        large=max(x.gigabytes for x in LARGE.values()),
    )
    ours, peers = [o for o, _ in results.values()], [p for _, p in results.values()]
    exporters = Counter(o["exporter"] for o in ours if "exporter" in o)
    versions = ", ".join(f"{p} {metadata.version(p).split('+')[0]}" for p in PACKAGES)
    missing = f" that have been run so far, of {total}" if len(results) < total else ""
    text += f"\nOf {len(results)} models{missing} ({versions}):\n\n"
    text += f"- **{sum(map(passes, ours))} pass** our test; {exporters.total()} export to ONNX "
    text += f"({', '.join(f'{n} by {e}' for e, n in exporters.most_common())});\n"
    text += f"- **{sum(map(passes, peers))} pass** with Torch-Pruning; the pruned model of "
    text += f"{sum(bool(p.get('exports')) for p in peers)} of them exports to ONNX again.\n\n"
    text += _HEAD + "".join(row(name, *both) + "\n" for name, both in results.items())
    for title, index in (("What does not pass", 0), ("What does not pass with Torch-Pruning", 1)):
        text += f"\n### {title}\n\n"
        text += "".join(f"- **{n}**: {reason(both[index])}\n" for n, both in results.items() if reason(both[index]))
        text += "" if any(reason(both[index]) for both in results.values()) else "None.\n"
    return text


def main(wanted: str = "") -> None:
    """Run what is missing, all models or the named ones."""
    missing = [p for p in ("torchvision", "torch_pruning") if util.find_spec(p) is None]
    if missing:
        raise SystemExit(f"{' and '.join(missing)} cannot be imported: `make coverage` installs what this needs")
    from tests.torchvision.models import names

    known = names()
    so_far = wanted == "--so-far"
    chosen = [] if so_far else wanted.replace(",", " ").split()
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        raise SystemExit(f"torchvision has no model called {', '.join(unknown)}")
    record = Record(ROOT / "build" / "coverage" / "torchvision.jsonl")
    todo = tasks(chosen or known)
    order = sorted(todo, key=lambda task: task.name not in LARGE)
    start = time.monotonic()

    def told(task: Task, facts: Facts) -> None:
        tool = task.module.rsplit(".", 1)[-1]
        print(f"{time.monotonic() - start:6.0f} s  {tool} {task.name}: {reason(facts) or 'passes'}", flush=True)

    if not so_far:
        preload((OURS, PEER))
        run_all(order, record, lambda task: LARGE.get(task.name, LIMITS), told=told)
    pairs = [pair for pair in zip(todo[::2], todo[1::2], strict=True) if all(task in record.found for task in pair)]
    results = {ours.name: (record.found[ours], record.found[peer]) for ours, peer in pairs}
    if chosen:
        print(_HEAD + "".join(row(name, *both) + "\n" for name, both in results.items()))
    else:
        COVERAGE.write("torchvision", section(results, len(known)))


if __name__ == "__main__":
    main(*sys.argv[1:])
