"""The table of layers that a pruning reports, as cells: the terminal and the page show the same."""

from __future__ import annotations

from dataclasses import dataclass

from compiler.report.numbers import count
from passes.structured import LayerChange, PruneReport
from passes.structured.layers import Change


@dataclass(frozen=True)
class Column:
    """Its title, what it means, and the cost of which its rows have a share that remains (empty for others).

    text: words, aligned to the left; numbers are aligned to the right.
    """

    title: str
    meaning: str
    cost: str = ""
    text: bool = False


@dataclass(frozen=True)
class Row:
    """One cell a column, of one or more lines.

    remains: for each column with a cost, the share of it that remains; None of nothing.
    """

    cells: tuple[str, ...]
    remains: dict[str, float | None]


_COLUMNS = (
    Column("layer", "a node with parameters or multiply-accumulates", text=True),
    Column("op", "its operator", text=True),
    Column("in", "channels of its data"),
    Column("out", "channels of its result"),
    Column("parameters", "each constant once, at the first layer that reads it", "params"),
    Column("MACs", "multiply-accumulates; symbolic extents count as 1", "macs"),
)
_ERROR = Column(
    "output error", "how far its outputs are from the original's, relative, before and after it was solved anew"
)
_GROUPS = Column(
    "lost units of", "dependency groups, and the share of each group's importance that went with its units", text=True
)


def layer_table(report: PruneReport) -> tuple[list[Column], list[Row], Row]:
    """The columns, a row for each layer, and the totals."""
    mended = any(layer.error is not None for layer in report.layers)
    columns = [*_COLUMNS, *([_ERROR] if mended else []), _GROUPS]
    rows = [Row(_cells(layer, mended), _remains(layer.params, layer.macs)) for layer in report.layers]
    params, macs = (report.before.params, report.after.params), (report.before.macs, report.after.macs)
    cells = ("total", "", "", "", _change(params, count), _change(macs, count), *([""] if mended else []), "")
    return columns, rows, Row(cells, _remains(params, macs))


def _cells(layer: LayerChange, mended: bool) -> tuple[str, ...]:
    error = "" if layer.error is None else " → ".join(f"{e:.2g}" for e in layer.error)
    return (
        layer.name,
        layer.op,
        _change(layer.inputs),
        _change(layer.outputs),
        _change(layer.params, count),
        _change(layer.macs, count),
        *([error] if mended else []),
        "\n".join(g.name + (f" {g.importance:.1%}" if g.importance is not None else "") for g in layer.groups),
    )


def _change(change: Change | None, text=str) -> str:  # type: ignore[no-untyped-def]
    if change is None:
        return "–"
    before, after = change
    return text(before) if before == after else f"{text(before)} → {text(after)}"


def _remains(params: Change, macs: Change) -> dict[str, float | None]:
    return {name: after / before if before else None for name, (before, after) in (("params", params), ("macs", macs))}
