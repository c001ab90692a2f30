"""`secateur demo`: the main job on the bundled model, with what was gained and what it cost."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from compiler.cli.shared import Json, Quiet, Screen, table
from compiler.driver import compile_outcome, transform
from compiler.ir import CheckFailed, SecateurError, graph_cost
from compiler.report import count, size
from passes import Context, Pipeline, Prune, parse_passes
from passes.sparsity import Sparsify

DENSE, TUNED = "fashion_cnn.onnx", "fashion_cnn_pruned50_finetuned.onnx"
_CALIBRATION = 320
"""Of the bundled test images so many, without their labels, calibrate; accuracy is on the others."""


@dataclass(frozen=True)
class Row:
    """One line of the table; times in milliseconds, accuracy in [0, 1]."""

    name: str
    params: int
    macs: int
    file_bytes: int
    artifact_bytes: int
    accuracy: float
    ours_ms: float
    theirs_ms: float
    difference: float


def demo_command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the models and artifacts it makes.")] = (
        Path("secateur-demo")
    ),
    seconds: Annotated[float, typer.Option(help="How long to time each model.")] = 1.0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Prune, sparsify, compile, run and measure the bundled Fashion-MNIST model."""
    screen = Screen(json, quiet)
    examples = _examples()
    output.mkdir(parents=True, exist_ok=True)
    with screen.context() as context:
        rows = list(_rows(examples, output, seconds, context))
    _show(screen, rows)
    command = "secateur" if shutil.which("secateur") else _short(Path(sys.argv[0]))
    dense, pruned = _short(examples / DENSE), output / "pruned"
    screen.print(
        "\nTry next:\n"
        f"  {command} groups {dense} --certify\n"
        f"  {command} prune {dense} -o smaller.onnx --ratio 0.7\n"
        f"  {command} compile smaller.onnx -o artifact --shape input=1x1x28x28\n"
        f"  {command} bench {pruned} --against onnxruntime\n"
        f"  {command} inspect {pruned}\n"
        f"  {command} compile YOUR_MODEL.onnx -o your-artifact",
    )
    screen.finish({"models": [vars(r) for r in rows], "output": str(output)})


def _short(path: Path) -> str:
    """The path as a reader in the current folder would type it."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _rows(examples: Path, output: Path, seconds: float, context: Context) -> Iterator[Row]:
    images, _ = _images()
    samples = {"input": images[:_CALIBRATION]}
    prune = Prune(ratio=0.5, criterion="obspa", calibration=samples)
    sparsify = Sparsify(sparsity=0.8, mend="layers", calibration=samples)
    dense, made = examples / DENSE, []
    for done, (name, chosen) in enumerate((("pruned", prune), ("sparse", sparsify))):
        context.progress(name, done, 6)
        made.append((name, output / f"{name}.onnx"))
        transform(dense, made[-1][1], Pipeline((*parse_passes("simplify"), chosen)), overwrite=True)
    models = [("dense", dense), made[0], ("pruned, fine-tuned 1 epoch", examples / TUNED), made[1]]
    for done, (name, model) in enumerate(models, 2):
        context.progress(f"compiling and measuring: {name}", done, 6)
        yield _measure(name, model, output / name.replace(", ", "-").replace(" ", "-"), seconds)


def _measure(name: str, model: Path, artifact: Path, seconds: float) -> Row:
    from backends import load
    from backends.benchmark import benchmark

    outcome = compile_outcome(model, output=artifact, shapes={"input": (1, 1, 28, 28)}, overwrite=True)
    cost = graph_cost(outcome.graph)
    timing = benchmark(artifact, against_onnx=artifact / "model.onnx", threads=1, seconds=seconds)
    assert timing.peer is not None
    with load(artifact) as executable:
        accuracy = _accuracy(executable)
    deployed = [file for file in artifact.iterdir() if file.name not in ("model.onnx", "module.py")]
    return Row(
        name=name,
        params=cost.params,
        macs=cost.macs,
        file_bytes=model.stat().st_size,
        artifact_bytes=sum(file.stat().st_size for file in deployed),
        accuracy=accuracy,
        ours_ms=1e3 * timing.ours.median,
        theirs_ms=1e3 * timing.peer.median,
        difference=outcome.checks[-1].difference,
    )


def _images() -> tuple[np.ndarray, np.ndarray]:
    """The bundled test images, as the network takes them, and their labels."""
    from examples.fashion_mnist.data import load_test_images, preprocess

    images, labels = load_test_images()
    if len(labels) <= _CALIBRATION:
        raise CheckFailed("E_VERIFY", "bundled test images are missing")
    return preprocess(images), labels


def _accuracy(executable: Any) -> float:
    """Share of the bundled test images, without those that calibrate, that the artifact classifies rightly."""
    inputs, labels = (array[_CALIBRATION:] for array in _images())
    right = sum(
        int(np.argmax(executable.run({"input": inputs[i : i + 1]})["logits"]) == labels[i]) for i in range(len(labels))
    )
    return right / len(labels)


def _show(screen: Screen, rows: list[Row]) -> None:
    shown = [
        [
            r.name,
            count(r.params),
            count(r.macs),
            size(r.file_bytes),
            f"{r.accuracy:.1%}",
            f"{r.ours_ms:.3f} ms",
            f"{r.theirs_ms:.3f} ms",
            f"{r.difference:.0e}",
        ]
        for r in rows
    ]
    columns = "parameters", "MACs", "ONNX file", "accuracy", "secateur", "onnxruntime", "difference"
    images = len(_images()[1]) - _CALIBRATION
    screen.print(table(f"Fashion-MNIST, {images} test images, one at a time, one thread", "", *columns, rows=shown))
    dense, pruned, tuned, sparse = rows
    screen.print(
        f"\npruned: {1 - pruned.macs / dense.macs:.1%} of the multiply-accumulates and "
        f"{1 - pruned.params / dense.params:.1%} of the parameters removed, without training; "
        f"{dense.ours_ms / pruned.ours_ms:.2f} times faster than dense"
        f"\n  cost: {(dense.accuracy - pruned.accuracy) * 100:.1f} points of accuracy; "
        f"{(dense.accuracy - tuned.accuracy) * 100:.1f} with one epoch of fine-tuning"
        f"\nsparse: 80 % of the weights of most layers are zero, without training; "
        f"{dense.ours_ms / sparse.ours_ms:.2f} times faster than dense, and the artifact is "
        f"{1 - sparse.artifact_bytes / dense.artifact_bytes:.0%} smaller"
        f"\n  cost: {(dense.accuracy - sparse.accuracy) * 100:.1f} points of accuracy"
        "\ndifference: between our artifact and ONNX Runtime on the same file, relative"
    )


def _examples() -> Path:
    found = importlib.util.find_spec("examples.fashion_mnist") if importlib.util.find_spec("examples") else None
    folder = Path(found.origin).parent if found is not None and found.origin else None
    if folder is None or not all((folder / name).is_file() for name in (DENSE, TUNED)):
        raise SecateurError(
            "E_DEMO_MODEL",
            "the bundled model is not installed",
            where=str(folder or "examples.fashion_mnist"),
            hint="run from a clone of the repository, or install the complete package",
        )
    return folder
