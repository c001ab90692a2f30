"""Pruning: ratios are reached, options are obeyed, and what remains is exact and runs."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from compiler.frontends import load
from compiler.ir import SecateurError, graph_cost
from passes import Context, Pipeline, Prune, dependency_groups, parse_passes
from passes.importance import ParameterCriterion, criterion, register_criterion, unit_scores
from passes.structured.check import pruning_error
from tests.models import SMALL_LIGHT_MODELS, light_model
from tests.networks import network

CHAIN = """(float[1,3,8,8] x, float[16,3,3,3] w1, float[16] s, float[16] b, float[16] m, float[16] v,
    float[24,16,1,1] w2,
    float[5,24] h) => (float[1,5] y) { a = Conv(x, w1) n = BatchNormalization(a, s, b, m, v) r = Relu(n) z = Conv(r, w2)
    p = GlobalAveragePool(z) f = Flatten(p) y = Gemm<transB=1>(f, h) }"""


def pruned(graph, **options):
    context = Context()
    result = Prune(**options)(graph, context)
    return result, context.reports["prune"][0]


@pytest.mark.parametrize("name", SMALL_LIGHT_MODELS)
def test_half_of_the_macs_of_light_networks_ranked_globally(name: str) -> None:
    graph = Pipeline("simplify")(load(light_model(name)))
    result, report = pruned(graph, ratio=0.5, scope="global")
    assert abs(report.reached - 0.5) <= 0.01
    assert 1 - graph_cost(result).macs / graph_cost(graph).macs == pytest.approx(report.reached)
    groups, keep = report.selection
    error = pruning_error(groups, keep, result)
    assert error is not None and error <= 1e-5


@pytest.mark.parametrize("metric", ["macs", "params"])
@pytest.mark.parametrize("name", ["l1", "l2", "bn_scale", "random"])
def test_every_criterion_reaches_either_metric(name: str, metric: str) -> None:
    graph = Pipeline("simplify")(load(light_model("resnet50")))
    _, report = pruned(graph, ratio=0.3, criterion=name, metric=metric)
    assert report.metric == metric
    assert abs(report.reached - 0.3) <= 0.01


def test_scores_are_the_norms_of_all_that_a_unit_owns() -> None:
    graph = network(CHAIN)
    groups = dependency_groups(graph)
    first = next(g for g in groups if g.name == "w1[0]")
    w1, w2, gamma = (np.abs(graph.value(n).numpy()) for n in ("w1", "w2", "s"))
    order = groups.layouts[graph.value("w1")][0].ravel()
    expected = w1.sum(axis=(1, 2, 3)) + w2.sum(axis=(0, 2, 3))
    np.testing.assert_allclose(unit_scores(groups, criterion("l1"))[order], expected, rtol=1e-6)
    squares = np.sqrt((w1**2).sum(axis=(1, 2, 3)) + (w2**2).sum(axis=(0, 2, 3)))
    np.testing.assert_allclose(unit_scores(groups, criterion("l2"))[order], squares, rtol=1e-6)
    np.testing.assert_allclose(unit_scores(groups, criterion("bn_scale"))[order], gamma, rtol=1e-6)
    assert set(first.blocks[0]) == set(order)
    noise = unit_scores(groups, criterion("random", seed=3))
    assert np.array_equal(noise, unit_scores(groups, criterion("random", seed=3)))
    assert not np.array_equal(noise, unit_scores(groups, criterion("random", seed=4)))


def test_scores_do_not_depend_on_the_size_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = dependency_groups(network(CHAIN))
    whole = unit_scores(groups, criterion("l1"))
    monkeypatch.setattr(sys.modules["passes.importance.criterion"], "_BLOCK", 50)
    np.testing.assert_allclose(unit_scores(groups, criterion("l1")), whole, rtol=1e-6)


def test_the_least_important_go() -> None:
    graph = network(CHAIN)
    _, report = pruned(graph, ratio=0.3, only=("w1*",))
    groups, keep = report.selection
    scores = unit_scores(groups, criterion("l1"))
    block = next(g for g in groups if g.name == "w1[0]").blocks[0]
    assert scores[block][keep[block]].min() >= scores[block][~keep[block]].max()


def test_bn_scale_leaves_groups_without_batchnorm_whole() -> None:
    _, report = pruned(network(CHAIN), ratio=0.3, criterion="bn_scale")
    assert report.unranked == ("w2[0]",)


@pytest.mark.parametrize("round_to", [4, 8])
def test_widths_are_rounded(round_to: int) -> None:
    _, report = pruned(network(CHAIN), ratio=0.4, round_to=round_to)
    assert all(g.after % round_to == 0 for g in report.groups if g.after != g.before)


def test_no_group_becomes_narrower_than_the_minimum() -> None:
    _, report = pruned(network(CHAIN), ratio=0.4, min_channels=7)
    assert min(g.after for g in report.groups) >= 7


@pytest.mark.parametrize(("option", "changed"), [({"ignore": ("w1",)}, "w2[0]"), ({"only": ("w1*",)}, "w1[0]")])
def test_patterns_spare_and_select(option, changed: str) -> None:
    _, report = pruned(network(CHAIN), ratio=0.2, **option)
    assert [g.name for g in report.groups if g.after < g.before] == [changed]


def test_constants_of_the_source_are_untouched() -> None:
    graph = network(CHAIN)
    before = {c.name: c.numpy().copy() for c in graph.constants()}
    text = str(graph)
    pruned(graph, ratio=0.5)
    assert str(graph) == text
    assert all(np.array_equal(before[c.name], c.numpy()) for c in graph.constants())


@pytest.mark.parametrize("ratio", [0, 1, -0.5, 1.5, math.nan, math.inf])
def test_ratio_outside_its_range(ratio: float) -> None:
    with pytest.raises(SecateurError, match="the ratio must be more than 0 and less than 1"):
        Prune(ratio=ratio)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.99, "min_channels": 8}, "E_RATIO_UNREACHABLE.*cannot be reached: at most 0"),
        ({"metric": "mac"}, "E_OPTION_VALUE.*did you mean 'macs'"),
        ({"scope": "everywhere"}, "E_OPTION_VALUE"),
        ({"normalize": "gauss"}, "E_OPTION_VALUE"),
        ({"round_to": 0}, "round_to must be at least 1"),
        ({"criterion": "magic"}, "E_CRITERION.*known criteria: .*bn_scale.*, l1, l2, .*random"),
        ({"ignore": ("nothing*",)}, "E_PATTERN.*matches no group"),
    ],
)
def test_wrong_options(options, message: str) -> None:
    with pytest.raises(SecateurError, match="(?s)" + message):
        pruned(network(CHAIN), **options)


def test_textual_form_is_the_pass() -> None:
    text = "simplify,prune(ratio=0.25,metric=params,ignore=[head*,w9])"
    _, made = parse_passes(text)
    assert made == Prune(ratio=0.25, metric="params", ignore=("head*", "w9"))
    assert str(Pipeline(text)) == text


def test_a_third_party_criterion_takes_part(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["passes.importance.criterion"]
    monkeypatch.setattr(module, "_REGISTRY", dict(module._REGISTRY))  # other tests list the known criteria

    @register_criterion("test_first")
    class First(ParameterCriterion):
        """Channels in their order."""

        def selects(self, constant, uses):
            return constant.name == "w1"

        def score(self, data, constant, rows):
            ranks = np.arange(constant.data.shape[0], dtype=float)[rows].reshape(-1, 1, 1, 1)
            return np.broadcast_to(ranks, data.shape)

    graph = network(CHAIN)
    result, _ = pruned(graph, ratio=0.3, criterion="test_first", normalize="none", only=("w1",))
    kept = result.value("w1").numpy()
    np.testing.assert_array_equal(kept, graph.value("w1").numpy()[-len(kept) :])
