"""What a pruning says that it took from each layer, against the graphs themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compiler.frontends import load
from compiler.ir import Graph, graph_cost
from compiler.ir.execute import execute
from passes import Context, Pipeline, Prune
from passes.calibration import noise_samples
from passes.importance import criterion, unit_scores
from passes.structured import LayerChange, PruneReport
from passes.structured.layers import GroupChange
from tests.networks import network
from tests.passes.test_mending import CHAIN
from tests.zoo.entry import zoo


def pruned(graph: Graph, **options: object) -> tuple[Graph, PruneReport]:
    context = Context()
    result = Prune(**options)(graph, context)  # type: ignore[arg-type]
    return result, context.reports["prune"][0]


def check_totals(report: PruneReport, before: Graph, after: Graph) -> None:
    for side, graph in enumerate((before, after)):
        cost = graph_cost(graph)
        assert sum(layer.params[side] for layer in report.layers) == cost.params
        assert sum(layer.macs[side] for layer in report.layers) == cost.macs


@pytest.mark.parametrize(
    "name", ["detection.fpn", "gpt.gpt2", "moe.listed", "control_flow.adaptive", "tagger.lstm", "swin.swin"]
)
def test_layers_sum_up_to_the_graph(name: str) -> None:
    graph = Pipeline("simplify")(load(zoo()[name].build()))
    result, report = pruned(graph, ratio=0.3, metric="params")
    check_totals(report, graph, result)
    lost = [layer for layer in report.layers if layer.params[1] < layer.params[0]]
    assert lost
    assert all(layer.groups for layer in lost)
    assert all(group.after < group.before for layer in report.layers for group in layer.groups)


def test_a_layer_says_what_it_lost() -> None:
    graph = network(CHAIN)
    result, report = pruned(graph, ratio=0.4, criterion="l2", normalize="none")
    check_totals(report, graph, result)
    first, last = report.groups
    one, two = first.after, last.after
    layers = {layer.name: layer for layer in report.layers}
    assert list(layers) == ["a", "n", "d", "c", "z", "y"]
    assert layers["a"] == LayerChange(
        "a", "Conv", (3, 3), (8, one), (8 * 27, one * 27), (64 * 8 * 27, 64 * one * 27), (first,)
    )
    assert layers["n"] == LayerChange("n", "BatchNormalization", (8, one), (8, one), (32, 4 * one), (0, 0), (first,))
    assert layers["d"].inputs == layers["d"].outputs == (8, one)
    assert (layers["c"].inputs, layers["c"].outputs) == ((8, one), (6, two))
    assert set(layers["c"].groups) == {first, last}
    assert layers["z"].outputs == layers["y"].outputs == (4, 4)
    assert layers["y"] == LayerChange("y", "Add", (4, 4), (4, 4), (4, 4), (0, 0))
    groups, keep = report.selection
    scores = unit_scores(groups, criterion("l2"))
    for change, group in zip(report.groups, groups, strict=True):
        block = group.blocks[0]
        assert change.importance == pytest.approx(scores[block][~keep[block]].sum() / scores[block].sum())


def test_a_shared_constant_counts_once() -> None:
    graph = network(
        "(float[2,6] x, float[6,6] w, float[6,9] u, float[9,6] d) => (float[2,6] y)"
        " { a = MatMul(x, w) b = MatMul(a, u) c = MatMul(b, d) e = MatMul(c, w) y = Relu(e) }"
    )
    result, report = pruned(graph, ratio=0.3)
    check_totals(report, graph, result)
    assert [layer.params for layer in report.layers if layer.name in ("a", "e")] == [(36, 36), (0, 0)]
    assert [layer.inputs for layer in report.layers if layer.name in ("a", "e")] == [(6, 6), (6, 6)]


def test_importance_of_stages_multiplies_and_needs_scores_of_one_sign() -> None:
    graph = network(CHAIN)
    result, report = pruned(graph, ratio=0.5, steps=3)
    check_totals(report, graph, result)
    for index, change in enumerate(report.groups):
        kept = 1.0
        for stage in report.stages:
            block = stage.groups[index].blocks[0]
            kept *= stage.scores[block][stage.keep[block]].sum() / stage.scores[block].sum()
        assert change.importance == pytest.approx(1 - kept)
        assert change.after == report.stages[-1].keep[report.stages[-1].groups[index].blocks[0]].sum()
    data = {"x": np.random.default_rng(0).standard_normal((8, 3, 8, 8), np.float32), "labels": np.arange(8) % 4}
    _, report = pruned(graph, ratio=0.5, criterion="grasp", calibration=data)
    assert None in [change.importance for change in report.groups]


@pytest.mark.parametrize("name", ["a", "d", "c", "z"])
def test_the_error_is_that_of_the_layer_in_the_mended_network(name: str) -> None:
    """Measured anew: the mended network's outputs, and those with the layer's weights put back, against the source."""
    graph = network(CHAIN)
    samples = replace(noise_samples(graph, 64, seed=5), noise=False)
    result, report = pruned(graph, ratio=0.5, calibration=samples, mend="layers")
    stage = report.stages[0]
    layer = next(layer for layer in report.layers if layer.name == name)
    assert layer.error is not None
    back = result.copy()
    node, old = (next(n for n in g.nodes if n.outputs[0].name == name) for g in (back, stage.pruned))
    for mine, theirs in zip(node.inputs[1:], old.inputs[1:], strict=True):
        assert mine is not None and theirs is not None
        mine.data = theirs.data
    kept = None if name == "z" else kept_channels(stage.groups, stage.keep, name)
    # z's bias is in the Add after it, and y alone is what the regression sees; a is followed by normalization.
    for candidate, error in zip((back, result), layer.error, strict=True):
        wanted, found = np.concatenate([at(graph, name, f) for f in samples]), []
        found = np.concatenate([at(candidate, name, f) for f in samples])
        wanted = wanted if kept is None else wanted[:, kept]
        if name == "z" and candidate is result:
            bias = [next(v for v in g.constants() if v.name == "hb").numpy() for g in (result, graph)]
            found = found + (bias[0] - bias[1])
        if name == "a":
            axes = (0, 2, 3)
            wanted, found = (v - v.mean(axes, keepdims=True) for v in (wanted, found))
        measured = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
        assert error == pytest.approx(measured, rel=1e-3, abs=1e-5)
    assert layer.error[1] <= layer.error[0] + 1e-6


def kept_channels(groups, keep: np.ndarray, name: str) -> np.ndarray:  # type: ignore[no-untyped-def]
    labels = groups.layouts[groups.graph.value(name)][1]
    return np.append(keep, True)[labels.ravel()]


def at(graph: Graph, name: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """An inner value of a network."""
    copy = graph.copy()
    copy.outputs = [copy.value(name)]
    return execute(copy, feeds)[name].astype(np.float64)


def test_a_group_that_lost_nothing_lost_no_importance() -> None:
    _, report = pruned(network(CHAIN), ratio=0.2, only=("w1",))
    assert [layer.groups for layer in report.layers if layer.name == "z"] == [()]
    assert report.groups[0].importance
    _, report = pruned(network(CHAIN), ratio=0.2, shares=("w2[0]=0",))
    assert report.groups[1] == GroupChange("w2[0]", 6, 6, 0.0)
