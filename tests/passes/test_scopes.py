"""Layers with a share of their own, caps and spared ends, on detectors; the groups are those derived by hand."""

from __future__ import annotations

from functools import cache

import pytest

from compiler.frontends import load
from compiler.ir import Graph, SecateurError
from passes import Context, Pipeline, Prune
from passes.structured import PruneReport
from passes.structured.check import pruning_error
from tests.networks import network
from tests.zoo.entry import zoo


@cache
def detector(name: str) -> Graph:
    return Pipeline("simplify")(load(zoo()[f"detection.{name}"].build()))


def pruned(name: str, **options: object) -> PruneReport:
    context = Context()
    result = Prune(metric="params", **options)(detector(name), context)  # type: ignore[arg-type]
    report: PruneReport = context.reports["prune"][0]
    error = pruning_error(*report.selection, result)
    assert error is None or error <= 1e-4
    return report


def lost(report: PruneReport, *starts: str) -> tuple[int, int]:
    """Units removed from the groups whose names start so, and how many there were."""
    found = [g for g in report.groups if g.name.startswith(starts)]
    return sum(g.before - g.after for g in found), sum(g.before for g in found)


BACKBONE, NECK, HEADS = ("stem", "first", "down", "second", "pyramid"), ("up", "back", "top"), ("boxes", "classes")


@pytest.mark.parametrize("criterion", ["l1", "random"])
def test_stages_of_a_detector_lose_shares_of_their_own(criterion: str) -> None:
    scopes = [(BACKBONE, 0.2), (NECK, 0.5), (HEADS, 0.0)]
    shares = tuple(f"{'|'.join(f'{start}*' for start in starts)}={share}" for starts, share in scopes)
    report = pruned("yolo", criterion=criterion, shares=shares, ratio=0.4)
    for starts, share in scopes:
        removed, units = lost(report, *starts)
        assert removed == pytest.approx(share * units, abs=1 + 0.02 * units)


def test_scales_lose_shares_of_their_own_and_the_rest_makes_up_for_the_ratio() -> None:
    report = pruned("ssd", ratio=0.35, shares=("second*=0.25", "third*=0.5"))
    assert lost(report, "second") == (7, 27)
    assert lost(report, "third")[0] in (15, 16)  # of 31; ranked over both of its groups
    assert lost(report, "first")[0] > 0
    assert report.reached == pytest.approx(0.35, abs=0.03)


def test_a_scope_is_of_those_who_make_units_not_of_those_who_read_them() -> None:
    """Lateral convolutions read every stage of the backbone; only the group that they add up to is theirs."""
    report = pruned("fpn", ratio=0.3, shares=("laterals*=0.5", "stem*|stages*=0"))
    assert lost(report, "laterals") == (7, 14)
    assert lost(report, "stem", "stages") == (0, 8 + 12 + 16 + 20)
    assert lost(report, "smooth", "classes", "boxes")[0] > 0


def test_shares_hold_over_stages_of_an_iterative_pruning() -> None:
    report = pruned("fpn", ratio=0.3, steps=3, shares=("laterals*=0.5",))
    assert lost(report, "laterals")[0] == pytest.approx(7, abs=2)


def test_no_group_loses_more_than_the_cap() -> None:
    free, capped = (pruned("yolo", ratio=0.4, scope="global", normalize="none", max_ratio=cap) for cap in (1.0, 0.45))
    assert max(1 - g.after / g.before for g in free.groups) > 0.45
    assert max(1 - g.after / g.before for g in capped.groups) <= 0.45
    assert capped.reached == pytest.approx(0.4, abs=0.03)


SPARED = {
    "fpn": ["boxes.0.weight[0]", "classes.0.weight[0]", "stem.0.weight[0]"],  # shared heads, one for each output
    "ssd": ["first.0.weight[0]", "first.2.weight[0]", "second.2.weight[0]", "third.2.weight[0]"],  # six heads
    "yolo": [  # boxes are decoded by one more layer, but meet the classes in a Concat before it
        *("boxes.0.0.0.weight[0]", "boxes.0.1.weight[0]", "boxes.1.0.0.weight[0]"),
        *("classes.0.0.0.weight[0]", "classes.1.0.0.weight[0]", "stem.0.0.weight[0]"),
    ],
}
"""What the first layer makes, and what the last ones before the outputs read."""


@pytest.mark.parametrize("name", SPARED)
def test_the_ends_are_spared(name: str) -> None:
    report = pruned(name, ratio=0.1, keep_ends=True)
    assert sorted(report.unranked) == SPARED[name]
    assert any(g.after < g.before for g in report.groups)


def test_the_ends_of_a_network_of_two_inputs_and_an_embedding() -> None:
    graph = network(
        """(int64[2,3] x1, float[2,3,6] x, float[30,8] w, float[8,10] a, float[6,10] b, float[10,9] c, float[9,5] d)
        => (float[2,3,5] y) { e = Gather(w, x1) p = MatMul(e, a) q = MatMul(x, b) s = Add(p, q) t = MatMul(s, c)
        y = MatMul(t, d) }"""
    )
    context = Context()
    with pytest.raises(SecateurError, match="E_NOTHING_TO_PRUNE"):  # w makes 8, b makes 10, and d reads 9
        Prune(ratio=0.2, keep_ends=True)(graph, context)


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ("neck*=0.3", "'neck\\*' names no layer that makes units"),
        ("stem*|neck*=0.3", "'neck\\*' names no layer"),
        ("stem*=1.5", "is no share"),
        ("stem*", "is no share"),
        ("stages*=0.3", "all that 'stages\\*=0.3' names belongs to scopes before it"),
    ],
)
def test_wrong_shares(share: str, message: str) -> None:
    before = ("stages*=0.1",) if share.startswith("stages") else ()
    with pytest.raises(SecateurError, match=f"(?s)E_OPTION_VALUE.*{message}"):
        pruned("fpn", ratio=0.3, shares=(*before, share))
