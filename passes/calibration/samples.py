"""Sample inputs in the batches that a model takes: from arrays, an .npz, a folder of .npy, an iterator, or noise."""

from __future__ import annotations

import itertools
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compiler.ir import Graph, SecateurError, Value
from compiler.ir.execute import random_inputs

LABELS = "labels"
"""The name under which the right answers are found, beside the inputs."""

BATCH = 32
"""Samples a batch, where the model leaves it open."""

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Samples:
    """Batches of inputs, each {input name: array}, and for each its labels (one a sample) where they are known."""

    batches: tuple[Feeds, ...]
    labels: tuple[np.ndarray, ...] | None = None

    def __len__(self) -> int:
        """How many samples there are."""
        return sum(len(next(iter(feeds.values()))) for feeds in self.batches)

    def __iter__(self) -> Iterator[Feeds]:
        return iter(self.batches)


def calibration_samples(graph: Graph, source: Any, *, limit: int = 512, batch: int = BATCH) -> Samples:
    """Samples of a graph's inputs.

    source: {input name: [samples, …]}; one array, for a model of one input; a path to an .npz of such arrays, to an
    .npy of one, or to a folder of NAME.npy files; an iterable of such mappings, arrays or (array, labels) pairs, each a
    batch; "none" for noise (`noise_samples`); or Samples. Labels are found under "labels". limit: at most so many
    samples. batch: samples a batch where the model's first extent is symbolic. Raises E_CALIBRATION.
    """
    if isinstance(source, Samples):
        return source
    if isinstance(source, str) and source == "none":
        return noise_samples(graph, min(limit, 256), batch=batch)
    arrays = _arrays(graph, source, limit)
    labels = arrays.pop(LABELS, None) if all(v.name != LABELS for v in graph.inputs) else None
    checked = {v.name: _checked(v, arrays) for v in graph.inputs}
    if extra := sorted(set(arrays) - set(checked)):
        raise _wrong(f"the model has no input {extra[0]!r}", f"its inputs are {', '.join(checked)}")
    lengths = {len(a) for a in checked.values()} | (set() if labels is None else {len(labels)})
    if len(lengths) != 1:
        raise _wrong("inputs and labels differ in their number of samples", "give one row of each for every sample")
    return _batched(graph, checked, labels, min(limit, lengths.pop()), batch)


def noise_samples(graph: Graph, count: int, *, seed: int = 0, batch: int = BATCH) -> Samples:
    """Noise in place of data: small integers, and normal noise of mean 0 and variance 1, smooth along space.

    Along the axes after the second (height, width) the amplitude falls with the square of the frequency: neighbouring
    pixels are alike, as in images, so that layers see inputs nearer to those that they were trained on.
    """
    rng = np.random.default_rng(seed)
    made = []
    for index in range(max(1, -(-count // _batch_of(graph, batch)))):
        feeds = random_inputs(graph, seed + index, symbol=batch)
        made.append({n: _smooth(a.shape, rng).astype(a.dtype) if _is_spatial(a) else a for n, a in feeds.items()})
    return Samples(tuple(made))


def _is_spatial(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and array.ndim >= 4


def _smooth(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Noise [samples, channels, space…], each sample of mean 0 and variance 1."""
    axes = tuple(range(2, len(shape)))
    grid = np.meshgrid(*(np.fft.fftfreq(shape[a]) for a in axes), indexing="ij")
    frequency = np.sqrt(sum(np.square(g) for g in grid))
    frequency.flat[0] = 1 / max(shape[2:])
    noise = np.fft.ifftn(np.fft.fftn(rng.standard_normal(shape), axes=axes) / np.square(frequency), axes=axes).real
    rest = tuple(range(1, len(shape)))
    spread = noise.std(rest, keepdims=True)
    return (noise - noise.mean(rest, keepdims=True)) / np.where(spread > 0, spread, 1.0)


def _arrays(graph: Graph, source: Any, limit: int) -> dict[str, np.ndarray]:
    if isinstance(source, str | Path):
        return _from_path(graph, Path(source))
    if isinstance(source, np.ndarray):
        return {_only_input(graph): source}
    if isinstance(source, Mapping):
        return {str(name): np.asarray(array) for name, array in source.items()}
    if isinstance(source, Iterable):
        return _from_batches(graph, source, limit)
    raise _wrong(f"a {type(source).__name__} is no calibration data", "give arrays, a path, an iterator, or 'none'")


def _from_path(graph: Graph, path: Path) -> dict[str, np.ndarray]:
    try:
        if path.is_dir():
            return {file.stem: np.load(file, allow_pickle=False) for file in sorted(path.glob("*.npy"))}
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            return {_only_input(graph): archive}
        with archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _wrong(
            f"{path} cannot be read: {error}", "an .npz file, or a folder of NAME.npy files, is needed"
        ) from None


def _from_batches(graph: Graph, source: Iterable[Any], limit: int) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {}
    taken = 0
    for item in source:
        if isinstance(item, Mapping):
            feeds = dict(item)
        elif isinstance(item, tuple | list) and len(item) == 2:
            feeds = {_only_input(graph): item[0], LABELS: item[1]}
        else:
            feeds = {_only_input(graph): item}
        for name, array in feeds.items():
            parts.setdefault(str(name), []).append(np.asarray(array))
        taken += len(np.asarray(next(iter(feeds.values()))))
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
        raise _wrong(f"there is no data for input {value.name!r}", f"the data holds {', '.join(arrays) or 'nothing'}")
    array = arrays[value.name]
    shape = value.shape or ()
    fits = array.ndim == len(shape) and all(
        not isinstance(d, int) or d == n for d, n in zip(shape[1:], array.shape[1:], strict=True)
    )
    if not fits or array.ndim == 0 or len(array) == 0:
        wanted = "x".join(["samples", *map(str, shape[1:])])
        raise _wrong(f"input {value.name!r} is {wanted}, and the data {'x'.join(map(str, array.shape))}", "reshape it")
    if value.dtype is None or not np.can_cast(array.dtype, value.dtype, "same_kind"):
        raise _wrong(f"input {value.name!r} is of {value.dtype}, and the data of {array.dtype}", "convert it")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _wrong(f"the data for {value.name!r} holds NaN or infinity", "leave those samples out")
    return array.astype(value.dtype, copy=False)


def _batched(graph: Graph, arrays: Feeds, labels: np.ndarray | None, count: int, batch: int) -> Samples:
    size = _batch_of(graph, batch)
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


def _batch_of(graph: Graph, batch: int) -> int:
    """How many samples the model takes at a time."""
    fixed = [d for v in graph.inputs if v.shape and isinstance(d := v.shape[0], int)]
    return fixed[0] if fixed else batch


def warn_of_rank(count: int, width: int, where: str) -> None:
    """Tell the user that there are fewer observations than unknowns."""
    if count < width:
        warnings.warn(
            f"{where}: {count} observations for {width} inputs; what the data does not tell is left to damping",
            stacklevel=3,
        )


def _wrong(message: str, hint: str) -> SecateurError:
    return SecateurError("E_CALIBRATION", message, where="calibration", hint=hint)


def first(samples: Samples, count: int) -> Samples:
    """Only the first batches, of at least `count` samples together."""
    total = list(itertools.accumulate(len(next(iter(feeds.values()))) for feeds in samples.batches))
    number = next((i + 1 for i, n in enumerate(total) if n >= count), len(total))
    return Samples(samples.batches[:number], None if samples.labels is None else samples.labels[:number])
