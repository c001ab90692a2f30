"""The tables of docs/performance.md, from facts made up here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.bench import QUICK, calmer, cases, lines, main, unrest
from tests.benchmarks.case import DENSE, Case
from tests.benchmarks.findings import GOALS, Findings, Goal, geometric_mean
from tests.benchmarks.models import NETWORKS
from tests.benchmarks.page import dense, goals, shares, sizes, sparse, table, write_deepsparse, write_page
from tests.benchmarks.variants import VARIANTS
from tests.pages import PERFORMANCE
from tests.runs import Facts


def facts(ours: float, ort: float, openvino: float, own_dense: float | None = None) -> Facts:
    """Milliseconds with one thread; everything takes half as long with two."""

    def timing(ms: float, threads: int) -> Facts:
        return {"median": ms / 1e3 / threads, "least": ms / 1e3 / threads, "spread": ms / 1000, "calls": 30}

    times = {"ours": ours, "onnxruntime": ort, "openvino": openvino, "ours, dense": own_dense}
    runs = {
        f"threads {n}": {"peak": 100.0} | {side: timing(ms, n) for side, ms in times.items() if ms is not None}
        for n in (1, 2)
    }
    sizes = {"compile": 2.5, "difference": 3e-7, "artifact_bytes": 2_000_000, "dense_bytes": 10_000_000}
    sizes |= {"arena_bytes": 1 << 20, "peer_arena_bytes": 2 << 20, "nonzero_macs": 50_000_000}
    return sizes | runs | {"onnxruntime": "1.2", "openvino": "2026", "shares": {"Conv 1x1": 0.9, "Gemm": 0.001}}


@pytest.fixture
def findings() -> Findings:
    found = {Case(network, DENSE): facts(10, 10 * (i + 1), 5) for i, network in enumerate(NETWORKS)}
    found[Case("ResNet-18", "90")] = facts(2, 30, 5, own_dense=10)
    del found[Case("ViT-S", DENSE)]
    return Findings.of(found)


def row(text: str, name: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in lines[0].split("|")[2:-1]]


def test_times_and_ratios(findings: Findings) -> None:
    one, two = dense(findings, 1), dense(findings, 2)
    assert row(one, "ResNet-18") == ["10.00", "30.00", "5.00", "3.00", "0.50", "10", "10 %", "1 % / 3 % / 0 %"]
    assert row(two, "ResNet-18") == ["5.00", "15.00", "2.50", "3.00", "0.50", "20", "10 %", "1 % / 3 % / 0 %"]
    mean = f"{(1 * 2 * 3 * 4) ** 0.25:.2f}"
    assert row(one, "geometric mean, CNNs") == ["", "", "", mean, "0.50", "", "", ""]
    assert "ViT-S" not in one and "transformers" not in one  # nothing is said of what was not measured


def test_a_mean_needs_its_whole_family(findings: Findings) -> None:
    over_ort, *_, own, rates = sparse(findings)
    assert row(over_ort, "ResNet-18") == ["", "", "", "15.00", "", "", "", ""]
    assert row(own, "ResNet-18")[3] == "5.00" and row(rates, "ResNet-18")[3] == "50 (50 %)"
    assert "geometric mean" not in over_ort


def test_goals_name_what_is_missing(findings: Findings) -> None:
    text = goals(findings)
    assert row(text, "dense CNNs over ONNX Runtime") == ["at least 1", "2.21", "", "yes"]
    assert row(text, "dense transformers over ONNX Runtime, the least")[3] == "missing: ViT-S dense"
    assert row(text, "90 % sparse CNNs over dense ONNX Runtime")[3].endswith("MobileNetV2 90 %, ResNet-50 90 %")
    small = Goal("size", 0.1, (("ResNet-18", "90"),), Findings.size, max, least=False)
    assert row(goals(findings, [small]), "size") == ["at most 0.1", "0.2", "", "no"]
    assert len({goal.text for goal in GOALS}) == len(GOALS)
    findings.found["ResNet-18", "90"]["threads 1"]["onnxruntime"]["least"] *= 2
    fast = Goal("fast", 20, (("ResNet-18", "90"),), lambda f, cell: f.gain(cell, "onnxruntime"), min)
    assert row(goals(findings, [fast]), "fast") == ["at least 20", "15", "30", "no"]


def test_sizes_and_shares(findings: Findings) -> None:
    assert row(sizes(findings), "ResNet-18") == ["dense", "2.5", "2.0", "20 %", "1.00", "2.00", "3.0e-07"]
    assert row(shares(findings), "ResNet-18") == ["dense", "Conv 1x1 90 %"]


def test_the_page_keeps_what_others_wrote(findings: Findings, tmp_path: Path) -> None:
    page = replace(PERFORMANCE, path=tmp_path / "performance.md")
    page.write("What holds it back", "By hand.\n")
    write_page(findings, "a machine", 30, page)
    text = page.path.read_text()
    assert text.endswith("\n## What holds it back\n\nBy hand.\n") and "a machine.\n- Peak: 100 GFLOP/s" in text
    assert "onnxruntime 1.2, openvino 2026" in text and text.count("\n## ") == 7


def test_the_section_on_deepsparse(tmp_path: Path) -> None:
    case = Case("ResNet-18", "90", (1,), peers=("onnxruntime", "deepsparse"))
    found = facts(10, 40, 5)
    found |= {
        "deepsparse": "1.8",
        "threads 1": found["threads 1"] | {"deepsparse": {"median": 0.02, "least": 0.015, "spread": 0.1}},
    }
    failed = Case("BERT-base", "90", (1,), peers=case.peers)
    page = replace(PERFORMANCE, path=tmp_path / "performance.md")
    write_deepsparse(Findings.of({case: found, failed: {"error": "E_PEER: no"}}), page)
    text = page.path.read_text()
    ours, theirs, times = text.split("\n### ")[1:]
    assert [row(part, "ResNet-18")[3] for part in (ours, theirs)] == ["2.00", "2.00"]
    assert row(times, "ResNet-18") == ["10.00 (10.00)", "20.00 (15.00)", "40.00 (40.00)"]
    assert "missing: MobileNetV1 90 %" in text and text.endswith("What did not run:\n\n- BERT-base 90: E_PEER: no\n")


def test_a_case_is_told_in_few_lines() -> None:
    case = Case("ResNet-18", "90")
    text = "\n".join(lines(case, facts(2, 30, 5, own_dense=10)))
    assert "  1 thread      2.00 ms ±0 %, ours, dense 10.00 ms ±1 % (5.00), onnxruntime 30.00 ms ±3 % (15.00)" in text
    assert "50 GFLOP/s, 50 % of peak" in text and "Gemm" not in text
    assert lines(case, {"error": "E_NO_PEER: no"}) == ["ResNet-18, 90 %", "  error: E_NO_PEER: no"]


def test_cases_survive_their_names() -> None:
    assert all(Case.parse(case.name) == case for case in [*QUICK, *cases(NETWORKS, VARIANTS, 0.5)])
    assert Case.rounds >= 30


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--models", "ResNet-18,LeNet"])
    assert "'LeNet' is none of MobileNetV1" in capsys.readouterr().err


def test_tables_and_means() -> None:
    assert table(["a", "b"], [["x", "1"]]) == "| a | b |\n|---|---:|\n| x | 1 |\n"
    assert geometric_mean([1, 4]) == pytest.approx(2)


def test_of_two_runs_the_calmer_counts_for_each_number_of_threads() -> None:
    first, second = facts(10, 20, 5), facts(11, 300, 5)
    second["threads 2"]["ours"]["spread"] = second["threads 2"]["onnxruntime"]["spread"] = 0.001
    second["compile"] = 1.0
    assert unrest(first) == 0.02 and unrest(second) == 0.3 and unrest(second, 2) == 0.005
    kept = calmer(first, second)
    assert kept["threads 1"] == first["threads 1"] and kept["threads 2"] == second["threads 2"]
    assert kept["compile"] == 1.0
