"""Sample inputs in the batches that a model takes: from arrays, an .npz, a folder of .npy, an iterator, or noise."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compiler.errors import SecateurWarning
from compiler.ir import Graph, SecateurError, Value
from passes.calibration.files import read_arrays

LABELS = "labels"
"""The name under which the right answers are found, beside the inputs."""

NOISE = ("none", "noise")
"""Sources of samples that need no data."""

_DRIFT = 0.15
"""Above this samples are called unlike the training data."""

BATCH = 32
"""Samples a batch, where the model leaves it open."""

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Samples:
    """Batches of inputs, each {input name: array}, and for each its labels (one a sample) where they are known.

    noise: these are no data; see `Stepper` for what that changes.
    """

    batches: tuple[Feeds, ...]
    labels: tuple[np.ndarray, ...] | None = None
    noise: bool = False

    def __len__(self) -> int:
        """How many samples there are."""
        return sum(len(next(iter(feeds.values()))) for feeds in self.batches)

    def __iter__(self) -> Iterator[Feeds]:
        return iter(self.batches)


def calibration_samples(
    graph: Graph, source: Any, *, limit: int = 512, batch: int = BATCH, labels: str = LABELS
) -> Samples:
    """Samples of a graph's inputs.

    source: {input name: [samples, …]}; one array, for a model of one input; a path to an .npz of such arrays, to an
    .npy of one, or to a folder of NAME.npy files; an iterable of such mappings, arrays or (array, labels) pairs, each a
    batch; "noise" for noise of mean 0 and variance 1 (`noise_samples`); "none" for noise matched to the statistics of
    the first BatchNormalization (`match_statistics`), or that of "noise" where none tells; or Samples. limit: at most
    so many samples, and of files and iterators no more are read. batch: samples a batch where the model's first extent
    is symbolic. labels: the name under which labels are found; it may be that of an input, which is then both. Raises
    E_CALIBRATION, E_LABELS, and E_NO_LABELS for labels that are named and not there.
    """
    if limit < 1:
        raise _wrong(f"{limit} samples are too few", "take at least one")
    if isinstance(source, Samples):
        return source
    if isinstance(source, str) and source in NOISE:
        from passes.calibration.noise import noise_of

        return noise_of(graph, source, limit, batch)
    arrays, lengths = _arrays(graph, source, limit, labels)
    answers = _labels(graph, arrays, labels)
    checked = {v.name: _checked(v, arrays) for v in graph.inputs}
    used = [*checked, *([] if answers is None else [labels])]
    if extra := sorted(set(arrays) - set(used)):
        hint = f"its inputs are {', '.join(checked)}; labels are an array called {labels!r} (--labels NAME)"
        raise _wrong(f"the model has no input {extra[0]!r}", hint)
    if len({lengths[name] for name in used}) != 1:
        counts = ", ".join(f"{lengths[name]} of {name!r}" for name in used)
        raise _wrong(
            f"inputs and labels differ in their number of samples: {counts}", "give one row of each for every sample"
        )
    return _batched(graph, checked, answers, min(limit, lengths[used[0]]), batch)


def _labels(graph: Graph, arrays: Feeds, name: str) -> np.ndarray | None:
    """The labels among the arrays, checked; taken out, unless they are an input too."""
    inputs = {v.name for v in graph.inputs}
    if name == LABELS and (name in inputs or name not in arrays):
        return None
    if name not in arrays:
        raise no_labels(f"the calibration data hold no labels {name!r}, but {', '.join(arrays) or 'nothing'}")
    found = arrays[name] if name in inputs else arrays.pop(name)
    if found.ndim == 0 or found.dtype.kind not in "biuf" or (found.dtype.kind == "f" and not np.isfinite(found).all()):
        kind = "a single number" if found.ndim == 0 else f"of {found.dtype}"
        kind = "not all finite" if found.ndim and found.dtype.kind == "f" else kind
        raise SecateurError(
            "E_LABELS",
            f"the labels {name!r} are {kind}",
            where="labels=…",
            hint="give finite numbers, one row a sample",
        )
    return found


def _arrays(graph: Graph, source: Any, limit: int, labels: str) -> tuple[Feeds, dict[str, int]]:
    """The first `limit` rows of each array, and how many rows it has."""
    if isinstance(source, str | Path):
        found = read_arrays(Path(source), limit)
        if "" in found:
            found[_only_input(graph)] = found.pop("")
    elif isinstance(source, np.ndarray):
        found = {_only_input(graph): (source, _length(source))}
    elif isinstance(source, Mapping):
        found = {str(name): (a, _length(a)) for name, a in ((n, np.asarray(x)) for n, x in source.items())}
    elif isinstance(source, Iterable):
        batches = _from_batches(graph, source, limit, labels)
        found = {name: (array, _length(array)) for name, array in batches.items()}
    else:
        raise _wrong(f"a {type(source).__name__} is no calibration data", "give arrays, a path, an iterator, or 'none'")
    cut = {name: array[:limit] if array.ndim else array for name, (array, _) in found.items()}
    return cut, {name: length for name, (_, length) in found.items()}


def _length(array: np.ndarray) -> int:
    return len(array) if array.ndim else 0


def _from_batches(graph: Graph, source: Iterable[Any], limit: int, labels: str) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {}
    taken = 0
    for item in source:
        if isinstance(item, Mapping):
            feeds = dict(item)
        elif isinstance(item, tuple | list) and len(item) == 2:
            feeds = {_only_input(graph): item[0], labels: item[1]}
        else:
            feeds = {_only_input(graph): item}
        arrays = {str(name): np.asarray(array) for name, array in feeds.items()}
        for name, array in arrays.items():
            parts.setdefault(name, []).append(array)
        taken += max((_length(array) for array in arrays.values()), default=0)
        if taken >= limit:
            break
    try:
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}
    except ValueError as error:
        raise _wrong(f"batches do not fit each other: {error}", "all batches need the same inputs and shapes") from None


def _only_input(graph: Graph) -> str:
    if len(graph.inputs) != 1:
        names = ", ".join(v.name for v in graph.inputs)
        raise _wrong(f"the model has {len(graph.inputs)} inputs", f"give one array for each by name: {names}")
    return graph.inputs[0].name


def _checked(value: Value, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """The array of one input, in its type."""
    if value.name not in arrays:
        raise _wrong(
            f"there is no data for input {value.name!r}",
            f"call an array {value.name!r}; the data hold {', '.join(arrays) or 'none'}",
        )
    array = arrays[value.name]
    shape = value.shape or ()
    fits = array.ndim == len(shape) and all(
        not isinstance(d, int) or d == n for d, n in zip(shape[1:], array.shape[1:], strict=True)
    )
    if array.ndim and len(array) == 0:
        raise _wrong(f"the data for {value.name!r} hold no samples", "give at least one")
    if not fits or array.ndim == 0:
        found = (
            f"{array.ndim} axes" if array.ndim != len(shape) else " x ".join(["samples", *map(str, array.shape[1:])])
        )
        wanted = " x ".join(["samples", *map(str, shape[1:])])
        raise _wrong(f"input {value.name!r} is {wanted}, and the data have {found}", "reshape them, samples first")
    if value.dtype is None or not np.can_cast(array.dtype, value.dtype, "same_kind"):
        raise _wrong(f"input {value.name!r} is of {value.dtype}, and the data of {array.dtype}", "convert it")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _wrong(f"the data for {value.name!r} holds NaN or infinity", "leave those samples out")
    return array.astype(value.dtype, copy=False)


def _batched(graph: Graph, arrays: Feeds, labels: np.ndarray | None, count: int, batch: int) -> Samples:
    size = batch_of(graph, batch)
    if count < size:
        if any(isinstance((v.shape or ("",))[0], int) for v in graph.inputs):
            raise _wrong(f"the model takes {size} samples at a time, and there are {count}", "give more")
        size = count
    starts = range(0, count - size + 1, size)
    rest = range(starts[-1] + size, count)
    cuts = [slice(s, s + size) for s in starts]
    if len(rest) and not any(isinstance((v.shape or ("",))[0], int) for v in graph.inputs):
        cuts.append(slice(rest.start, rest.stop))
    batches = tuple({name: array[cut] for name, array in arrays.items()} for cut in cuts)
    return Samples(batches, None if labels is None else tuple(np.asarray(labels)[cut] for cut in cuts))


def batch_of(graph: Graph, batch: int) -> int:
    """How many samples the model takes at a time."""
    fixed = [d for v in graph.inputs if v.shape and isinstance(d := v.shape[0], int)]
    return fixed[0] if fixed else batch


@dataclass(frozen=True)
class Shortage:
    """A layer of which the data tell less than there is to find: its name, samples, positions in each, and inputs."""

    where: str
    samples: int
    positions: int
    inputs: int

    def __str__(self) -> str:
        count = self.samples * self.positions
        return f"{self.where}: {self.samples} samples x {self.positions} positions = {count} for {self.inputs} inputs"


def warn_of_rank(short: list[Shortage], layers: int) -> None:
    """Tell the user where there are fewer observations than unknowns."""
    if short:
        worst = sorted(short, key=lambda s: s.samples * s.positions / s.inputs)
        more = f"; and {len(worst) - 3} more" if len(worst) > 3 else ""
        warnings.warn(
            f"too few samples for {len(short)} of {layers} layers, whose inputs have at most that rank: "
            f"{'; '.join(map(str, worst[:3]))}{more}. Damping decides the rest; give more samples.",
            SecateurWarning,
            stacklevel=3,
        )


def warn_of_drift(drifts: list[float]) -> None:
    """Tell the user that the samples are unlike what the network was trained on.

    drifts: for each BatchNormalization how far the mean of its inputs lies from the one that it stores, in standard
    deviations that it stores, the median over channels. Measured: 8 samples of the training's kind 0.06 or less, one
    sample 0.2, MNIST through networks trained on Fashion-MNIST 0.2 to 0.3, pixels that are not normalised 4 to 30.
    """
    mean = sum(drifts) / max(1, len(drifts))
    if mean > _DRIFT:
        warnings.warn(
            f"the samples are unlike the training data, or very few: the inputs of BatchNormalization lie {mean:.2g} "
            "standard deviations from the stored means. Are they scaled and ordered as in training? Without data of "
            "that kind, noise (calibration 'none') may serve better.",
            SecateurWarning,
            stacklevel=3,
        )


def no_calibration(who: str) -> SecateurError:
    """The error for what needs data and has none."""
    return SecateurError(
        "E_NO_CALIBRATION",
        f"{who} needs calibration data",
        where="calibration=…",
        hint="give an .npz of inputs, or 'none' for noise; l1, l2 and lamp need no data",
    )


def no_labels(message: str) -> SecateurError:
    """The error for a loss without right answers."""
    return SecateurError(
        "E_NO_LABELS",
        message,
        where="calibration=…",
        hint="add an array 'labels', one row a sample, or name it (--labels NAME); wanda, flap and obspa need none",
    )


def _wrong(message: str, hint: str) -> SecateurError:
    return SecateurError("E_CALIBRATION", message, where="calibration=…", hint=hint)


def first(samples: Samples, count: int) -> Samples:
    """Only the first batches, of at least `count` samples together."""
    total = list(itertools.accumulate(len(next(iter(feeds.values()))) for feeds in samples.batches))
    number = next((i + 1 for i, n in enumerate(total) if n >= count), len(total))
    labels = None if samples.labels is None else samples.labels[:number]
    return replace(samples, batches=samples.batches[:number], labels=labels)
