"""What the subcommands share: options, progress, tables, JSON."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from compiler.errors import SecateurError, SecateurWarning
from compiler.frontends import parse_shape
from compiler.report import layer_table
from passes import Context
from passes.structured import PruneReport

if TYPE_CHECKING:
    from backends.rpc import Device

Model = Annotated[Path, typer.Argument(help="An ONNX file.", show_default=False)]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=1x3x224x224", help="Bind an input's symbolic dimensions; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, for machines.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace the output if it exists.")]
Recipe = Annotated[
    Path | None, typer.Option("--recipe", help="A file with the passes in their textual form, one or more a line.")
]
PrintAfter = Annotated[
    list[str] | None,
    typer.Option("--print-after", metavar="PASS", help="Print the graph after this pass (* for all) on stderr."),
]
Criterion = Annotated[
    str, typer.Option(help="What tells how important a channel or a weight is; `secateur criteria` lists them.")
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Sample inputs: an .npz, a folder of NAME.npy files, none (noise as the first BatchNormalization saw "
        "it), or noise (of mean 0 and variance 1)."
    ),
]
Samples = Annotated[int, typer.Option(help="Use at most so many samples.")]
Labels = Annotated[str, typer.Option(help="The name of the labels in the calibration data.")]
Loss = Annotated[str, typer.Option(help="For criteria over gradients: cross_entropy or mse.")]
LossOutput = Annotated[str | None, typer.Option(help="The output that the loss reads, of several.")]
Seed = Annotated[int, typer.Option(help="For what is drawn at random.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not verify the result.")]
Timings = Annotated[bool, typer.Option("--timings", help="Print the seconds that each pass took.")]

Rpc = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="Use a device behind TVM's RPC tracker at this address.")
]
Key = Annotated[str | None, typer.Option(help="The key that the tracker has the device under.")]
RpcTimeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds to wait for the tracker, a free device, and each of its answers.")
]


def device(rpc: str | None, key: str | None, timeout: float) -> Device | None:
    """The device that --rpc and --key name; E_OPTION_VALUE for one without the other."""
    if rpc is None and key is None:
        return None
    if rpc is None or key is None:
        raise SecateurError(
            "E_OPTION_VALUE", "a device needs --rpc and --key", hint="--rpc HOST:PORT --key KEY, as its server has them"
        )
    from backends.rpc import Device

    return Device.parse(rpc, key, timeout)


class Screen:
    """Where a command writes: tables on stdout for people, one JSON object for machines, nothing when quiet."""

    def __init__(self, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet
        # Names are longer than an 80-column default when the output is not a terminal.
        self.console = Console(
            quiet=as_json or quiet, highlight=False, markup=False, width=None if sys.stdout.isatty() else 200
        )

    def print(self, *items: Any) -> None:
        """Show text or tables to a person."""
        self.console.print(*items, soft_wrap=all(isinstance(item, str) for item in items))

    def finish(self, result: dict[str, Any]) -> None:
        """Give the machine-readable result."""
        if self.as_json:
            print(json.dumps(result, indent=2, default=_plain))

    def _show_warnings(self, console: Console) -> None:
        """Print our warnings as one line each on stderr, until the filters are put back."""
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
            if not issubclass(category, SecateurWarning):
                usual(message, category, *place, **options)
            elif not self.quiet:
                console.print(f"secateur: warning: {message}")

        warnings.simplefilter("always", SecateurWarning)
        warnings.showwarning = show

    @contextmanager
    def context(self, print_after: list[str] | None = None) -> Iterator[Context]:
        """A Context whose progress shows as a bar on stderr."""
        hidden = self.as_json or self.quiet or not sys.stderr.isatty()
        columns = (
            *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn()),
            *(MofNCompleteColumn(), TimeElapsedColumn()),
        )
        console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        with (
            Progress(*columns, console=console, transient=True, disable=hidden) as bar,
            warnings.catch_warnings(),
        ):
            self._show_warnings(console)
            task = bar.add_task("loading", total=None)

            def show(label: str, done: int, total: int) -> None:
                new = bar.tasks[0].description != label  # short stages show too
                bar.update(task, description=label, completed=done, total=total, refresh=new)

            yield Context(progress=show, print_after=tuple(print_after or ()))


def _plain(item: Any) -> Any:
    if hasattr(item, "item"):
        return item.item()
    return str(item)


def bind(shapes: list[str] | None) -> dict[str, tuple[int, ...]]:
    """The --shape options as a mapping."""
    return dict(parse_shape(text) for text in shapes or [])


def table(title: str, *columns: str, rows: list[list[str]], words: bool = False) -> Group:
    """A plain table under its title; the first column is left-aligned, the others right, or left too if of words."""
    made = Table(box=None, pad_edge=False, header_style="dim", show_header=any(columns))
    for i, column in enumerate(columns):
        made.add_column(Text(column), justify="left" if i == 0 or words else "right", overflow="fold")
    for row in rows:
        made.add_row(*[Text(cell) for cell in row])
    return Group(Text(title, style="bold"), made)


_FIRST_TO_GO = ("op", "lost units of", "output error")
"""Columns of the layers' table that a narrow terminal does without."""
_LEAST_TEXT = 16


def layers(report: PruneReport, width: int) -> Group:
    """The table of what a pruning took from each layer, in so many characters a line."""
    columns, rows, total = layer_table(report)
    cells = [[Text(cell) for cell in row.cells] for row in (*rows, total)]
    needed = {
        c.title: 2 + (_LEAST_TEXT if c.text else max(len(c.title), *(row[i].cell_len for row in cells)))
        for i, c in enumerate(columns)
    }
    for title in (t for t in _FIRST_TO_GO if t in needed):
        if sum(needed.values()) > width:
            del needed[title]
    shown = [i for i, c in enumerate(columns) if c.title in needed]
    made = Table(box=None, pad_edge=False, header_style="dim")
    for column in (columns[i] for i in shown):
        justify: Literal["left", "right"] = "left" if column.text else "right"
        made.add_column(Text(column.title), justify=justify, overflow="fold", no_wrap=not column.text)
    for row in cells:
        made.add_row(*(row[i] for i in shown))
    return Group(Text("Layers", style="bold"), made)
