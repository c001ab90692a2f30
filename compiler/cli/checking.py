"""`secateur verify`, `run` and `bench`: commands that execute something."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from compiler.cli.shared import Json, Key, Quiet, Rpc, RpcTimeout, Screen, Shapes, bind, device, table
from compiler.driver import TOLERANCE, Check, compare, model_of
from compiler.ir import SecateurError

Artifact = Annotated[Path, typer.Argument(help="An artifact directory.", show_default=False)]
Threads = Annotated[int, typer.Option(help="Threads to run on.")]


def verify_command(
    a: Annotated[Path, typer.Argument(help="An ONNX file or an artifact.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="What it should agree with.", show_default=False)],
    shape: Shapes = None,
    tolerance: Annotated[float, typer.Option(help="Largest relative difference allowed.")] = TOLERANCE,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run two models on the same noise and compare their outputs; exit 1 when they differ."""
    screen = Screen(json, quiet)
    found = compare(a, b, shapes=bind(shape))
    check = Check(found.compared, found.difference, tolerance)
    screen.print(f"{check.compared}: relative difference {check.difference:.2e} (allowed {check.tolerance:.0e})")
    screen.finish({"difference": check.difference, "tolerance": check.tolerance, "passed": check.passed})
    if not check.passed:
        raise typer.Exit(1)


def run_command(
    artifact: Artifact,
    input: Annotated[Path, typer.Option("--input", "-i", help="An .npz with one array for each input, by name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .npz to write.")],
    threads: Threads = 1,
    force: Annotated[bool, typer.Option("--force", "-f", help="Replace the output if it exists.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run an artifact on inputs from a file."""
    from backends import load
    from compiler.exporters import check_output
    from compiler.exporters.output import replacing

    screen = Screen(json, quiet)
    check_output(output, inputs=[input], overwrite=force)
    try:
        with np.load(input, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise SecateurError(
            "E_FILE", "the input is no .npz file", where=f"{input}: {str(error)[:60]}", hint="write it with numpy.savez"
        ) from None
    with load(artifact, threads=threads) as executable:
        results = executable.run(arrays)
    with replacing(output) as (draft,), draft.open("wb") as stream:
        np.savez(stream, **results)  # type: ignore[arg-type]
    rows = [[name, str(value.dtype), "x".join(map(str, value.shape))] for name, value in results.items()]
    screen.print(table(str(output), "output", "type", "shape", rows=rows))
    screen.finish({"output": str(output), "outputs": {n: list(v.shape) for n, v in results.items()}})


def bench_command(
    artifact: Artifact,
    against: Annotated[str | None, typer.Option(help="onnxruntime: time it too, alternating, on model.onnx.")] = None,
    threads: Threads = 1,
    seconds: Annotated[float, typer.Option(help="How long to measure.")] = 3.0,
    rpc: Rpc = None,
    key: Key = None,
    rpc_timeout: RpcTimeout = 60.0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Time an artifact: here, alone or alternating with ONNX Runtime in the same process; or on a device."""
    from backends.benchmark import benchmark, benchmark_on

    there = device(rpc, key, rpc_timeout)
    if against not in (None, "onnxruntime"):
        raise SecateurError("E_OPTION_VALUE", f"cannot compare with {against!r}", hint="--against onnxruntime")
    if there is not None and against is not None:
        raise SecateurError(
            "E_OPTION_VALUE", "ONNX Runtime is not timed on a device", hint="leave out --against, or --rpc and --key"
        )
    screen = Screen(json, quiet)
    with screen.context() as context:
        context.progress("measuring", 0, 1)
        if there is None:
            peer = model_of(artifact) if against else None
            result = benchmark(artifact, against_onnx=peer, threads=threads, seconds=seconds)
        else:
            model = artifact / "model.onnx"
            result = benchmark_on(there, artifact, model if model.is_file() else None, threads, seconds)
    if there is not None and result.difference is not None:
        check = Check(f"{artifact} on {there.key}, with ONNX Runtime on model.onnx here", result.difference)
        check.require()
        screen.print(f"verified: {check.compared}: {check.difference:.1e} (allowed {check.tolerance:.0e})")
    timings = [("secateur", result.ours), *([("onnxruntime", result.peer)] if result.peer is not None else [])]
    rows = [
        [name, f"{1e3 * t.median:.3f}", f"{1e3 * t.least:.3f}", f"{t.spread:.0%}", str(t.calls)] for name, t in timings
    ]
    place = "" if there is None else f" on {there.key}"
    screen.print(
        table(f"{artifact}{place}, {threads} thread(s)", "", "median ms", "least ms", "spread", "calls", rows=rows)
    )
    screen.print(f"{result.gflops:.1f} GFLOP/s")
    if result.ratio is not None:
        screen.print(f"time over onnxruntime's: {result.ratio:.2f}")
    screen.finish(asdict(result) | {"ratio": result.ratio, "gflops": result.gflops})
