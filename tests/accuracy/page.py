"""docs/accuracy.md, from what a study found."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.runs import Facts, Task

PAGE = Path(__file__).parents[2] / "docs" / "accuracy.md"

_INTRODUCTION = """\
# Accuracy after pruning

What each criterion costs, measured on four small classifiers of Fashion-MNIST that this study trains itself:
`make accuracy DATA=DIR` (DIR holds the data set's idx files) trains, prunes, measures and writes this page. Which
criterion to choose when, in words: [criteria.md](criteria.md).

Percentages are accuracy on {tests:,} test images: mean and, behind ±, standard deviation over seeds; each seed has a
network trained for itself ({epochs} epochs), its own calibration images and its own order of training images. "2 ×"
are networks with 2 times fewer multiply-accumulates. Every criterion prunes with scope local, without fine-tuning, on
{calibration} training images with their labels, and BatchNorm statistics are estimated anew on the same images
(`mend=batchnorm`), except:

- "l1, not mended": weights alone, and the statistics as they were; "l1, no data": statistics estimated on noise;
- "l1, layers solved" and "OBSPA": every layer solved anew in closed form (`mend=layers`) with the {calibration}
  training images (data), {other} (other data), or noise (no data);
- "Torch-Pruning": its importances with its own `BasePruner`, the share of channels searched that gives the wanted
  multiply-accumulates, BatchNorm statistics estimated anew on the same images.

"After one epoch" is one pass over {tuning:,} training images. Seconds are processor time of one core for grouping,
scoring, pruning and mending at 2 ×.
"""


#: Share of the wanted factor that counts as reached: channels go one by one, in peers by rounded shares.
_REACHED = 0.9


class Findings:
    """The facts of a study by network, seed, method and ratio."""

    def __init__(self, found: Mapping[Task, Facts]) -> None:
        self._found = {(task.module.rsplit(".", 1)[-1], task.name): facts for task, facts in found.items()}
        self.seeds = sorted({name.split("/")[1] for _, name in self._found}, key=int)

    def trained(self, network: str) -> list[Facts]:
        """One for each seed."""
        return [f for s in self.seeds if "accuracy" in (f := self._found.get(("training", f"{network}/{s}"), {}))]

    def pruned(self, network: str, method: str, factor: float, what: str) -> list[float]:
        """accuracy or seconds, one for each seed whose pruning got as small as it should."""
        facts = [self._pruning(network, seed, method) for seed in self.seeds]
        found = [f.get("found", {}).get(f"{factor:g}") for f in facts]
        return [float(f[what]) for f in found if f is not None and _as_small(f, factor)]

    def tuned(self, network: str, method: str, factor: float) -> list[float]:
        """Accuracy after one epoch, one for each seed."""
        reached = [s for s in self.seeds if not self._missed(network, s, method, factor)]
        names = [f"{network}/{seed}/{method}/{factor:g}" for seed in reached]
        facts = [self._found.get(("tuning", name), {}) for name in names]
        return [f["accuracy"] for f in facts if "accuracy" in f]

    def errors(self, networks: Iterable[str], methods: Iterable[str]) -> list[str]:
        """One line for each network and method that failed."""
        methods = list(methods)
        lines = []
        for network in networks:
            for method in methods:
                failed = {self._pruning(network, s, method).get("error") for s in self.seeds} - {None}
                lines += [f"- {method} on {network}: {error}\n" for error in sorted(map(str, failed))]
                prunings = [self._pruning(network, seed, method).get("found", {}) for seed in self.seeds]
                missed = {k for found in prunings for k, f in found.items() if not _as_small(f, float(k))}
                if missed:
                    most = max(f["reached"] for found in prunings for f in found.values())
                    wanted = ", ".join(f"{k} ×" for k in sorted(missed, key=float))
                    lines.append(f"- {method} on {network}: at most {most:.2f} × smaller, where {wanted} was wanted\n")
        return lines

    def _missed(self, network: str, seed: str, method: str, factor: float) -> bool:
        found = self._pruning(network, seed, method).get("found", {}).get(f"{factor:g}")
        return found is not None and not _as_small(found, factor)

    def _pruning(self, network: str, seed: str, method: str) -> Facts:
        name = f"{network}/{seed}/{method}"
        return self._found.get(("ours", name)) or self._found.get(("peer", name)) or {}


def _as_small(pruning: Mapping[str, float], factor: float) -> bool:
    """Whether a network has about `factor` times fewer multiply-accumulates than before."""
    return pruning["reached"] >= _REACHED * factor


def percent(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.1f}{spread}"


def summary(findings: Findings, networks: Iterable[str]) -> str:
    """What OBSPA loses at twice fewer multiply-accumulates, beside grouped l1 with the same recalibration."""
    text = "\n## OBSPA beside l1, at 2 × without fine-tuning\n\n"
    text += "Points of accuracy lost, on the mean over seeds; in brackets the share of what l1 loses.\n\n"
    text += "| network | trained | l1 | OBSPA, data | OBSPA, no data | longest, s |\n|---|---:|---:|---:|---:|---:|\n"
    names = ("l1", "OBSPA, data", "OBSPA, no data")
    for network in networks:
        left = [findings.pruned(network, name, 2, "accuracy") for name in names]
        count = min(map(len, left))
        whole = [f["accuracy"] for f in findings.trained(network)][:count]
        if not whole:
            continue
        lost = [statistics.fmean(whole) - statistics.fmean(values[:count]) for values in left]
        shares = [f" ({x / lost[0]:.2f})" if lost[0] > 0 else "" for x in lost[1:]]
        seconds = max(s for name in names[1:] for s in findings.pruned(network, name, 2, "seconds"))
        cells = [f"{100 * x:.1f}{share}" for x, share in zip(lost, ["", *shares], strict=True)]
        text += f"| {network} | {percent(whole)} | {' | '.join(cells)} | {seconds:.1f} |\n"
    return text


def table(findings: Findings, network: str, methods: Iterable[str], factors: Sequence[float]) -> str:
    """All methods on one network."""
    facts = findings.trained(network)
    text = f"\n## {network}\n\n"
    if facts:
        text += f"{facts[0]['params']:,} parameters, {facts[0]['macs'] / 1e6:.1f} million multiply-accumulates, "
        text += f"{percent([f['accuracy'] for f in facts])} % over {len(facts)} seeds.\n\n"
    heads = [f"{factor:g} ×" for factor in factors]
    text += f"| method | {' | '.join(heads)} | {' | '.join(f'{h}, after one epoch' for h in heads)} | s |\n"
    text += f"|---|{'---:|' * (2 * len(heads) + 1)}\n"
    for method in methods:
        cells = [percent(findings.pruned(network, method, factor, "accuracy")) for factor in factors]
        cells += [percent(findings.tuned(network, method, factor)) for factor in factors]
        seconds = findings.pruned(network, method, 2, "seconds")
        cells.append(f"{statistics.fmean(seconds):.1f}" if seconds else "")
        text += f"| {method} | {' | '.join(cells)} |\n" if any(cells) else ""
    return text


def write_page(found: Mapping[Task, Facts], other: str, total: int) -> None:
    """Write the page; other: what the other data are; total: how many tasks the whole study has."""
    from tests.accuracy import ours, peer, training, tuning
    from tests.accuracy.networks import NETWORKS

    findings = Findings(found)
    methods = [*ours.METHODS, *peer.METHODS]
    text = _INTRODUCTION.format(
        tests=training.TEST_IMAGES,
        epochs=training.EPOCHS,
        calibration=training.CALIBRATION_IMAGES,
        tuning=tuning.IMAGES,
        other=other,
    )
    if len(found) < total:
        text += f"\nThe study is not finished: {len(found):,} of {total:,} trainings, prunings and epochs are here.\n"
    text += summary(findings, NETWORKS)
    text += "".join(table(findings, network, methods, ours.RATIOS) for network in NETWORKS)
    failed = findings.errors(NETWORKS, methods)
    text += "\n## What did not run\n\n" + "".join(failed) if failed else ""
    PAGE.write_text(text, encoding="utf-8")
