"""`secateur compile`, `prune` and `sparsify`: commands that write something."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from compiler.cli.packages import EmbedWeights, LibraryName, Package, packager
from compiler.cli.results import result, show_checks, show_prunes, show_sparsities
from compiler.cli.shared import (
    Calibration,
    Criterion,
    Force,
    Json,
    Key,
    Labels,
    Loss,
    LossOutput,
    Model,
    NoVerify,
    PrintAfter,
    Quiet,
    Recipe,
    Rpc,
    RpcTimeout,
    Samples,
    Screen,
    Seed,
    Shapes,
    Timings,
    bind,
    device,
    layers,
    table,
)
from compiler.cli.web import Bench, ClassNames, Demo, Normalize, PageSamples, Threads
from compiler.driver import compile_outcome, transform
from compiler.ir import SecateurError, graph_cost
from compiler.report import CHANGES, change_rows, count, size
from passes import Pipeline, Prune, Sparsify, parse_passes

Names = Annotated[list[str] | None, typer.Option(help="Name pattern of groups, weights, nodes or kinds; repeatable.")]
Weights = Annotated[list[str] | None, typer.Option(help="Name pattern of weights, nodes or operators; repeatable.")]


def compile_command(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The artifact directory to write.")],
    target: Annotated[
        str, typer.Option(help="What to build for: native, arm64-linux, arm64-android, arm64-apple, wasm, …")
    ] = "native",
    precision: Annotated[
        str,
        typer.Option(
            help="single, or half: float16 arithmetic and weights, for the arm64 targets; half the bytes, fewer "
            "instructions, three digits: see docs/arm.md."
        ),
    ] = "single",
    passes: Annotated[str | None, typer.Option(help='Passes, such as "simplify,prune(ratio=0.5)".')] = None,
    recipe: Recipe = None,
    shape: Shapes = None,
    tune: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds to spend on measuring which schedules are fastest here, or with --rpc."),
    ] = 0.0,
    rpc: Rpc = None,
    key: Key = None,
    rpc_timeout: RpcTimeout = 60.0,
    optimize: Annotated[
        str,
        typer.Option(help="speed, or size: weights no larger than in the model, and smaller where that costs little."),
    ] = "speed",
    profile: Annotated[
        Path | None,
        typer.Option(help="Choose schedules by what an artifact's benchmark program measured on a device: its file."),
    ] = None,
    no_model: Annotated[
        bool, typer.Option("--no-model", help="Leave model.onnx and module.py out: nothing needs them to run.")
    ] = False,
    package: Package = None,
    name: LibraryName = None,
    embed_weights: EmbedWeights = False,
    threads: Threads = False,
    bench: Bench = False,
    demo: Demo = False,
    class_names: ClassNames = None,
    samples: PageSamples = None,
    normalize: Normalize = None,
    force: Force = False,
    no_verify: NoVerify = False,
    print_after: PrintAfter = None,
    timings: Timings = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile a model into an artifact directory, and verify it against ONNX Runtime."""
    screen = Screen(json, quiet)
    there = device(rpc, key, rpc_timeout)
    if there is not None and tune == 0:
        raise SecateurError("E_OPTION_VALUE", "--rpc is for tuning", hint="add --tune SECONDS, or leave --rpc out")
    with screen.context(print_after) as context:
        outcome = compile_outcome(
            model,
            target=target,
            precision=precision,
            passes=_chosen(passes, recipe),
            output=output,
            shapes=bind(shape),
            overwrite=force,
            verify=not no_verify,
            context=context,
            tune=tune,
            keep_model=not no_model,
            packager=packager(
                target, package, name, embed_weights, threads, bench, demo, class_names, samples, normalize
            ),
            profile=profile,
            device=there,
            optimize=optimize,
        )
    artifact = outcome.artifact
    assert artifact is not None
    cost = graph_cost(outcome.graph)
    show_prunes(screen, context)
    show_sparsities(screen, context)
    rows = [
        ["target", target if precision == "single" else f"{target}, {precision} precision"],
        ["multiply-accumulates", count(cost.macs)],
        ["parameters", count(cost.params)],
        ["artifact", size(artifact.nbytes)],
        ["activation memory", size(artifact.arena_bytes)],
    ]
    if "profile" in artifact.manifest:
        rows.append(["costs measured on", artifact.manifest["profile"]["processor"]])
    if "code_bytes" in artifact.manifest:
        rows.append(["code without weights", size(artifact.manifest["code_bytes"])])
    screen.print(table(f"{outcome.path}", "", "", rows=rows))
    show_checks(screen, outcome, timings)
    screen.print(f"next: {_next_step(output, artifact.manifest, demo)}")
    screen.finish(result(outcome) | {"artifact_bytes": artifact.nbytes, "arena_bytes": artifact.arena_bytes})


def _next_step(output: Path, manifest: dict[str, Any], demo: bool) -> str:
    """What one does with such an artifact."""
    if demo:
        return f"secateur serve {output}"
    if manifest.get("package") != "c":
        return f"secateur bench {output} --against onnxruntime"
    if not manifest["program"]:
        return f"link {output}/lib{manifest['name']}.a; its interface is {manifest['name']}.h"
    weights = " -w weights.bin" if "weights.bin" in manifest["files"] else ""
    return f"copy {output} to the device; there: ./{manifest['program']}{weights} -n 50"


def prune_command(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    ratio: Annotated[float, typer.Option(help="Share of the metric to remove, between 0 and 1.")] = 0.5,
    metric: Annotated[str, typer.Option(help="macs or params.")] = "macs",
    criterion: Criterion = "l1",
    calibration: Calibration = None,
    samples: Samples = 512,
    labels: Labels = "labels",
    loss: Loss = "cross_entropy",
    loss_output: LossOutput = None,
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
    seed: Seed = 0,
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
    show_prunes(screen, context, model.stat().st_size, output.stat().st_size)
    show_checks(screen, outcome, timings)
    screen.print(f"next: fine-tune {output}, then: secateur compile {output} -o {output.with_suffix('')}")
    screen.finish(result(outcome))


def sparsify_command(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    sparsity: Annotated[
        float | None,
        typer.Option(
            help="Share of zeros among eligible weights, between 0 and 1; 0.5 unless told.", show_default=False
        ),
    ] = None,
    pattern: Annotated[
        str,
        typer.Option(
            help="unstructured; RxC: blocks of R outputs by C inputs; N:M along inputs, N:M@out along outputs."
        ),
    ] = "unstructured",
    distribution: Annotated[
        str, typer.Option(help="uniform: the same share of each layer; erk: by its shape; global: rank over all.")
    ] = "uniform",
    criterion: Criterion = "l1",
    calibration: Calibration = None,
    samples: Samples = 512,
    labels: Labels = "labels",
    loss: Loss = "cross_entropy",
    loss_output: LossOutput = None,
    mend: Annotated[
        str, typer.Option(help="Make good for zeros: none; batchnorm: statistics; layers: the weights that stay, too.")
    ] = "none",
    keep_first: Annotated[bool, typer.Option(help="Spare the layers that no other comes before.")] = True,
    keep_last: Annotated[bool, typer.Option(help="Spare the layers that no other comes after.")] = False,
    depthwise: Annotated[bool, typer.Option(help="Take depthwise convolutions too.")] = False,
    min_size: Annotated[int, typer.Option(help="Spare what holds fewer weights.")] = 1024,
    ignore: Weights = None,
    only: Weights = None,
    seed: Seed = 0,
    shape: Shapes = None,
    force: Force = False,
    no_verify: NoVerify = False,
    print_after: PrintAfter = None,
    timings: Timings = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Set the least important weights of a model to zero; writes ONNX with the same graph and shapes."""
    screen = Screen(json, quiet)
    sparsify = Sparsify(
        sparsity=sparsity,
        pattern=pattern,
        distribution=distribution,
        criterion=criterion,
        keep_first=keep_first,
        keep_last=keep_last,
        depthwise=depthwise,
        min_size=min_size,
        ignore=tuple(ignore or ()),
        only=tuple(only or ()),
        calibration=calibration,
        samples=samples,
        labels=labels,
        loss=loss,
        loss_output=loss_output,
        mend=mend,
        seed=seed,
    )
    with screen.context(print_after) as context:
        outcome = transform(
            model,
            output,
            Pipeline((*parse_passes("simplify"), sparsify)),
            shapes=bind(shape),
            overwrite=force,
            verify=not no_verify,
            context=context,
        )
    for done in context.reports["sparsify"]:
        screen.print(table("Weights", *CHANGES, rows=change_rows(done)))
    show_sparsities(screen, context)
    show_checks(screen, outcome, timings)
    screen.print(f"next: secateur compile {output} -o {output.with_suffix('')}")
    screen.finish(result(outcome))


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
