"""Our side: export a model to ONNX and put it through the zoo's test."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from tests.torchvision.models import build, is_detector, recipe

# isort: split
import onnx
import torch
from torch import nn

from compiler.frontends import load
from compiler.ir import Graph, SecateurError
from passes import Groups, Pipeline, certify, dependency_groups
from tests.torchvision.choices import certify_scores, scores, watched
from tests.zoo.checks import TOLERANCE, check_pruning
from tests.zoo.coverage import prunable_share
from tests.zoo.entry import OPSET

_PROTOBUF_LIMIT = 1_900_000_000
"""Bytes of parameters that still go into one ONNX file."""


def tell(**facts: Any) -> None:
    """One line for `runs`."""
    print(json.dumps(facts), flush=True)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def exported(model: nn.Module, arguments: tuple[Any, ...], *, lists: bool = False) -> Graph | None:
    """The model as a graph: by torch's TorchScript exporter, else by torch.export and our torch frontend.

    The latter at once where the former would leave lists of tensors. Tells which one it was, and how many parameters
    there are; what neither can do is told as `export_error`.
    """
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    tell(parameters=sum(p.numel() for p in model.parameters()))
    ways: list[tuple[str, Callable[[], Graph]]] = [
        ("TorchScript", lambda: load(_script(model, arguments))),
        ("torch.export", lambda: load(model, args=arguments)),
    ]
    errors = []
    for name, way in ways[lists or size > _PROTOBUF_LIMIT :]:
        start = time.process_time()
        try:
            graph = way()
        except Exception as error:  # exporters raise whatever they meet
            errors.append(f"{name}: {first_line(error)}")
            continue
        tell(exporter=name, export_seconds=time.process_time() - start)
        return graph
    tell(export_error="; ".join(errors))
    return None


def _script(model: nn.Module, arguments: tuple[Any, ...]) -> onnx.ModelProto:
    file = io.BytesIO()
    torch.onnx.export(
        model,
        arguments,
        file,
        dynamo=False,
        training=torch.onnx.TrainingMode.EVAL,
        do_constant_folding=False,
        opset_version=OPSET,
    )
    return onnx.load_from_string(file.getvalue())


def certified(graph: Graph, groups: Groups, names: list[str] | None, tries: int) -> float:
    """The certificate on the values of these names, else on the outputs, and then on the first inputs where it holds.

    What a detector of two stages chooses in its first jumps where rounding decides, so it has several tries; a wrong
    coupling fails all of them.
    """
    if names is not None:
        return certify_scores(groups, names)
    difference = math.inf
    for seed in range(tries):
        difference = certify(graph, groups, seed=seed, tolerance=math.inf)
        if difference <= TOLERANCE:
            break
    return difference


def main(name: str) -> None:
    """Tell, step by step, what the zoo's test finds; `failures` says what does not pass."""
    model, arguments = build(name)
    graph = exported(model, arguments, lists=recipe(name).lists)
    if graph is None:
        return
    del model, arguments
    graph = Pipeline("simplify")(graph)
    tell(nodes=len(graph.nodes))
    start = time.process_time()
    groups = dependency_groups(graph)
    tell(grouping_seconds=time.process_time() - start, groups=len(groups), share=prunable_share(groups))
    failures = {}
    names = scores(graph, groups) if is_detector(name) else None
    watch = None if names is None else partial(watched, names)
    try:
        difference = certified(graph, groups, names, tries=3 if is_detector(name) else 1)
        tell(certificate=difference)
        if not difference <= TOLERANCE:
            failures["certificate"] = f"permuting the groups changes the outputs by {difference:.1e}"
    except SecateurError as error:
        failures["certificate"] = first_line(error)
    for scope in ("local", "global"):
        start = time.process_time()

        def lap(step: str, scope: str = scope, start: float = start) -> None:
            tell(**{f"{step}_{scope}_seconds": time.process_time() - start})

        try:
            tell(**{scope: check_pruning(graph, 0.5, scope, open_outputs=is_detector(name), watch=watch, lap=lap)})
        except (AssertionError, SecateurError) as error:
            failures[scope] = first_line(error)
    tell(failures=failures)
