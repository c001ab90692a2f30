"""Noise in the place of data: smooth along space, with shapes in it, as images have."""

from __future__ import annotations

import math

import numpy as np

from compiler.ir import Graph
from compiler.ir.execute import random_inputs
from passes.calibration.samples import BATCH, Samples, batch_of

_ELEMENTS = 1 << 22
_FEWEST = 256
"""Inputs of many elements take much memory and tell much: fewer of them, but not less than this."""


def noise_of(graph: Graph, source: str, limit: int, batch: int) -> Samples:
    """Samples of the source "noise", or "none"; see `calibration_samples`."""
    from passes.calibration.matching import match_statistics

    size = sum(math.prod(d for d in (v.shape or ())[1:] if isinstance(d, int)) for v in graph.inputs)
    plain = noise_samples(graph, min(limit, max(_FEWEST, _ELEMENTS // max(1, size))), batch=batch)
    return plain if source == "noise" else match_statistics(graph, plain) or plain


def noise_samples(graph: Graph, count: int, *, seed: int = 0, batch: int = BATCH) -> Samples:
    """Noise in place of data: small integers, and noise of mean 0 and variance 1, smooth along space.

    Along the axes after the second (height, width) the amplitude falls with the square of the frequency: neighbouring
    pixels are alike, as in images. Half of the samples show a shape with an edge before plain ground, as pictures of
    things do. Layers so see inputs nearer to those that they were trained on; both follow "Learning to See by Looking
    at Noise" (Baradad et al., NeurIPS 2021, arXiv:2106.05963), which trains on noise of such kinds.
    """
    rng = np.random.default_rng(seed)
    made = []
    for index in range(max(1, -(-count // batch_of(graph, batch)))):
        feeds = random_inputs(graph, seed + index, symbol=batch)
        made.append({n: _images(a.shape, rng).astype(a.dtype) if _is_spatial(a) else a for n, a in feeds.items()})
    return Samples(tuple(made), noise=True)


def _is_spatial(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and array.ndim >= 4


def _images(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """[samples, channels, space…], each sample of mean 0 and variance 1, half of them a shape on plain ground."""
    noise = _smooth(shape, rng)
    outlines = _smooth((shape[0], 1, *shape[2:]), rng)
    for index in np.flatnonzero(rng.random(shape[0]) < 0.5):
        inside = outlines[index] > np.quantile(outlines[index], rng.uniform(0.2, 0.8))
        ground = rng.standard_normal((shape[1],) + (1,) * (len(shape) - 2))
        noise[index] = np.where(inside, noise[index], ground)
    return _standard(noise)


def _smooth(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Noise [samples, channels, space…], each sample of mean 0 and variance 1."""
    axes = tuple(range(2, len(shape)))
    grid = np.meshgrid(*(np.fft.fftfreq(shape[a]) for a in axes), indexing="ij")
    frequency = np.sqrt(sum(np.square(g) for g in grid))
    frequency.flat[0] = 1 / max(shape[2:])
    noise = np.fft.ifftn(np.fft.fftn(rng.standard_normal(shape), axes=axes) / np.square(frequency), axes=axes).real
    return _standard(noise)


def _standard(noise: np.ndarray) -> np.ndarray:
    rest = tuple(range(1, noise.ndim))
    spread = noise.std(rest, keepdims=True)
    return (noise - noise.mean(rest, keepdims=True)) / np.where(spread > 0, spread, 1.0)
