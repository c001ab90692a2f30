"""The tables of docs/accuracy.md, from facts made up here."""

from __future__ import annotations

import pytest

from passes.importance import available_criteria
from tests.accuracy.page import Findings, percent, summary, table
from tests.accuracy.study import possible
from tests.runs import Facts, Task

LOST = {"l1": 0.3, "OBSPA, data": 0.03, "OBSPA, no data": 0.12}


def findings(seeds: int) -> Findings:
    found: dict[Task, Facts] = {}
    for seed in range(seeds):
        whole = 0.9 + 0.01 * seed
        found[Task("tests.accuracy.training", f"net/{seed}")] = {"accuracy": whole, "params": 1000, "macs": 2_000_000}
        for name, lost in LOST.items():
            facts = {"accuracy": whole - lost, "seconds": 1.5, "reached": 2.0}
            found[Task("tests.accuracy.ours", f"net/{seed}/{name}")] = {"found": {"2": facts}}
            found[Task("tests.accuracy.tuning", f"net/{seed}/{name}/2")] = {"accuracy": whole - lost / 3}
    found[Task("tests.accuracy.peer", "net/0/peer")] = {"error": "ValueError: no"}
    return Findings(found)


def test_means_and_spreads() -> None:
    assert [percent(x) for x in ([], [0.5], [0.5, 0.7])] == ["", "50.0", "60.0 ± 14.1"]


@pytest.mark.parametrize(("seeds", "whole", "spread"), [(1, "90.0", ""), (3, "91.0", " ± 1.0")])
def test_tables_hold_what_was_found(seeds: int, whole: str, spread: str) -> None:
    row = f"| net | {whole}{spread} | 30.0 | 3.0 (0.10) | 12.0 (0.40) | 1.5 |\n"
    assert summary(findings(seeds), ["net", "other"]).endswith("|---:|\n" + row)
    text = table(findings(seeds), "net", [*LOST, "missing"], (1.5, 2))
    assert "1,000 parameters, 2.0 million multiply-accumulates" in text
    after = 100 * (0.9 + 0.005 * (seeds - 1)) - 10
    assert text.splitlines()[-3] == f"| l1 |  | {float(whole) - 30:.1f}{spread} |  | {after:.1f}{spread} | 1.5 |"
    assert "missing" not in text


def test_what_failed_is_listed_once() -> None:
    assert findings(3).errors(["net"], ["l1", "peer"]) == ["- peer on net: ValueError: no\n"]


def test_the_study_takes_every_criterion() -> None:
    pytest.importorskip("torch")
    from tests.accuracy.ours import CRITERIA

    own = {n for n, kind in available_criteria().items() if getattr(kind, "__module__", "").startswith("passes.")}
    assert set(CRITERIA) == own


def test_what_did_not_get_as_small_as_it_should_is_no_result_but_told() -> None:
    task = Task("tests.accuracy.peer", "net/0/peer")
    found = {
        Task("tests.accuracy.training", "net/0"): {"accuracy": 0.9, "params": 1000, "macs": 2_000_000},
        task: {"found": {k: {"accuracy": 0.9, "seconds": 1.0, "reached": 1.25} for k in ("1.25", "2", "3")}},
        Task("tests.accuracy.tuning", "net/0/peer/2"): {"accuracy": 0.9},
        Task("tests.accuracy.tuning", "net/0/peer/1.25"): {"accuracy": 0.8},
    }
    text = table(Findings(found), "net", ["peer"], (1.25, 2))
    assert text.splitlines()[-1] == "| peer | 90.0 |  | 80.0 |  |  |"
    told = "- peer on net: at most 1.25 × smaller, where 2 ×, 3 × was wanted\n"
    assert Findings(found).errors(["net"], ["peer"]) == [told]


def test_what_cannot_be_pruned_cannot_be_tuned_either() -> None:
    tasks = [Task(f"tests.accuracy.{m}", n) for m, n in (("ours", "net/0/a"), ("ours", "net/0/b"))]
    tuning = [Task("tests.accuracy.tuning", f"net/0/{name}/2") for name in "ab"]
    found: dict[Task, Facts] = {tasks[0]: {"error": "no"}, tasks[1]: {"found": {}}}
    assert possible([tasks, tuning], found) == [*tasks, tuning[1]]
