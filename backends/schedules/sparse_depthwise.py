"""A sparse 1x1 convolution and the depthwise convolution after it, as one kernel: what lies between is never stored.

A block of channels of a band of the image is computed into a small buffer on the stack, and the depthwise windows
read it there. Bands are as high as the buffer and the second-level cache, which holds the band's pixels, allow; the
lines that two bands share are computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import tirx

from backends.schedules.depthwise import one_channel
from backends.schedules.emit import LINE, Emitter, Index
from backends.schedules.kernel import Kernel, symbol_for
from backends.schedules.product import array_or_none, divide
from backends.schedules.sparse_conv import SparseConvSpec, store_tile
from backends.schedules.sparse_tiles import FlatTiles
from backends.schedules.sparse_weights import sparse_weights
from backends.schedules.specs import ConvSpec
from backends.schedules.windows_in_place import WindowsInPlace
from backends.target import Target


@dataclass(frozen=True)
class SparseDepthwiseSpec:
    """`first`, a sparse 1x1 convolution of stride 1, then the depthwise convolution `second`."""

    first: SparseConvSpec
    second: ConvSpec

    @property
    def label(self) -> str:
        """The tile in a few words."""
        return self.first.label

    def supported(self, target: Target) -> bool:
        """Whether the kernel can compute this pair."""
        conv, second = self.first.conv, self.second
        plain = self.first.packs and not self.first.packed and conv.groups == 1 and not conv.epilogue.residual
        one_by_one = second.groups == second.in_channels == second.out_channels == conv.out_channels
        if not (plain and one_by_one) or (second.height, second.width) != (conv.height, conv.width):
            return False
        return self.windows(target).applies and self._bytes(1, target) <= target.l1_bytes

    def windows(self, target: Target) -> WindowsInPlace:
        """The depthwise windows."""
        return WindowsInPlace.of(self.second, target)

    def _pitch(self, groups: int, target: Target) -> int:
        """Elements from one channel of the buffer to the next."""
        lanes = max(LINE, target.lanes())
        return -(-self.windows(target).lines(groups) * self.second.width // lanes) * lanes + lanes

    def _bytes(self, groups: int, target: Target) -> int:
        return target.itemsize * self.first.block * self._pitch(groups, target)

    def _room(self, target: Target) -> int:
        """Bytes of the buffer that stay near while a block of channels is written, one after the other read."""
        return target.l1_bytes // (2 if self.first.block == 1 else 4)

    def groups_per_band(self, target: Target) -> int:
        """Groups of depthwise rows in a band."""
        windows, conv = self.windows(target), self.first.conv
        for bands in range(1, windows.groups + 1):
            groups = -(-windows.groups // bands)
            pixels = target.itemsize * conv.in_channels * windows.lines(groups) * conv.width
            if self._bytes(groups, target) <= self._room(target) and pixels <= target.l2_bytes // 2:
                return groups
        return 1

    def bands(self, target: Target) -> int:
        """Bands of an image."""
        return -(-self.windows(target).groups // self.groups_per_band(target))

    def lines(self, target: Target) -> int:
        """Lines of `first` that a band needs."""
        return self.windows(target).lines(self.groups_per_band(target))

    def tiles(self, target: Target) -> FlatTiles:
        """How the pixels of a band are cut."""
        conv = self.first.conv
        pixels, plane = self.lines(target) * conv.width, conv.height * conv.width
        return FlatTiles(pixels, conv.in_channels, self.first.vectors, False, target, plane)

    def pitch(self, target: Target) -> int:
        """Elements from one channel of the buffer to the next."""
        return self._pitch(self.groups_per_band(target), target)


def sparse_depthwise(spec: SparseDepthwiseSpec, target: Target, parallel: bool = False) -> Kernel:
    """y = second(first(x)); parameters x, values, positions, starts, order, bias?, taps, taps_bias?, residual?, y.

    pack(weights[out, in, 1, 1], bias[out], taps[out, 1, kh, kw], taps_bias[out]) encodes what is not zero.
    """
    return _Builder(spec, target, parallel).build()


class _Builder:
    def __init__(self, spec: SparseDepthwiseSpec, target: Target, parallel: bool) -> None:
        self.spec, self.target, self.parallel = spec, target, parallel
        self.conv, self.second = spec.first.conv, spec.second
        self.windows, self.tiles = spec.windows(target), spec.tiles(target)
        self.groups, self.bands = spec.groups_per_band(target), spec.bands(target)
        conv, tiles = self.conv, self.tiles
        self.weights = sparse_weights(
            1, conv.out_channels, conv.in_channels, spec.first, tiles.positions, tiles.unit, by_lane=target.by_lane
        )
        self.slack = max(LINE, target.lanes())

    def build(self) -> Kernel:
        conv, second = self.conv, self.second
        symbol = symbol_for("sparse_depthwise", self.spec, self.target, self.parallel)
        e = Emitter(symbol, self.parallel, self.target.dtype, self.target.max_keeps_nan)
        self.x = e.param("x", conv.batch * conv.in_channels * conv.height * conv.width)
        self.arrays = self.weights.declare(e, conv.epilogue.bias)
        self.w = e.param("taps", second.out_channels * second.kernel[0] * second.kernel[1])
        self.taps_bias = array_or_none(e, second.epilogue.bias, "taps_bias", second.out_channels)
        size = second.batch * second.out_channels * second.out_height * second.out_width
        self.residual = array_or_none(e, second.epilogue.residual, "residual", size)
        self.y = e.param("y", size)
        with e.loop(conv.batch * self.bands * self.weights.blocks, parallel=True) as item:
            place, block = divide(e, item, self.weights.blocks)
            image, band = divide(e, place, self.bands)
            self._block(e, image, band, block)
        return Kernel(symbol, e.finish(), e.roles, 0, self.pack, conv.macs + second.macs)

    def _block(self, e: Emitter, image: Index, band: Index, block: Index) -> None:
        """One block of channels of one band."""
        conv, second, spec = self.conv, self.second, self.spec
        size, pitch = spec.first.block, spec.pitch(self.target)
        lines = spec.lines(self.target)
        first_group = e.let(band * self.groups)
        row = e.let(tirx.min(first_group * self.windows.together, second.out_height - self.windows.together))
        line = e.let(tirx.max(0, tirx.min(row * second.strides[0] - second.pads[0], conv.height - lines)))
        buffer = e.stack(self.slack + size * pitch)
        x_at = e.let(image * (conv.in_channels * conv.height * conv.width) + line * conv.width)
        with e.loop(self.tiles.bands) as tile:
            pixel = self.tiles.first_pixel(e, tile, 0)
            sums = self.arrays.multiply(e, block, self.x, e.let(x_at + pixel), self.tiles.vectors)
            rows_at = [e.let(pixel + (self.slack + r * pitch)) for r in range(size)]
            store_tile(e, conv.epilogue, buffer, None, self.tiles.vectors, sums, rows_at)
        for r in range(size):
            channel = e.let(self.arrays.row(e, block, r))
            taps, by_lane = second.kernel[0] * second.kernel[1], self.target.by_lane
            w_at = e.let(channel * taps)
            ways = one_channel(e, second.epilogue, self.w, w_at, taps, self.taps_bias, channel, self.residual, by_lane)
            at = e.let(self.slack + r * pitch - line * conv.width)
            plane = second.out_height * second.out_width
            y_at = e.let((image * second.out_channels + channel) * plane)
            if self.bands == 1:
                self.windows.compute(e, buffer, at, *ways, self.y, y_at)
            else:
                self.windows.compute_some(e, (first_group, self.groups), buffer, at, *ways, self.y, y_at)

    def pack(
        self,
        weights: np.ndarray,
        bias: np.ndarray | None,
        taps: np.ndarray,
        taps_bias: np.ndarray | None,
    ) -> dict[str, np.ndarray]:
        """The weights and biases of both convolutions as the kernel reads them."""
        conv, second = self.conv, self.second
        matrix = np.asarray(weights, np.float32).reshape(conv.out_channels, conv.in_channels)
        table = np.arange(conv.in_channels)
        full = np.zeros(conv.out_channels, np.float32) if bias is None else bias
        packed = self.weights.pack([matrix], table, full if conv.epilogue.bias else None)
        packed["taps"] = np.ascontiguousarray(taps, np.float32).reshape(-1)
        if second.epilogue.bias:
            full = np.zeros(second.out_channels, np.float32) if taps_bias is None else taps_bias
            packed["taps_bias"] = np.ascontiguousarray(full, np.float32).reshape(-1)
        return packed
