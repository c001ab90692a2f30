"""The layers that schedules exist for, described by their shapes alone.

All tensors are float32 and dense; images are NCHW.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from backends.schedules.epilogue import Epilogue
from compiler.errors import SecateurError


@dataclass(frozen=True)
class ConvSpec:
    """x[batch, in_channels, height, width] * w[out_channels, in_channels // groups, *kernel] -> y.

    pads are (top, left, bottom, right).
    """

    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    epilogue: Epilogue = field(default_factory=Epilogue)

    def __post_init__(self) -> None:
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise SecateurError("E_SPEC", f"channels are not a multiple of {self.groups} groups", where=repr(self))
        if min(self.out_height, self.out_width) < 1:
            raise SecateurError("E_SPEC", "the kernel is larger than the padded image", where=repr(self))

    @property
    def out_height(self) -> int:
        """Rows of y."""
        span = self.height + self.pads[0] + self.pads[2] - self.dilations[0] * (self.kernel[0] - 1) - 1
        return span // self.strides[0] + 1

    @property
    def out_width(self) -> int:
        """Columns of y."""
        span = self.width + self.pads[1] + self.pads[3] - self.dilations[1] * (self.kernel[1] - 1) - 1
        return span // self.strides[1] + 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates, padding included."""
        per_output = self.in_channels // self.groups * self.kernel[0] * self.kernel[1]
        return self.batch * self.out_channels * self.out_height * self.out_width * per_output

    @property
    def weights(self) -> int:
        """Elements of w."""
        return self.out_channels * (self.in_channels // self.groups) * self.kernel[0] * self.kernel[1]


@dataclass(frozen=True)
class ConvTransposeSpec:
    """x[batch, in_channels, height, width], w[in_channels, out_channels // groups, *kernel] -> y, transposed.

    pads are (top, left, bottom, right), cut from the full output; output_padding (rows, columns) adds to it.
    """

    batch: int
    in_channels: int
    height: int
    width: int
    out_channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    output_padding: tuple[int, int] = (0, 0)
    groups: int = 1
    epilogue: Epilogue = field(default_factory=Epilogue)

    def __post_init__(self) -> None:
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise SecateurError("E_SPEC", f"channels are not a multiple of {self.groups} groups", where=repr(self))
        if min(self.out_height, self.out_width) < 1:
            raise SecateurError("E_SPEC", "the padding removes the whole output", where=repr(self))

    @property
    def out_height(self) -> int:
        """Rows of y."""
        full = (self.height - 1) * self.strides[0] + self.dilations[0] * (self.kernel[0] - 1) + 1
        return full + self.output_padding[0] - self.pads[0] - self.pads[2]

    @property
    def out_width(self) -> int:
        """Columns of y."""
        full = (self.width - 1) * self.strides[1] + self.dilations[1] * (self.kernel[1] - 1) + 1
        return full + self.output_padding[1] - self.pads[1] - self.pads[3]

    @property
    def macs(self) -> int:
        """Multiply-accumulates, before cutting the pads."""
        per_input = self.out_channels // self.groups * self.kernel[0] * self.kernel[1]
        return self.batch * self.in_channels * self.height * self.width * per_input


@dataclass(frozen=True)
class MatMulSpec:
    """a[batch, m, k] @ b[batch, k, n] -> y[batch, m, n]; an operand without batch is shared by all.

    transpose_a: a is stored [.., k, m]; transpose_b: b is stored [.., n, k]. weight_side names the operand that is
    constant and goes through `pack`; a constant operand has no batch unless its flag says so. The epilogue's bias has
    n elements (m with bias_axis "m"), its residual is like y.
    """

    batch: int
    m: int
    k: int
    n: int
    transpose_a: bool = False
    transpose_b: bool = False
    weight_side: str | None = None
    a_batched: bool = True
    b_batched: bool = True
    epilogue: Epilogue = field(default_factory=Epilogue)
    bias_axis: str = "n"

    def __post_init__(self) -> None:
        if min(self.batch, self.m, self.k, self.n) < 1 or self.weight_side not in (None, "a", "b"):
            raise SecateurError("E_SPEC", "not a matrix product", where=repr(self))
        if self.bias_axis not in ("m", "n"):
            raise SecateurError("E_SPEC", f"bias_axis is '{self.bias_axis}'", where=repr(self), hint="use m or n")

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.batch * self.m * self.k * self.n


@dataclass(frozen=True)
class PoolSpec:
    """A window's maximum or average; kind is "max" or "average", pads are (top, left, bottom, right)."""

    kind: str
    batch: int
    channels: int
    height: int
    width: int
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    count_include_pad: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("max", "average"):
            raise SecateurError("E_SPEC", f"no pooling of kind '{self.kind}'", hint="use max or average")
        if min(self.out_height, self.out_width) < 1:
            raise SecateurError("E_SPEC", "the window is larger than the padded image", where=repr(self))

    @property
    def out_height(self) -> int:
        """Rows of y."""
        return self._size(0, self.height)

    @property
    def out_width(self) -> int:
        """Columns of y."""
        return self._size(1, self.width)

    def _size(self, axis: int, length: int) -> int:
        window = self.dilations[axis] * (self.kernel[axis] - 1) + 1
        span = length + self.pads[axis] + self.pads[axis + 2] - window
        size = span // self.strides[axis] + 1
        if self.ceil_mode and span % self.strides[axis]:
            # A window that would start in the padding after the image is not counted (ONNX, PyTorch).
            size += size * self.strides[axis] < length + self.pads[axis]
        return size

    @property
    def macs(self) -> int:
        """Elements combined, counted as multiply-accumulates are."""
        outputs = self.batch * self.channels * self.out_height * self.out_width
        return outputs * self.kernel[0] * self.kernel[1]
