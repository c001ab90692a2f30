"""Profiles: what a device's kernels were timed at, and the costs of its processor that follow from it.

A package's benchmark program writes a profile on the device (see runtime/c/bench.c and probes.py). The costs are those
that explain the times best by selection's own formulas: least squares of logarithms by the method of Levenberg (1944)
and Marquardt (1963), drawn a little to the costs that the kind of processor has without a profile, so that what the
times do not tell stays as it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backends.costs import Costs, DenseCosts, SparseCosts, dense_costs, sparse_costs
from backends.probes import Probe, probes
from backends.target import Target
from compiler.errors import SecateurError

SCHEMA = "secateur-profile"
VERSION = 1
"""Version of the file, and of the kernels that are timed; no other is read."""

#: Fields of Target that the timed kernels depend on.
_MACHINE = ("vector_bytes", "vector_registers", "l1_bytes", "l2_bytes")
#: Costs that are not fitted: the unit, a bound of the model's, and what none of the timed kernels shows.
_FIXED = {"product", "all_far", "scattered", "torn", "line_near", "line_far", "line_distant", "pair"}
_FIXED |= {"transformed", "spilled"}
#: Standard deviations of logarithms: of a measured time about the model's, and of a cost about its usual value. An
#: engine compiles the code once more, so the formulas explain single kernels less well, and its usual costs, fitted to
#: whole networks in V8, served JavaScriptCore as they are: profiles of Node's, Deno's and Bun's own with a processor's
#: deviations gave networks up to 15 % slower, with these as fast ones.
_PROCESSOR, _ENGINE = (0.05, 0.7), (0.3, 0.3)
_STEPS = 30
#: How far a cost may be from its usual value, as a factor.
_FARTHEST = 20.0
#: Multiply-adds a second that some processor may reach.
_SLOWEST, _FASTEST = 1e4, 1e13
_HOW = "write it anew on the device: with an artifact's ./model-bench -o profile.json, or with bench/ of a web package"


@dataclass(frozen=True)
class Profile:
    """What a device measured. seconds: the least of each kernel's, which what else ran there disturbed least; digest:
    SHA-256 of the file."""

    processor: str
    arch: str
    machine: Mapping[str, int]
    seconds: Mapping[str, float]
    digest: str
    path: str

    @classmethod
    def read(cls, path: str | Path) -> Profile:
        """Read and check a file; SecateurError E_FILE when it cannot be read, E_PROFILE when it is no good profile."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise SecateurError(
                "E_FILE", "the profile cannot be read", where=f"{path}: {error.strerror or error}", hint=_HOW
            ) from None
        return _parse(data, str(path))

    def costs(self, target: Target) -> Costs:
        """The costs of `target` by what was measured; E_PROFILE for another kind of machine."""
        self._require(target)
        built = self._built(target)
        known = {probe.name: probe for probe in probes(built)}
        if missing := sorted(set(known) - set(self.seconds)):
            raise _bad(self.path, f"kernel {missing[0]!r} was not timed")
        costs = _fit(list(known.values()), [self.seconds[name] for name in known], built)
        _require_plausible(costs, built, self.path)
        return costs

    def _built(self, target: Target) -> Target:
        """The machine that the kernels were compiled for."""
        size = self.machine
        return dataclasses.replace(
            target,
            costs=None,
            vector_bytes=size["vector_bytes"],
            vector_registers=size["vector_registers"],
            l1_bytes=size["l1_bytes"],
            l2_bytes=size["l2_bytes"],
        )

    def apply(self, target: Target) -> Target:
        """The target with the costs that were measured."""
        return dataclasses.replace(target, costs=self.costs(target))

    def describe(self, costs: Costs) -> dict[str, Any]:
        """What manifests tell about the profile and what follows from it."""
        return {
            "processor": self.processor,
            "sha256": self.digest,
            "unit": "multiply-adds of whole vectors",
            "costs": {
                kind: {name: round(value, 4) for name, value in dataclasses.asdict(part).items()}
                for kind, part in (("sparse", costs.sparse), ("dense", costs.dense))
            },
        }

    def _require(self, target: Target) -> None:
        found, wanted = described(self.machine, self.arch), described(target)
        for name, of in (("arch", "{} processors"), ("vector_bytes", "vectors of {} bytes")):
            if found[name] != wanted[name]:
                raise SecateurError(
                    "E_PROFILE",
                    f"the profile is for {of.format(found[name])}; target {target.name!r} is for "
                    f"{of.format(wanted[name])}",
                    where=self.path,
                    hint="give the profile of a device that the target is for, or leave out --profile",
                )


def described(target: Target | Mapping[str, int], arch: str = "") -> dict[str, Any]:
    """What a profile says of the machine that its kernels were compiled for."""
    if isinstance(target, Target):
        first = target.triple.partition("-")[0]
        arch = {"arm64": "aarch64", "amd64": "x86_64"}.get(first, first)
        target = {name: getattr(target, name) for name in _MACHINE}
    return {"arch": arch, **target}


def _parse(data: bytes, path: str) -> Profile:
    try:
        content = json.loads(data)
    except ValueError:
        raise _bad(path, "this is no JSON") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise _bad(path, f'this is no profile: "schema" is not "{SCHEMA}"')
    if content.get("version") != VERSION:
        raise _bad(path, f"the profile has version {content.get('version')!r}; this Secateur reads {VERSION}")
    target = content.get("target")
    if not isinstance(target, dict) or not isinstance(target.get("arch"), str):
        raise _bad(path, '"target" does not say what the kernels were compiled for')
    machine = {name: _whole(target.get(name), f"target.{name}", path) for name in _MACHINE}
    if not (machine["vector_bytes"] in (16, 32, 64) and 8 <= machine["vector_registers"] <= 64):
        raise _bad(path, f"no processor has vectors of {machine['vector_bytes']} bytes")
    processor = content.get("processor")
    return Profile(
        processor if isinstance(processor, str) else "unknown",
        target["arch"],
        machine,
        _kernels(content.get("kernels"), path),
        hashlib.sha256(data).hexdigest(),
        path,
    )


def _kernels(entries: Any, path: str) -> dict[str, float]:
    if not isinstance(entries, list) or not entries:
        raise _bad(path, '"kernels" does not list what was timed')
    found: dict[str, float] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise _bad(path, "a kernel has no name")
        name = entry["name"]
        seconds, work = (
            _number(entry.get(key), f"{key} of kernel {name!r}", path) for key in ("least", "multiply_adds")
        )
        if not _SLOWEST <= work / seconds <= _FASTEST:
            raise _bad(path, f"kernel {name!r} cannot take {seconds:g} seconds for {work:g} multiply-adds")
        found[name] = seconds
    return found


def _number(value: Any, what: str, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise _bad(path, f"{what} is {value!r} and not a number above 0")
    return float(value)


def _whole(value: Any, what: str, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= 1 << 30:
        raise _bad(path, f"{what} is {value!r} and not a whole number above 0")
    return value


def _bad(path: str, message: str) -> SecateurError:
    return SecateurError("E_PROFILE", message, where=path, hint=_HOW)


def _named(costs: Costs) -> dict[str, float]:
    """The costs that are fitted, by name."""
    every = dataclasses.asdict(costs.sparse) | dataclasses.asdict(costs.dense)
    return {name: value for name, value in every.items() if name not in _FIXED}


def _with(costs: Costs, values: Mapping[str, float]) -> Costs:
    def part(kind: SparseCosts | DenseCosts) -> dict[str, float]:
        return {f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values}

    sparse, dense = costs.sparse, costs.dense
    return Costs(dataclasses.replace(sparse, **part(sparse)), dataclasses.replace(dense, **part(dense)))


def _fit(known: Sequence[Probe], seconds: Sequence[float], target: Target) -> Costs:
    """The costs, and with them the seconds of a multiply-add, that explain the seconds of the kernels best."""
    usual = Costs(sparse_costs(target), dense_costs(target))
    names, measured = list(_named(usual)), np.log(seconds)
    time, cost = _ENGINE if target.package == "web" else _PROCESSOR

    def at(place: np.ndarray) -> Costs:
        values = {n: v * math.exp(p) for (n, v), p in zip(_named(usual).items(), place[1:], strict=True)}
        return _with(usual, values)

    def misses(place: np.ndarray) -> np.ndarray:
        """Of the times, then of the costs, in standard deviations; the first number is the unit's logarithm."""
        machine = dataclasses.replace(target, costs=at(place))
        times = np.log([probe.cycles(machine) for probe in known]) + place[0]
        return np.concatenate([(times - measured) / time, place[1:] / cost])

    place = np.zeros(1 + len(names))
    place[0] = float(np.median(measured - np.log([probe.cycles(target) for probe in known])))
    return at(_least_squares(misses, place))


def _least_squares(misses: Any, place: np.ndarray) -> np.ndarray:
    """Where the sum of squares of `misses` is least, from `place` on."""
    found, damping = misses(place), 1e-2
    for _ in range(_STEPS):
        slopes = np.stack([(misses(place + step) - found) / 1e-4 for step in 1e-4 * np.eye(len(place))], axis=1)
        normal = slopes.T @ slopes
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -slopes.T @ found)
        moved = misses(place + step)
        if moved @ moved < found @ found:
            done = found @ found - moved @ moved < max(1e-3 * (found @ found), 1e-6)
            place, found, damping = place + step, moved, damping / 4
            if done:
                break
        else:
            damping *= 8
    return place


def _require_plausible(costs: Costs, target: Target, path: str) -> None:
    usual = _named(Costs(sparse_costs(target), dense_costs(target)))
    for name, value in _named(costs).items():
        if not usual[name] / _FARTHEST <= value <= usual[name] * _FARTHEST:
            kind = "above" if value > usual[name] else "below"
            raise _bad(path, f"by these times the cost {name!r} is far {kind} that of any processor")
