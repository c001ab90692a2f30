"""Convolutions and matrix products as linear regressions: rows of inputs, columns of outputs, blocks that share them.

A layer is a number of blocks (the groups of a convolution; one otherwise), each y = x w with x [rows, inputs of the
block] and w [inputs, outputs of the block]. Convolutions see their input as patches (im2col); a transposed convolution
is a convolution of its input with zeros in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from compiler.ir import Node, Value


@dataclass(frozen=True)
class Layer:
    """A node with constant weights that can be solved for.

    weight, bias: operands (bias None where there is none). blocks: how many. axis: of data, the channels or features.
    """

    node: Node
    x: Value
    weight: Value
    bias: Value | None
    blocks: int
    axis: int

    def matrices(self) -> np.ndarray:
        """The weights as [blocks, inputs, outputs], float64."""
        w = np.asarray(self.weight.numpy(), np.float64)
        if self.node.op == "Conv":
            return w.reshape(self.blocks, w.shape[0] // self.blocks, -1).swapaxes(1, 2)
        if self.node.op == "ConvTranspose":
            return _transposed(w, self.blocks).reshape(self.blocks, w.shape[1], -1).swapaxes(1, 2)
        return (w.T if self.node.attribute("transB", 0) else w)[None]

    def stored(self, matrices: np.ndarray) -> np.ndarray:
        """The weights in the operand's own shape and type, from [blocks, inputs, outputs]."""
        like = self.weight.numpy()
        if self.node.op == "Conv":
            w = matrices.swapaxes(1, 2).reshape(like.shape)
        elif self.node.op == "ConvTranspose":
            outputs = like.shape[1]
            flipped = matrices.swapaxes(1, 2).reshape(
                self.blocks * outputs, like.shape[0] // self.blocks, *like.shape[2:]
            )
            w = _transposed(flipped, self.blocks)
        else:
            w = matrices[0].T if self.node.attribute("transB", 0) else matrices[0]
        return np.ascontiguousarray(w.astype(like.dtype))

    def inputs(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The inputs of some rows, [blocks, rows, inputs of a block], in x's type."""
        if self.node.op not in ("Conv", "ConvTranspose"):
            return x.reshape(-1, x.shape[-1])[rows][None]
        if self.node.op == "ConvTranspose":
            x = _stretched(x, self.node, self.weight)
            patches = _patches(x, self.weight.numpy().shape[2:], [1] * (x.ndim - 2), _dilations(self.node, x.ndim - 2))
        else:
            x = _padded(x, self.node, self.weight)
            strides = self.node.attribute("strides", [1] * (x.ndim - 2))
            patches = _patches(x, self.weight.numpy().shape[2:], strides, _dilations(self.node, x.ndim - 2))
        # [samples, channels, positions…, kernel…]
        spatial = x.ndim - 2
        count = patches.shape[0] * math.prod(patches.shape[2 : 2 + spatial])
        places = np.unravel_index(rows, (patches.shape[0], *patches.shape[2 : 2 + spatial]))
        assert len(rows) <= count
        index: tuple[Any, ...] = (places[0], slice(None), *places[1:])
        taken = patches[index]  # [rows, channels, kernel…]
        return taken.reshape(len(rows), self.blocks, -1).swapaxes(0, 1)

    def outputs(self, y: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The results of some rows, [rows, outputs]."""
        return np.moveaxis(y, self.axis, -1).reshape(-1, y.shape[self.axis])[rows]

    def row_count(self, y: np.ndarray) -> int:
        """How many rows a result holds."""
        return y.size // y.shape[self.axis]


def layer_of(node: Node) -> Layer | None:
    """The layer that a node is; None where its weights are not plain constants, or it is no such layer."""
    x, weight = node.input(0), node.input(1)
    plain = x is not None and weight is not None and not x.is_constant and weight.is_constant
    if node.domain or not plain or x is None or weight is None or weight.numpy().dtype.kind != "f":
        return None
    bias = node.input(2)
    if bias is not None and not bias.is_constant:
        return None
    if node.op in ("Conv", "ConvTranspose"):
        return Layer(node, x, weight, bias, int(node.attribute("group", 1)), 1)
    if node.op == "Gemm":
        scaled = node.attribute("alpha", 1.0) != 1 or node.attribute("beta", 1.0) != 1
        flat = bias is None or bias.numpy().ndim == 1
        return None if node.attribute("transA", 0) or scaled or not flat else Layer(node, x, weight, bias, 1, 1)
    if node.op == "MatMul" and weight.numpy().ndim == 2 and (x.rank or 0) >= 2:
        return Layer(node, x, weight, None, 1, (x.rank or 0) - 1)
    return None


def layers(nodes: list[Node]) -> Iterator[Layer]:
    """The layers among nodes, in order."""
    for node in nodes:
        layer = layer_of(node)
        if layer is not None:
            yield layer


def _dilations(node: Node, spatial: int) -> list[int]:
    return [int(d) for d in node.attribute("dilations", [1] * spatial)]


def _patches(x: np.ndarray, kernel: tuple[int, ...], strides: list[int], dilations: list[int]) -> np.ndarray:
    """Views [samples, channels, positions…, kernel…] of a padded input."""
    spatial = len(kernel)
    wide = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    windows = np.lib.stride_tricks.sliding_window_view(x, wide, axis=tuple(range(2, 2 + spatial)))
    steps = [slice(None), slice(None), *(slice(None, None, s) for s in strides)]
    return windows[(*steps, *(slice(None, None, d) for d in dilations))]


def _padded(x: np.ndarray, node: Node, weight: Value) -> np.ndarray:
    """The input of a convolution with its zeros around it."""
    spatial = x.ndim - 2
    kernel = weight.numpy().shape[2:]
    strides = node.attribute("strides", [1] * spatial)
    auto = node.attribute("auto_pad", "NOTSET")
    auto = auto.decode() if isinstance(auto, bytes) else auto
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = []
        for extent, k, s, d in zip(x.shape[2:], kernel, strides, _dilations(node, spatial), strict=True):
            total = max(0, (-(-extent // s) - 1) * s + (k - 1) * d + 1 - extent)
            pads.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2))
    else:
        flat = [0] * (2 * spatial) if auto == "VALID" else node.attribute("pads", [0] * (2 * spatial))
        pads = list(zip(flat[:spatial], flat[spatial:], strict=True))
    return np.pad(x, [(0, 0), (0, 0), *pads])


def _stretched(x: np.ndarray, node: Node, weight: Value) -> np.ndarray:
    """The input of a transposed convolution with zeros between and around its positions."""
    spatial = x.ndim - 2
    kernel, dilations = weight.numpy().shape[2:], _dilations(node, spatial)
    strides = [int(s) for s in node.attribute("strides", [1] * spatial)]
    pads = [int(p) for p in node.attribute("pads", [0] * (2 * spatial))]
    extra = [int(p) for p in node.attribute("output_padding", [0] * spatial)]
    wide = np.zeros((*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True))), x.dtype)
    wide[(slice(None), slice(None), *(slice(None, None, s) for s in strides))] = x
    margins = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    around = [
        (m - before, m - after + e)
        for m, before, after, e in zip(margins, pads[:spatial], pads[spatial:], extra, strict=True)
    ]
    padded = np.pad(wide, [(0, 0), (0, 0), *((max(0, a), max(0, b)) for a, b in around)])
    cut = [slice(max(0, -a), padded.shape[2 + i] - max(0, -b)) for i, (a, b) in enumerate(around)]
    return padded[(slice(None), slice(None), *cut)]


def _transposed(w: np.ndarray, groups: int) -> np.ndarray:
    """Weights [inputs, outputs / groups, kernel…] of a transposed convolution as a convolution's, or the reverse."""
    spatial = tuple(range(2, w.ndim))
    parts = np.flip(w, spatial).reshape(groups, w.shape[0] // groups, *w.shape[1:]).swapaxes(1, 2)
    return parts.reshape(groups * w.shape[1], w.shape[0] // groups, *w.shape[2:])
