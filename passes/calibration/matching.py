"""Noise whose mean and scale are those that the network's first BatchNormalization has seen in training.

As long as only layers that are affine in the input lie before it, its mean is linear in the means of the input's
channels, and its variance in their variances. So the channels' means and variances are two small least-squares
problems; data-free methods match all layers' statistics by gradients instead ("ZeroQ", Cai et al., CVPR 2020,
arXiv:2001.00281).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compiler.ir import Graph, Node, Value
from passes.calibration.running import observe
from passes.calibration.samples import Feeds, Samples, first

_AFFINE = frozenset(
    {"Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Identity", "Cast", "Transpose", "AveragePool"}
)

_CHANNELS = 64
"""Inputs with more are left alone: the statistics do not tell so many means and scales."""
_SAMPLES = 128
"""So many are looked at."""
_RIDGE = 1e-3
_ROUNDS = 500


def match_statistics(graph: Graph, samples: Samples) -> Samples | None:
    """Noise samples scaled and shifted channel by channel (axis 1) towards the statistics before the first
    BatchNormalization; None where the network has none that reads an affine function of an input.
    """
    for node in graph.nodes:
        source = _affine_source(node)
        if source is None:
            continue
        statistics = [v.numpy().astype(np.float64) for v in node.inputs[3:5] if v is not None and v.is_constant]
        if len(statistics) == 2 and node.inputs[0] is not None:
            mean, scale = _fit(graph, node.inputs[0], source, samples, *statistics)
            return replace(samples, batches=_changed(samples.batches, source, mean, scale).batches)
    return None


def _affine_source(node: Node) -> Value | None:
    """The network's input of which a BatchNormalization reads an affine function, if it has channels on axis 1."""
    x = node.input(0)
    if node.op != "BatchNormalization":
        return None
    while x is not None and x.producer is not None:
        data = [v for v in x.producer.inputs if v is not None and not v.is_constant]
        divides = x.producer.op == "Div" and data == [x.producer.input(1)]
        if x.producer.op not in _AFFINE or len(data) != 1 or divides:
            return None
        x = data[0]
    if x is None or x.is_constant or x.dtype is None or x.dtype.kind != "f" or x.shape is None or len(x.shape) < 2:
        return None
    channels = x.shape[1]
    return x if isinstance(channels, int) and 0 < channels <= _CHANNELS else None


def _fit(
    graph: Graph, read: Value, source: Value, samples: Samples, mean: np.ndarray, variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(mean, scale) of each channel of `source` for which the channels of `read` come near to mean and variance."""
    few = first(samples, _SAMPLES).batches
    channels = few[0][source.name].shape[1]
    only = [np.where(np.arange(channels) == c, 1.0, 0.0) for c in range(channels)]
    zero = np.zeros(channels)
    trials = [(zero, zero), *((o, zero) for o in only), *((zero, o) for o in only)]
    base, *found = (
        np.concatenate([_channels(arrays[read]) for arrays in observe(graph, [read], changed)], 1)
        for changed in (_changed(few, source, *trial) for trial in trials)
    )
    constant, varied = (np.stack([f - base for f in part]) for part in (found[:channels], found[channels:]))
    spread = np.sqrt(np.maximum(variance, 1e-6 * variance.max(initial=1e-12)))
    means = constant.mean(2).T / spread[:, None]
    ridge = _RIDGE * np.trace(means.T @ means) / channels
    wanted = means.T @ ((mean - base.mean(1)) / spread)
    shift = np.linalg.solve(means.T @ means + max(ridge, 1e-300) * np.eye(channels), wanted)
    # Even a constant input is no constant after a convolution with padding.
    rest = np.maximum(variance - (base + np.tensordot(shift, constant, 1)).var(1), 0)
    return shift, np.sqrt(_nonnegative(varied.var(2).T / spread[:, None] ** 2, rest / spread**2))


def _changed(batches: tuple[Feeds, ...], source: Value, shift: np.ndarray, scale: np.ndarray) -> Samples:
    return Samples(tuple(b | {source.name: _affine(b[source.name], shift, scale)} for b in batches))


def _affine(noise: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
    shape = [-1 if axis == 1 else 1 for axis in range(noise.ndim)]
    return (noise * scale.reshape(shape) + shift.reshape(shape)).astype(noise.dtype)


def _channels(array: np.ndarray) -> np.ndarray:
    """[channels, observations] in float64."""
    return np.moveaxis(array, 1, 0).reshape(array.shape[1], -1).astype(np.float64)


def _nonnegative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """x >= 0 with a x near b, for a >= 0: Lee and Seung's multiplicative updates, which stay positive."""
    x = np.full(a.shape[1], float((a.sum(1) @ b) / max(np.square(a.sum(1)).sum(), 1e-300)))
    for _ in range(_ROUNDS):
        x *= (a.T @ b) / np.maximum(a.T @ (a @ x), 1e-300)
    return x
