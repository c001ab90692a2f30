"""Pass, Pipeline, the textual form and the registry.

A pass is a frozen dataclass whose fields are its options: the same names and defaults serve Python,
the textual form `simplify,prune(ratio=0.5,metric=macs)` and a recipe file.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
import time
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

from compiler.ir import Graph, SecateurError, verify

ENTRY_POINT_GROUP = "secateur.passes"
"""Third parties register a pass under this entry point group; the entry's name is the pass's name."""


@dataclass
class Context:
    """What passes share in one run.

    reports: what each pass wants to tell its user, by pass name (a later run of the same pass appends).
    progress: called as progress(label, done, total) by long work. print_after: names of passes after
    which the graph's text is printed to stderr ("*" for all). timings: (pass, seconds), filled by Pipeline.
    """

    reports: dict[str, list[Any]] = field(default_factory=dict)
    progress: Callable[[str, int, int], None] = lambda label, done, total: None
    print_after: tuple[str, ...] = ()
    timings: list[tuple[str, float]] = field(default_factory=list)

    def report(self, name: str, item: Any) -> None:
        """Record what pass `name` has to tell."""
        self.reports.setdefault(name, []).append(item)


@dataclass(frozen=True)
class Pass(ABC):
    """One transformation. Subclasses are frozen dataclasses registered with `@register_pass`.

    `run` never changes its argument: it returns a new graph, or the same one when nothing changes.
    """

    name: ClassVar[str] = ""
    changes_function: ClassVar[bool] = False
    """True when the result is meant to compute something else than the argument (pruning, sparsity)."""

    @abstractmethod
    def run(self, graph: Graph, context: Context) -> Graph:
        """Return the transformed graph."""

    def __call__(self, graph: Graph, context: Context | None = None) -> Graph:
        """Run with the verifier before and after, as a pipeline of one."""
        return Pipeline((self,)).run(graph, context or Context())

    def one_of(self, option: str, known: tuple[str, ...]) -> None:
        """Refuse an option whose value is none of the known ones: E_OPTION_VALUE."""
        value = getattr(self, option)
        if value not in known:
            close = difflib.get_close_matches(str(value), known, 1)
            raise SecateurError(
                "E_OPTION_VALUE",
                f"{option} cannot be {value!r}",
                where=f"{self.name}({option}=…)",
                hint=f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(known)}",
            )

    def __str__(self) -> str:
        shown = [
            f"{f.name}={_format_option(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != _default(f)
        ]
        return f"{self.name}({','.join(shown)})" if shown else self.name


@dataclass(frozen=True)
class Pipeline(Pass):
    """Passes in order, with the verifier before the first and after each; itself a pass."""

    passes: tuple[Pass, ...] = ()
    name: ClassVar[str] = "pipeline"

    def __init__(self, passes: Iterable[Pass] | str = ()) -> None:
        chosen = parse_passes(passes) if isinstance(passes, str) else tuple(passes)
        object.__setattr__(self, "passes", chosen)

    def __call__(self, graph: Graph, context: Context | None = None) -> Graph:
        return self.run(graph, context or Context())

    def run(self, graph: Graph, context: Context) -> Graph:
        verify(graph, where="before the first pass")
        ran: list[str] = []
        for step in self.passes:
            start = time.perf_counter()
            try:
                graph = step.run(graph, context)
            except SecateurError as error:
                error.add_note(f"in pass {step} after {', '.join(ran) or 'no other pass'}")
                raise
            context.timings.append((step.name, time.perf_counter() - start))
            ran.append(step.name)
            verify(graph, where=f"after {' , '.join(ran)}")
            if step.name in context.print_after or "*" in context.print_after:
                print(f"// after {step}\n{graph}", file=sys.stderr)
        return graph

    @property
    def exact(self) -> bool:
        """True when no pass changes the function that the graph computes."""
        return not any(p.changes_function for p in self.passes)

    def __str__(self) -> str:
        return ",".join(str(p) for p in self.passes)


_REGISTRY: dict[str, type[Pass]] = {}
P = TypeVar("P", bound=type[Pass])


def register_pass(name: str) -> Callable[[P], P]:
    """Class decorator: the pass is called `name` in the textual form and in recipes."""

    def register(cls: P) -> P:
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return register


def available_passes() -> dict[str, type[Pass]]:
    """Every registered pass by name, entry points included."""
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name not in _REGISTRY:
            cls = entry.load()
            cls.name = entry.name
            _REGISTRY[entry.name] = cls
    return dict(sorted(_REGISTRY.items()))


def make_pass(name: str, options: dict[str, Any]) -> Pass:
    """Build a pass from its name and options (strings are converted by the field's type)."""
    known = available_passes()
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        raise SecateurError(
            "E_UNKNOWN_PASS",
            f"there is no pass called {name!r}",
            hint=f"did you mean {close[0]!r}?" if close else f"known passes: {', '.join(known)}",
        )
    cls = known[name]
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    values = {}
    for key, text in options.items():
        if key not in names:
            close = difflib.get_close_matches(key, names, 1)
            raise SecateurError(
                "E_UNKNOWN_OPTION",
                f"pass {name!r} has no option {key!r}",
                hint=f"did you mean {close[0]!r}?" if close else f"its options: {', '.join(names) or 'none'}",
            )
        values[key] = _convert(text, hints[key], f"{name}({key}=…)") if isinstance(text, str | list) else text
    return cls(**values)


def parse_passes(text: str) -> tuple[Pass, ...]:
    """Parse `simplify,prune(ratio=0.5,ignore=[head*,stem])` into passes. E_PASS_SYNTAX when malformed."""
    return tuple(make_pass(*_parse_call(part)) for part in _split(text) if part)


def _parse_call(text: str) -> tuple[str, dict[str, Any]]:
    name, bracket, rest = text.partition("(")
    if not bracket:
        return name.strip(), {}
    if not rest.rstrip().endswith(")"):
        raise _syntax(text, "a closing parenthesis is missing")
    options: dict[str, Any] = {}
    for item in _split(rest.rstrip()[:-1]):
        key, equals, value = item.partition("=")
        if not equals:
            raise _syntax(text, f"{item!r} is not of the form option=value")
        value = value.strip()
        options[key.strip()] = _split(value[1:-1]) if value.startswith("[") and value.endswith("]") else value
    return name.strip(), options


def _split(text: str) -> list[str]:
    """Split at the commas that no bracket encloses."""
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if depth < 0:
            raise _syntax(text, "a bracket closes that was never opened")
        if char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    if depth:
        raise _syntax(text, "a bracket is never closed")
    return [p for p in [*parts, text[start:].strip()] if p]


def _syntax(text: str, problem: str) -> SecateurError:
    return SecateurError(
        "E_PASS_SYNTAX", f"cannot read the passes: {problem}", where=text, hint="write simplify,prune(ratio=0.5)"
    )


def _convert(text: str | list[str], kind: Any, where: str) -> Any:
    """Convert an option's text by its declared type: bool, int, float, str, tuple[T, ...], T | None."""
    if kind is Any:
        return text
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        members = typing.get_args(kind)
        if type(None) in members and text in ("none", "None"):
            return None
        return _convert(text, next(m for m in members if m is not type(None)), where)
    if origin is tuple:
        items = text if isinstance(text, list) else [text]
        return tuple(_convert(item, typing.get_args(kind)[0], where) for item in items)
    try:
        if isinstance(text, list):
            raise ValueError("a list where one value is expected")
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError, TypeError):
        expected = getattr(kind, "__name__", str(kind))
        raise SecateurError(
            "E_OPTION_VALUE", f"{text!r} is not a valid {expected}", where=where, hint=f"give a {expected}"
        ) from None


def _format_option(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ",".join(_format_option(v) for v in value) + "]"
    if not isinstance(value, bool | None | int | float | str):
        return f"<{type(value).__name__}>"
    return str(value).lower() if isinstance(value, bool | None) else str(value)


def _default(option: dataclasses.Field[Any]) -> Any:
    if option.default_factory is not dataclasses.MISSING:
        return option.default_factory()
    return option.default
