"""`python -m tests.zoo.coverage` writes the section "Zoo" of docs/coverage.md: what pruning finds in each network."""

from __future__ import annotations

import math

from compiler.frontends import load
from compiler.ir import SecateurError, Value
from compiler.ir.cost import is_parameter
from passes import Groups, Pipeline, certify, dependency_groups
from tests.pages import COVERAGE
from tests.zoo.entry import Entry, zoo

_INTRODUCTION = """\
Written by `python -m tests.zoo.coverage`: for each small architecture of `tests/zoo`, the dependency groups found,
the share of its parameters that lie on an axis of some group, and the permutation certificate: the largest relative
difference of any output after every group was permuted at random.

| family | network | groups | prunable parameters | certificate |
|---|---|---:|---:|---:|
"""


def prunable_share(groups: Groups) -> float:
    """The share of parameters of which some axis belongs to a group."""
    parameters = [c for c in groups.graph.all_constants() if is_parameter(c)]
    total = sum(math.prod(c.static_shape or ()) for c in parameters)
    return sum(_prunable(groups, c) for c in parameters) / max(1, total)


def _prunable(groups: Groups, constant: Value) -> int:
    """How many elements of a constant some group's removal could take."""
    shape = constant.static_shape or ()
    left = 1
    for axis, labels in enumerate(groups.layouts.get(constant) or [None] * len(shape)):
        fixed = shape[axis] if labels is None else int((labels < 0).sum(axis=axis).max())
        left *= fixed
    return math.prod(shape) - left


def row(name: str, entry: Entry) -> str:
    """One line of the table."""
    family, network = name.split(".")
    try:
        graph = Pipeline("simplify")(load(entry.build()))
        groups = dependency_groups(graph)
        share = f"{prunable_share(groups):.1%}"
        cells = [str(len(groups)), share, f"{certify(graph, groups):.1e}"]
    except SecateurError as error:
        cells = ["", "", error.code]
    return f"| {family} | {network} | {' | '.join(cells)} |"


def section() -> str:
    """The table, and why some architectures keep much of their parameters."""
    rows = [row(name, entry) for name, entry in zoo().items()]
    reasons = [f"- **{name}**: {entry.explain}" for name, entry in zoo().items() if entry.explain]
    faults = [
        f"- **{name}**{where}: {fault}"
        for name, entry in zoo().items()
        for where, fault in (
            ("", entry.fault),
            (" with whole heads", entry.heads_fault),
            (" with a symbolic batch", entry.batch_fault),
            (" with symbolic space or sequence", entry.space_fault),
        )
        if fault
    ]
    text = _INTRODUCTION + "\n".join(rows) + "\n"
    if reasons:
        text += "\n### More than a fifth is fixed\n\n" + "\n".join(reasons) + "\n"
    closed = [f"- **{name}**: {entry.closed}" for name, entry in zoo().items() if entry.closed]
    if closed:
        text += "\n### Only the batch can be symbolic\n\n" + "\n".join(closed) + "\n"
    if faults:
        text += "\n### Known faults\n\n" + "\n".join(faults) + "\n"
    return text


def main() -> None:
    """Write the section."""
    COVERAGE.write("Zoo", section())


if __name__ == "__main__":
    main()
