"""The road from end to end: load, passes, build, verify. `compile` reads like the picture in the design."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.exporters import check_output, export
from compiler.exporters.output import replacing
from compiler.frontends import load
from compiler.ir import CheckFailed, Graph, SecateurError
from compiler.ir.execute import execute, random_inputs, relative_difference
from compiler.report import prune_page
from passes import Context, Pipeline, certify
from passes.pipeline import Pass
from passes.sparsity.check import sparsity_error
from passes.structured.check import pruning_error

if TYPE_CHECKING:
    from backends import Artifact, Target
    from backends.packaging import Packager
    from backends.rpc import Device

TOLERANCE = 1e-4
"""Largest relative difference (norm of the difference over the norm) between two ways to compute the same."""
HALF_TOLERANCE = 2e-2
"""The same for an artifact that computes in half precision, against float32."""
_HALF_HINT = "nothing was written; half precision has 11 bits and no numbers beyond 65504: compile in single precision"


@dataclass(frozen=True)
class Check:
    """One comparison that was made: what with what, the largest relative difference, the tolerance, what to do."""

    compared: str
    difference: float
    tolerance: float = TOLERANCE
    hint: str = "nothing was written; this is a defect worth reporting together with the model"

    @property
    def passed(self) -> bool:
        """True when the difference is within the tolerance."""
        return self.difference <= self.tolerance

    def require(self) -> None:
        """Raise CheckFailed `E_VERIFY` unless the check passed."""
        if not self.passed:
            raise CheckFailed(
                "E_VERIFY",
                f"{self.compared}: the relative difference is {self.difference:.2e}, more than {self.tolerance:.0e}",
                hint=self.hint,
            )


@dataclass
class Outcome:
    """What a run of the road made: the final graph, where it was written, reports of passes, checks made.

    not_run: why the artifact itself was not compared with ONNX Runtime, where it should have been.
    """

    graph: Graph
    path: Path
    context: Context
    checks: list[Check] = field(default_factory=list)
    artifact: Artifact | None = None
    not_run: str | None = None


def compile(
    source: Any,
    *,
    target: str | Target = "native",
    precision: str = "single",
    passes: str | Pipeline | Sequence[Pass] = "simplify",
    output: str | Path,
    shapes: Mapping[str, Sequence[int]] | None = None,
    args: tuple[Any, ...] | None = None,
    overwrite: bool = False,
    verify: bool = True,
    context: Context | None = None,
    tune: float = 0.0,
    keep_model: bool = True,
    packager: Packager | None = None,
    profile: str | Path | None = None,
    device: Device | None = None,
    optimize: str = "speed",
) -> Artifact:
    """Compile a model (a path, a ModelProto, an nn.Module, …) into the artifact directory `output`.

    precision: single, or half (float16 arithmetic and weights, for the arm64 targets; inputs and outputs keep their
    types). shapes: input name -> shape for symbolic dimensions. args: example arguments of an nn.Module. verify:
    compare the result with ONNX Runtime, and a pruning with the silenced original, before anything appears at `output`;
    CheckFailed otherwise. tune: seconds to spend on measuring which schedules are fastest on this machine.
    keep_model: put the model that was compiled and the kernels' TVMScript into the artifact too, as model.onnx and
    module.py; nothing needs them to run.
    packager: what the artifact holds, such as `backends.wasm.WebPackage`; the target's own if it is not given.
    profile: a file that an artifact's benchmark program wrote on a device; its costs decide which schedules are taken.
    device: where to tune instead of here (see `backends.rpc`). optimize: "speed", or "size" for small weights.
    """
    outcome = compile_outcome(
        source,
        target=target,
        precision=precision,
        passes=passes,
        output=output,
        shapes=shapes,
        args=args,
        overwrite=overwrite,
        verify=verify,
        context=context,
        tune=tune,
        keep_model=keep_model,
        packager=packager,
        profile=profile,
        device=device,
        optimize=optimize,
    )
    assert outcome.artifact is not None
    return outcome.artifact


def compile_outcome(
    source: Any,
    *,
    target: str | Target = "native",
    precision: str = "single",
    passes: str | Pipeline | Sequence[Pass] = "simplify",
    output: str | Path,
    shapes: Mapping[str, Sequence[int]] | None = None,
    args: tuple[Any, ...] | None = None,
    overwrite: bool = False,
    verify: bool = True,
    context: Context | None = None,
    tune: float = 0.0,
    keep_model: bool = True,
    packager: Packager | None = None,
    profile: str | Path | None = None,
    device: Device | None = None,
    optimize: str = "speed",
) -> Outcome:
    """As `compile`, with the graph, the passes' reports and the checks that were made."""
    from backends import Artifact, build
    from backends.target import in_precision

    chosen = in_precision(target, precision)
    final = check_output(output, inputs=_paths(source), overwrite=overwrite, directory=True)
    context = context or Context()
    pipeline = _pipeline(passes)
    options: dict[str, Any] = {} if args is None else {"args": args}
    graph = load(source, shapes=shapes, **options)
    transformed = pipeline.run(graph, context)
    packager = _with_dense(packager, graph, pipeline)
    with tempfile.TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent) as folder:
        draft = build(
            transformed,
            Path(folder) / "artifact",
            target=chosen,
            progress=context.progress,
            tune=tune,
            keep_model=keep_model,
            packager=packager,
            profile=profile,
            device=device,
            optimize=optimize,
        )
        checks = verify_transformation(graph, transformed, pipeline, context) if verify else []
        here = _runs_here(draft)
        if verify and here:
            context.progress("verifying", 0, 1)
            checks += [verify_artifact(draft.path, transformed, variant=v, threads=n) for v, n in _ways(draft)]
        _publish(draft.path, final)
    not_run = None if here or not verify else _why_not_run(draft)
    return Outcome(transformed, final, context, checks, Artifact(final, draft.manifest), not_run)


def _with_dense(packager: Packager | None, graph: Graph, pipeline: Pipeline) -> Packager | None:
    """Let a page show the model as it was too, where passes change what it computes."""
    from backends.wasm import WebPackage

    if not isinstance(packager, WebPackage) or packager.page is None or pipeline.exact:
        return packager
    dense = Pipeline("simplify").run(graph, Context())
    return replace(packager, page=replace(packager.page, dense=dense))


def transform(
    source: Any,
    output: str | Path,
    passes: str | Pipeline | Sequence[Pass],
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    overwrite: bool = False,
    verify: bool = True,
    context: Context | None = None,
    report: str | Path | None = None,
) -> Outcome:
    """Run passes over a model and write the result as ONNX: what `secateur prune` does.

    report: an HTML page to write beside it, of what the prunings took from each layer. Neither file appears when the
    other cannot be written.
    """
    final = check_output(output, inputs=_paths(source), overwrite=overwrite)
    page = None if report is None else check_output(report, inputs=_paths(source), overwrite=overwrite)
    if page is not None and page.absolute() == final.absolute():
        raise SecateurError("E_OUTPUT", "the report would replace the model", where=str(page), hint="name another file")
    context = context or Context()
    pipeline = _pipeline(passes)
    graph = load(source, shapes=shapes)
    transformed = pipeline.run(graph, context)
    checks = verify_transformation(graph, transformed, pipeline, context) if verify else []
    context.progress("writing", 0, 1)
    drafting: AbstractContextManager[list[Path]] = nullcontext([]) if page is None else replacing(page)
    with drafting as drafts:
        for draft in drafts:
            draft.write_text(_page(source, final, context, checks), encoding="utf-8")
        export(transformed, final, overwrite=overwrite)
    return Outcome(transformed, final, context, checks)


def _page(source: Any, final: Path, context: Context, checks: Sequence[Check]) -> str:
    """What prunings did, as HTML."""
    name = str(source) if isinstance(source, str | Path) else type(source).__name__
    notes = [f"Verified: {c.compared}: {c.difference:.1e} (allowed {c.tolerance:.0e})." for c in checks]
    return prune_page(f"{name} → {final}", context.reports.get("prune", []), notes)


def verify_transformation(before: Graph, after: Graph, pipeline: Pipeline, context: Context) -> list[Check]:
    """What can be proven of passes: sameness where none changes the function, exactness of prunings and sparsity.

    Raises CheckFailed when a check fails, or when an input or output changed its shape.
    """
    _require_same_interface(before, after)
    checks = []
    context.progress("checking", 0, 1)
    data = random_inputs(before, seed=1)
    result = execute(after, data)
    if pipeline.exact:
        found = relative_difference(result, execute(before, data))
        checks.append(Check("after the passes, with the source model (both in ONNX Runtime)", found))
    elif pipeline.passes and pipeline.passes[-1].name == "prune":
        checks += _verify_pruning(context)
    for report in context.reports.get("sparsify", []):
        checks.append(
            Check("weights of the sparse model that are not zero, with the original's", sparsity_error(report))
        )
    for check in checks:
        check.require()
    return checks


def _verify_pruning(context: Context) -> list[Check]:
    """Exactly, against the silenced original; where a normalisation mixes pruned channels, by the certificate."""
    report = context.reports["prune"][-1]
    errors = [pruning_error(stage.groups, stage.keep, stage.pruned) for stage in report.stages]
    exact = [error for error in errors if error is not None]
    if len(exact) == len(errors):
        before = ", before it was mended" if report.mended is not None else ""
        return [Check(f"pruned model{before}, with the original whose removed channels are silenced", max(exact))]
    groups = report.stages[0].groups
    try:
        difference = certify(groups.graph, groups)
    except CheckFailed as failure:
        if failure.code not in ("E_CERTIFICATE_VACUOUS", "E_BODY"):
            raise
        return []
    return [Check("original model, with itself after every group was permuted", difference)]


def verify_artifact(
    path: str | Path, graph: Graph, seed: int = 1, variant: str | None = None, threads: int = 1
) -> Check:
    """Compare an artifact on disk with ONNX Runtime running `graph`, on noise.

    variant: which of its codes, where it has several.
    """
    from backends import load as load_artifact

    data = random_inputs(graph, seed)
    with load_artifact(path, threads, variant) as executable:
        actual = executable.run(data)
        how = [variant or ("emulated" if getattr(executable, "emulated", False) else "")]
        half = executable.manifest["target"].get("dtype") == "float16"
    how += [f"{threads} threads"] if threads > 1 else []
    how += ["half precision"] if half else []
    told = ", ".join(filter(None, how))
    check = Check(
        f"compiled artifact{f' ({told})' if told else ''}, with ONNX Runtime on the same graph",
        relative_difference(actual, execute(graph, data)),
        *((HALF_TOLERANCE, _HALF_HINT) if half else ()),
    )
    check.require()
    return check


def compare(a: str | Path, b: str | Path, *, shapes: Mapping[str, Sequence[int]] | None = None, seed: int = 0) -> Check:
    """Run two models (ONNX files or artifacts, in any mix) on the same noise and compare their outputs."""
    graphs = [load(model_of(p), shapes=shapes) for p in (a, b)]
    data = random_inputs(graphs[1], seed)
    left, right = (_run(Path(p), g, data) for p, g in zip((a, b), graphs, strict=True))
    if set(left) != set(right):
        raise CheckFailed(
            "E_VERIFY", "the models have different outputs", where=f"{sorted(left)} against {sorted(right)}"
        )
    return Check(f"{a}, with {b}", relative_difference(left, right))


def _run(path: Path, graph: Graph, data: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    missing = {v.name for v in graph.inputs} - set(data)
    if missing:
        raise CheckFailed("E_VERIFY", "the models have different inputs", where=", ".join(sorted(missing)))
    own = {v.name: data[v.name] for v in graph.inputs}
    if not path.is_dir():
        return execute(graph, own)
    from backends import load as load_artifact

    with load_artifact(path) as executable:
        return executable.run(own)


def model_of(path: str | Path) -> Path:
    """The ONNX file of an artifact directory, or the file itself.

    Raises SecateurError E_NO_MODEL for an artifact without one.
    """
    if not Path(path).is_dir():
        return Path(path)
    model = Path(path) / "model.onnx"
    if (Path(path) / "manifest.json").is_file() and not model.is_file():
        raise SecateurError(
            "E_NO_MODEL",
            "the artifact holds no model.onnx to compare with",
            where=str(path),
            hint="compile it again without --no-model",
        )
    return model


def _runs_here(artifact: Artifact) -> bool:
    target = artifact.manifest.get("target", {})
    if str(target.get("triple")).startswith("wasm32"):
        from backends.runtime.node import node

        return node() is not None
    if artifact.manifest.get("package") == "c":
        from backends.runtime.program import runner

        return runner(artifact.manifest) is not None
    return bool(target.get("name", "native") == "native")


def _why_not_run(artifact: Artifact) -> str:
    """In words, for an artifact that does not run on this machine."""
    name, missing = artifact.manifest["target"]["name"], ""
    if str(artifact.manifest["target"]["triple"]).startswith("wasm32"):
        missing = "; with Node 20 or newer it would have been"
    elif artifact.manifest.get("program"):
        missing = "; with qemu-user it would have been"
    return f"the code for {name} was not run, because this machine cannot run it{missing}"


def _ways(artifact: Artifact) -> list[tuple[str | None, int]]:
    """What to verify of an artifact: each of its codes, or the one that it has, and on how many threads."""
    threads = (1, 2) if "threads" in artifact.manifest else (1,)
    return [(variant, n) for n in threads for variant in artifact.manifest.get("variants", [None])]


def _require_same_interface(before: Graph, after: Graph) -> None:
    for kind in ("inputs", "outputs"):
        old = [(v.name, v.dtype, v.shape) for v in getattr(before, kind)]
        new = [(v.name, v.dtype, v.shape) for v in getattr(after, kind)]
        for (name, dtype, shape), found in zip(old, new, strict=True):
            if (name, dtype) != found[:2] or not _compatible(shape, found[2]):
                raise CheckFailed(
                    "E_VERIFY", f"{kind[:-1]} {name!r} was {dtype}{shape} and became {found[1]}{found[2]}", where=name
                )


def _compatible(a: tuple[Any, ...] | None, b: tuple[Any, ...] | None) -> bool:
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(
        x == y for x, y in zip(a, b, strict=True) if isinstance(x, int) and isinstance(y, int)
    )


def _pipeline(passes: str | Pipeline | Sequence[Pass]) -> Pipeline:
    return passes if isinstance(passes, Pipeline) else Pipeline(passes)


def _paths(source: Any) -> list[str | Path]:
    return [source] if isinstance(source, str | Path) else []


def _publish(draft: Path, final: Path) -> None:
    """Put a finished directory in its place; an old one is set aside first, so that a failure loses nothing."""
    aside = None
    if final.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".{final.name}.old.", dir=final.parent)) / "old"
        final.rename(aside)
    try:
        draft.rename(final)
    except OSError as error:
        if aside is not None:
            aside.rename(final)
        raise SecateurError("E_OUTPUT", f"cannot write {final}: {error.strerror}", where=str(final)) from None
    finally:
        if aside is not None:
            shutil.rmtree(aside.parent, ignore_errors=True)
