"""The report of prunings as one HTML page that needs nothing else: no script, no network, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from compiler.report.layers import Column, Row, layer_table
from compiler.report.numbers import count
from passes.structured import PruneReport

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --faint: #666; --paper: #fff; --line: #ddd; --bar: #9ec5e8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --faint: #999; --paper: #16181b; --line: #3a3d42; --bar: #2f5d87; }
}
body { color: var(--ink); background: var(--paper); font: 15px/1.45 system-ui, sans-serif; margin: 2rem; }
table { border-collapse: collapse; margin: 1rem 0 2rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .7rem; text-align: right; vertical-align: top; }
.text { text-align: left; overflow-wrap: anywhere; white-space: pre-line; }
thead th { color: var(--faint); font-weight: 600; position: sticky; top: 0; background: var(--paper); }
tfoot td { font-weight: 600; }
.bar { display: block; height: 4px; margin-top: 2px; border: 1px solid var(--line); border-radius: 2px; }
.bar i { display: block; height: 100%; background: var(--bar); }
.note { color: var(--faint); }
"""


def prune_page(title: str, reports: Sequence[PruneReport], notes: Iterable[str] = ()) -> str:
    """A page of each pruning's cost and layers. notes: paragraphs above them, such as the checks that were made."""
    body = [f"<h1>{escape(title)}</h1>", *(f'<p class="note">{escape(note)}</p>' for note in notes)]
    for report in reports:
        body += [_summary(report), _layers(report)]
        if report.unranked:
            body.append(f'<p class="note">Left whole: {escape(", ".join(report.unranked))}.</p>')
        if report.mended is not None and report.mended.left:
            left = "; ".join(f"{name}, because {why}" for name, why in report.mended.left.items())
            body.append(f'<p class="note">Not solved anew: {escape(left)}.</p>')
    return "\n".join(
        (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            *body,
            "</body>\n</html>\n",
        )
    )


def _summary(report: PruneReport) -> str:
    rows = [
        ("multiply-accumulates", report.before.macs, report.after.macs),
        ("parameters", report.before.params, report.after.params),
    ]
    cells = [(name, count(a), count(b), f"{1 - b / max(1, a):.2%}") for name, a, b in rows]
    asked = f"Asked to remove {report.requested:.2%} of {report.metric}, removed {report.reached:.2%}."
    return f"<h2>Pruned</h2>\n<p>{asked}</p>\n" + _table(
        [Column(title, "", text=not title) for title in ("", "before", "after", "removed")], [Row(c, {}) for c in cells]
    )


def _layers(report: PruneReport) -> str:
    columns, rows, total = layer_table(report)
    return "<h2>Layers</h2>\n" + _table(columns, rows, total)


def _table(columns: Sequence[Column], rows: Sequence[Row], total: Row | None = None) -> str:
    heads = "".join(f'<th{_kind(c)} title="{escape(c.meaning)}">{escape(c.title)}</th>' for c in columns)
    body = "\n".join(_row(columns, row) for row in rows)
    foot = "" if total is None else f"\n<tfoot>\n{_row(columns, total)}\n</tfoot>"
    return f"<table>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody>{foot}\n</table>"


def _row(columns: Sequence[Column], row: Row) -> str:
    cells = "".join(
        f"<td{_kind(c)}>{escape(text)}{_bar(c, row)}</td>" for c, text in zip(columns, row.cells, strict=True)
    )
    return f"<tr>{cells}</tr>"


def _kind(column: Column) -> str:
    return ' class="text"' if column.text else ""


def _bar(column: Column, row: Row) -> str:
    """What remains, as a part of what was."""
    share = row.remains.get(column.cost)
    if share is None:
        return ""
    return f'<span class="bar" title="{share:.1%} remains"><i style="width: {min(share, 1.0):.1%}"></i></span>'
