"""Which groups an option is about: patterns of names, scopes with a share of their own, the ends of a network."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

import numpy as np

from compiler.ir import Graph, Node, SecateurError, Value
from passes.coupling.contractions import contractions
from passes.coupling.groups import Group, Groups
from passes.structured.ladder import Ladder


def without_ends(groups: Groups, candidates: list[Group]) -> list[Group]:
    """The groups that neither the first layers make nor the last ones read."""
    ends = {id(node) for node in (*_first_layers(groups.graph), *_last_layers(groups.graph))}
    return [g for g in candidates if not any(id(n) in ends for m in g.members for n in m.nodes)]


def _is_layer(node: Node) -> bool:
    """True for sums over weights, and for tables of rows."""
    table = node.input(0) if node.op == "Gather" else None
    return (table is not None and table.is_constant and table.rank == 2) or next(contractions(node), None) is not None


def _first_layers(graph: Graph) -> Iterator[Node]:
    """Those that an input reaches by way of no other layer."""
    reached = set(graph.inputs)
    for node in graph.nodes:
        if reached.intersection(v for v in node.inputs if v is not None):
            if _is_layer(node):
                yield node
            else:
                reached.update(node.outputs)


def _last_layers(graph: Graph) -> Iterator[Node]:
    """Those from which an output is reached by way of no other layer."""
    reached: set[Value] = set(graph.outputs)
    for node in reversed(graph.nodes):
        if reached.intersection(node.outputs):
            if _is_layer(node):
                yield node
            else:
                reached.update(v for v in node.inputs if v is not None and not v.is_constant)


def fixed_shares(ladders: list[Ladder], shares: tuple[str, ...], stages: int) -> dict[int, int]:
    """For ladders that lose a share of their own, how many steps: the least important of all in one scope."""
    fixed: dict[int, int] = {}
    for text in shares:
        patterns, _, number = text.rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        for pattern in patterns.split("|") if 0 <= share < 1 else ():
            if not any(_any(_makers(ladder.group), pattern) for ladder in ladders):
                raise _no_share(f"{pattern!r} names no layer that makes units to prune")
        named = [i for i, x in enumerate(ladders) if i not in fixed and _in_scope(x.group, patterns.split("|"))]
        if not 0 <= share < 1:
            raise _no_share(f"{text!r} is no share")
        if not named:
            raise _no_share(f"all that {text!r} names belongs to scopes before it")
        share = 1 - (1 - share) ** (1 / stages)
        owner = np.repeat(named, [len(ladders[i].scores) for i in named])
        order = owner[np.argsort(np.concatenate([ladders[i].scores for i in named]), kind="stable")]
        taken = np.bincount(order[: round(share * len(order))], minlength=len(ladders))
        fixed.update({i: ladders[i].floor(int(taken[i])) for i in named})
    return fixed


def _no_share(message: str) -> SecateurError:
    hint = 'write "PATTERN=0.3" or "PATTERN|PATTERN=0.3"; `secateur groups MODEL` lists the names'
    return SecateurError("E_OPTION_VALUE", message, where="prune(shares=…)", hint=hint)


def _in_scope(group: Group, patterns: list[str]) -> bool:
    return any(_any(_makers(group), pattern) for pattern in patterns)


def _makers(group: Group) -> set[str]:
    """The names of a group, its kind, and what makes its units: not the layers that only sum over them."""
    found = {group.name, group.kind}
    for member in group.members:
        for node in member.nodes:
            if (member.value, member.axis) not in {(weight, axis) for _, _, weight, axis in contractions(node)}:
                found |= {member.value.name, node.name}
    return found


def select_groups(groups: Groups, ignore: tuple[str, ...], only: tuple[str, ...]) -> list[Group]:
    """The groups that the patterns leave; E_PATTERN for a pattern that matches nothing."""
    for pattern in (*ignore, *only):
        if not any(_matches(g, pattern) for g in groups):
            names = sorted({n for g in groups for n in _names(g)})
            close = difflib.get_close_matches(pattern.strip("*"), names, 3)
            raise SecateurError(
                "E_PATTERN",
                f"the pattern {pattern!r} matches no group, constant, node or kind",
                hint=f"did you mean {', '.join(close)}?" if close else "`secateur groups MODEL` lists the names",
            )
    return [
        g for g in groups if not any(_matches(g, p) for p in ignore) and (not only or any(_matches(g, p) for p in only))
    ]


def _names(group: Group) -> set[str]:
    found = {group.name, group.kind}
    for member in group.members:
        found.add(member.value.name)
        found.update(n.name for n in member.nodes)
    return found


def _matches(group: Group, pattern: str) -> bool:
    return _any(_names(group), pattern)


def _any(names: Iterable[str], pattern: str) -> bool:
    return any(name == pattern or fnmatchcase(name, pattern) for name in names)
