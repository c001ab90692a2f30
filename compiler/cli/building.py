"""`secateur compile` and `secateur prune`: commands that write something."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from compiler.cli.shared import (
    Force,
    Json,
    Model,
    PrintAfter,
    Quiet,
    Recipe,
    Screen,
    Shapes,
    Timings,
    bind,
    layers,
    table,
)
from compiler.driver import Outcome, compile_outcome, transform
from compiler.ir import SecateurError, graph_cost
from compiler.report import count, size
from passes import Context, Pipeline, Prune, parse_passes
from passes.structured import PruneReport

NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not compare the result with ONNX Runtime.")]
Names = Annotated[list[str] | None, typer.Option(help="Name pattern of groups, weights, nodes or kinds; repeatable.")]


def compile_command(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The artifact directory to write.")],
    target: Annotated[str, typer.Option(help="What to build for.")] = "native",
    passes: Annotated[str | None, typer.Option(help='Passes, such as "simplify,prune(ratio=0.5)".')] = None,
    recipe: Recipe = None,
    shape: Shapes = None,
    force: Force = False,
    no_verify: NoVerify = False,
    print_after: PrintAfter = None,
    timings: Timings = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile a model into an artifact directory, and verify it against ONNX Runtime."""
    screen = Screen(json, quiet)
    with screen.context(print_after) as context:
        outcome = compile_outcome(
            model,
            target=target,
            passes=_chosen(passes, recipe),
            output=output,
            shapes=bind(shape),
            overwrite=force,
            verify=not no_verify,
            context=context,
        )
    artifact = outcome.artifact
    assert artifact is not None
    cost = graph_cost(outcome.graph)
    _show_prunes(screen, context)
    rows = [
        ["target", target],
        ["multiply-accumulates", count(cost.macs)],
        ["parameters", count(cost.params)],
        ["artifact", size(artifact.nbytes)],
        ["activation memory", size(artifact.arena_bytes)],
    ]
    screen.print(table(f"{outcome.path}", "", "", rows=rows))
    _show_checks(screen, outcome, timings)
    screen.print(f"next: secateur bench {output} --against onnxruntime")
    screen.finish(_result(outcome) | {"artifact_bytes": artifact.nbytes, "arena_bytes": artifact.arena_bytes})


def prune_command(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    ratio: Annotated[float, typer.Option(help="Share of the metric to remove, between 0 and 1.")] = 0.5,
    metric: Annotated[str, typer.Option(help="macs or params.")] = "macs",
    criterion: Annotated[
        str, typer.Option(help="What tells how important a channel is; `secateur criteria` lists them.")
    ] = "l1",
    calibration: Annotated[
        str | None,
        typer.Option(
            help="Sample inputs: an .npz, a folder of NAME.npy files, none (noise as the first BatchNormalization saw "
            "it), or noise (of mean 0 and variance 1)."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Use at most so many samples.")] = 512,
    labels: Annotated[str, typer.Option(help="The name of the labels in the calibration data.")] = "labels",
    loss: Annotated[str, typer.Option(help="For criteria over gradients: cross_entropy or mse.")] = "cross_entropy",
    loss_output: Annotated[str | None, typer.Option(help="The output that the loss reads, of several.")] = None,
    mend: Annotated[
        str, typer.Option(help="Solve anew what stays: none, batchnorm, layers, or auto (layers for obspa).")
    ] = "auto",
    steps: Annotated[int, typer.Option(help="Prune in so many stages, scoring anew in between.")] = 1,
    scope: Annotated[
        str, typer.Option(help="local: the same share of each group; global, kind: rank over all; erk: by layer size.")
    ] = "local",
    normalize: Annotated[
        str, typer.Option(help="Divide a group's scores by their mean, max or sum; gaussian; or none.")
    ] = "mean",
    aggregate: Annotated[str, typer.Option(help="A unit's scores become their sum, mean, max or prod.")] = "sum",
    round_to: Annotated[int, typer.Option(help="Widths that change become multiples of this.")] = 1,
    min_channels: Annotated[int, typer.Option(help="No group becomes narrower than this.")] = 1,
    max_ratio: Annotated[float, typer.Option(help="No group loses a larger share of its units.")] = 1.0,
    share: Annotated[
        list[str] | None, typer.Option(help="PATTERN=0.3: groups that lose a share of their own; repeatable.")
    ] = None,
    keep_ends: Annotated[bool, typer.Option("--keep-ends", help="Spare the first and the last layer.")] = False,
    ignore: Names = None,
    only: Names = None,
    heads: Annotated[bool, typer.Option("--heads", help="Remove whole attention heads, not channels within.")] = False,
    seed: Annotated[int, typer.Option(help="For what is drawn at random.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Write what each layer lost as an HTML page too.")] = None,
    shape: Shapes = None,
    force: Force = False,
    no_verify: NoVerify = False,
    print_after: PrintAfter = None,
    timings: Timings = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove the least important channels of a model; writes ONNX with the same inputs and outputs."""
    screen = Screen(json, quiet)
    prune = Prune(
        ratio=ratio,
        metric=metric,
        criterion=criterion,
        calibration=calibration,
        samples=samples,
        labels=labels,
        loss=loss,
        loss_output=loss_output,
        mend=mend,
        steps=steps,
        scope=scope,
        normalize=normalize,
        aggregate=aggregate,
        round_to=round_to,
        min_channels=min_channels,
        max_ratio=max_ratio,
        shares=tuple(share or ()),
        keep_ends=keep_ends,
        ignore=tuple(ignore or ()),
        only=tuple(only or ()),
        heads=heads,
        seed=seed,
    )
    with screen.context(print_after) as context:
        outcome = transform(
            model,
            output,
            Pipeline((*parse_passes("simplify"), prune)),
            shapes=bind(shape),
            overwrite=force,
            verify=not no_verify,
            context=context,
            report=report,
        )
    for done in context.reports["prune"]:
        screen.print(layers(done, screen.console.width))
    _show_prunes(screen, context, model.stat().st_size, output.stat().st_size)
    _show_checks(screen, outcome, timings)
    screen.print(f"next: fine-tune {output}, then: secateur compile {output} -o {output.with_suffix('')}")
    screen.finish(_result(outcome))


def _chosen(passes: str | None, recipe: Path | None) -> Pipeline:
    if passes is not None and recipe is not None:
        raise SecateurError("E_OPTION_VALUE", "--passes and --recipe exclude each other", hint="give one of them")
    if recipe is None:
        return Pipeline("simplify" if passes is None else passes)
    try:
        lines = recipe.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SecateurError(
            "E_FILE",
            "the recipe cannot be read",
            where=f"{recipe}: {getattr(error, 'strerror', None) or error}",
            hint="give a text file with passes, one or more a line",
        ) from None
    return Pipeline(",".join(line.split("#")[0].strip().rstrip(",") for line in lines if line.split("#")[0].strip()))


def _show_prunes(screen: Screen, context: Context, before_bytes: int | None = None, after_bytes: int = 0) -> None:
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
        if report.mended is not None:
            done = report.mended
            screen.print(
                f"mended {len(done.layers)} layers and {len(done.normalizations)} normalisations, "
                f"corrected {len(done.corrections)} with none; left {len(done.left)}"
            )
        if report.unranked:
            screen.print(f"left whole: {', '.join(report.unranked[:6])}{' …' if len(report.unranked) > 6 else ''}")


def _show_checks(screen: Screen, outcome: Outcome, timings: bool) -> None:
    for check in outcome.checks:
        screen.print(f"verified: {check.compared}: {check.difference:.1e} (allowed {check.tolerance:.0e})")
    if timings:
        rows = [[name, f"{seconds:.3f}"] for name, seconds in outcome.context.timings]
        screen.print(table("Timings", "pass", "seconds", rows=rows))


def _result(outcome: Outcome) -> dict[str, Any]:
    return {
        "output": str(outcome.path),
        "cost": asdict(graph_cost(outcome.graph)),
        "prune": [_report(r) for r in outcome.context.reports.get("prune", [])],
        "checks": [{"compared": c.compared, "difference": c.difference} for c in outcome.checks],
        "timings": [{"pass": n, "seconds": s} for n, s in outcome.context.timings],
    }


def _report(report: PruneReport) -> dict[str, Any]:
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
