"""How the commands that write something tell what they did, to people and to machines."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from compiler.cli.shared import Screen, table
from compiler.driver import Outcome
from compiler.ir import graph_cost
from compiler.report import count, size
from passes import Context
from passes.reconstruction import Mended
from passes.sparsity import SparsifyReport
from passes.structured import PruneReport


def show_prunes(screen: Screen, context: Context, before_bytes: int | None = None, after_bytes: int = 0) -> None:
    """What each pruning removed of the whole; of the file too, where its sizes are given."""
    for report in context.reports.get("prune", []):
        a, b = report.before, report.after
        rows = [
            ["multiply-accumulates", count(a.macs), count(b.macs), f"{1 - b.macs / max(1, a.macs):.2%}"],
            ["parameters", count(a.params), count(b.params), f"{1 - b.params / max(1, a.params):.2%}"],
        ]
        if before_bytes is not None:
            rows.append(["file", size(before_bytes), size(after_bytes), f"{1 - after_bytes / before_bytes:.2%}"])
        screen.print(table("Pruned", "", "before", "after", "removed", rows=rows))
        screen.print(
            f"asked to remove {report.requested:.2%} of {report.metric}, removed {report.reached:.2%}; "
            f"{sum(g.after < g.before for g in report.groups)} of {len(report.groups)} groups became narrower"
        )
        _show_mended(screen, report.mended)
        if report.unranked:
            screen.print(f"left whole: {', '.join(report.unranked[:6])}{' …' if len(report.unranked) > 6 else ''}")


def show_sparsities(screen: Screen, context: Context) -> None:
    """What each sparsification left of the whole."""
    for report in context.reports.get("sparsify", []):
        eligible = report.eligible
        screen.print(
            f"{report.pattern}: asked for {report.requested:.2%} zeros, reached {report.reached:.2%} of "
            f"{count(sum(w.weights for w in eligible))} weights in {len(eligible)} layers; of all "
            f"{count(sum(w.weights for w in report.weights))} weights {report.overall[0]:.2%} → {report.overall[1]:.2%}"
        )
        _show_mended(screen, report.mended)


def _show_mended(screen: Screen, done: Mended | None) -> None:
    if done is not None:
        screen.print(
            f"mended {len(done.layers)} layers and {len(done.normalizations)} normalisations, "
            f"corrected {len(done.corrections)} with none; left {len(done.left)}"
        )


def show_checks(screen: Screen, outcome: Outcome, timings: bool) -> None:
    """What was verified, and how long each pass took where that is wanted."""
    for check in outcome.checks:
        screen.print(f"verified: {check.compared}: {check.difference:.1e} (allowed {check.tolerance:.0e})")
    if outcome.not_run is not None:
        screen.print(f"not verified: {outcome.not_run}")
    if timings:
        rows = [[name, f"{seconds:.3f}"] for name, seconds in outcome.context.timings]
        screen.print(table("Timings", "pass", "seconds", rows=rows))


def result(outcome: Outcome) -> dict[str, Any]:
    """What was done, for machines."""
    return {
        "output": str(outcome.path),
        "cost": asdict(graph_cost(outcome.graph)),
        "prune": [_pruned(r) for r in outcome.context.reports.get("prune", [])],
        "sparsify": [_sparsified(r) for r in outcome.context.reports.get("sparsify", [])],
        "checks": [{"compared": c.compared, "difference": c.difference} for c in outcome.checks],
        "not_run": outcome.not_run,
        "timings": [{"pass": n, "seconds": s} for n, s in outcome.context.timings],
    }


def _pruned(report: PruneReport) -> dict[str, Any]:
    return {
        "metric": report.metric,
        "requested": report.requested,
        "reached": report.reached,
        "before": asdict(report.before),
        "after": asdict(report.after),
        "groups": [asdict(g) for g in report.groups],
        "layers": [asdict(layer) for layer in report.layers],
        "unranked": list(report.unranked),
    }


def _sparsified(report: SparsifyReport) -> dict[str, Any]:
    return {
        "pattern": report.pattern,
        "requested": report.requested,
        "reached": report.reached,
        "overall": list(report.overall),
        "weights": [asdict(w) for w in report.weights],
    }
