"""The page of a pruning: whole, escaped, and the same table as in the terminal."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

import compiler.driver
from compiler.driver import transform
from compiler.ir import Graph, SecateurError
from compiler.report import layer_table, prune_page
from passes import Context, Prune
from passes.structured import PruneReport
from tests.networks import network, network_proto
from tests.passes.test_mending import CHAIN

VOID = {"meta"}


class Reader(HTMLParser):
    """The tables of a page, as rows of cells; and that every tag is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if any(tag in self.open for tag in ("td", "th")):
            self.tables[-1][-1][-1] += data


def report_of(graph: Graph, **options: object) -> PruneReport:
    context = Context()
    Prune(**options)(graph, context)  # type: ignore[arg-type]
    return context.reports["prune"][0]


@pytest.mark.parametrize("options", [{}, {"criterion": "obspa", "calibration": "none"}])
def test_the_page_holds_the_table(options: dict[str, str]) -> None:
    report = report_of(network(CHAIN), **options)
    page = Reader(prune_page("a", [report]))
    columns, rows, total = layer_table(report)
    assert ("output error" in [c.title for c in columns]) == bool(options)
    assert len(rows) == len(report.layers) == 6
    assert page.tables[1] == [[c.title for c in columns], *(list(row.cells) for row in (*rows, total))]
    assert page.addresses == []


def test_names_are_escaped() -> None:
    graph = network(CHAIN)
    evil = '<script>alert("1")</script> & </td>'
    graph.nodes[0].name = evil
    graph.value("w1").name = evil + "w"
    report = report_of(graph)
    text = prune_page(evil, [report], [evil])
    cells = Reader(text).tables[1]
    assert cells[1][0] == evil
    assert any((evil + "w[0]") in cell for cell in cells[1])
    assert "<script>" not in text


def test_both_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = network_proto(CHAIN)
    out, page = tmp_path / "o.onnx", tmp_path / "o.html"
    passes = (Prune(ratio=0.5),)
    for wrong, code in (
        (out, "the report would replace the model"),
        (tmp_path / "no" / "such.html", "E_OUTPUT"),
        (tmp_path, "E_OUTPUT"),
    ):
        with pytest.raises(SecateurError, match=code):
            transform(source, out, passes, report=wrong)

    def fail(*arguments: object, **options: object) -> None:
        raise SecateurError("E_OUTPUT", "the disk is full")

    for step in ("export", "prune_page"):
        with monkeypatch.context() as patched:
            patched.setattr(compiler.driver, step, fail)
            with pytest.raises(SecateurError, match="the disk is full"):
                transform(source, out, passes, report=page)
    assert list(tmp_path.iterdir()) == []
    transform(source, out, passes, report=page)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.html", "o.onnx"]
    with pytest.raises(SecateurError, match="E_OUTPUT_EXISTS"):
        transform(source, tmp_path / "other.onnx", passes, report=page)
    assert Reader(page.read_text(encoding="utf-8")).tables[1][1][:2] == ["a", "Conv"]
