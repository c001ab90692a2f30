"""Our side: one criterion on the file of one trained network, at each ratio: how accurate the result is, how fast."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from compiler import export, load
from compiler.exporters import to_module
from compiler.ir import graph_cost
from passes import Context, Pipeline
from passes.structured import Prune
from tests.accuracy import training
from tests.accuracy.training import measured, path_of, pruned_path, tell

RATIOS = (1.25, 1.5, 2.0, 3.0)
"""How many times fewer multiply-accumulates."""


@dataclass(frozen=True)
class Method:
    """criterion and mend: as `Prune` takes them. data: what is told of inputs: data, other, or none (noise)."""

    criterion: str
    mend: str = "batchnorm"
    data: str = "data"


CRITERIA = (
    *("random", "l1", "l2", "bn_scale", "lamp", "fpgm", "synflow", "snip", "grasp", "crop", "taylor", "taylor_group"),
    *("obd_fisher", "hessian_trace", "wanda", "flap", "activation_mean", "activation_variance", "apoz", "entropy"),
    "obspa",
)
METHODS: Mapping[str, Method] = {
    "l1, not mended": Method("l1", "none"),
    **{name: Method(name) for name in CRITERIA},
    "l1, no data": Method("l1", data="none"),
    "l1, layers solved": Method("l1", "layers"),
    "OBSPA, data": Method("obspa", "layers"),
    "OBSPA, other data": Method("obspa", "layers", "other"),
    "OBSPA, no data": Method("obspa", "layers", "none"),
}


def samples(method: Method, seed: int) -> Any:
    """Calibration as `Prune` takes it."""
    if method.data == "none":
        return "none"
    images, labels = training.calibration(method.data, seed)
    return {"x": images} if labels is None else {"x": images, "labels": labels}


def main(name: str) -> None:
    """Prune NETWORK/SEED/METHOD at each ratio."""
    network, number, method = name.split("/")
    torch.set_num_threads(1)
    seed, how = int(number), METHODS[method]
    graph = Pipeline("simplify(weights=false)").run(load(path_of(network, seed, "onnx")), Context())
    calibration = None if how.mend == "none" else samples(how, seed)
    found: dict[str, dict[str, float]] = {}
    for factor in RATIOS:
        step = Prune(ratio=1 - 1 / factor, criterion=how.criterion, mend=how.mend, calibration=calibration, seed=seed)
        start = time.process_time()
        pruned = Pipeline([step]).run(graph, Context())
        seconds = time.process_time() - start
        export(pruned, pruned_path(name, factor).with_suffix(".onnx"), overwrite=True)
        found[f"{factor:g}"] = {
            "reached": graph_cost(graph).macs / graph_cost(pruned).macs,
            "seconds": seconds,
            "accuracy": measured(to_module(pruned)),
        }
        tell(found=found)
