"""Sequences by convolution: temporal convolutional network, WaveNet (Bai et al., 2018; van den Oord et al., 2016)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.entry import Entry, exported


class CausalConv(nn.Conv1d):
    """Pads in the past only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        past = (self.kernel_size[0] - 1) * self.dilation[0]
        return super().forward(functional.pad(x, (past, 0)))


class TemporalBlock(nn.Module):
    """Convolutions whose output is cut to the past, added to what was read."""

    def __init__(self, inputs: int, middle: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        self.first = nn.Conv1d(inputs, middle, 3, padding=2 * dilation, dilation=dilation)
        self.second = nn.Conv1d(middle, outputs, 3, padding=2 * dilation, dilation=dilation)
        self.shortcut = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.first(x)[:, :, : -self.cut])
        y = functional.relu(self.second(y)[:, :, : -self.cut])
        return functional.relu(y + self.shortcut(x))


class TCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        blocks = (TemporalBlock(4, 10, 12, 1), TemporalBlock(12, 14, 12, 2), TemporalBlock(12, 15, 16, 4))
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x)[:, :, -1])


class WaveNet(nn.Module):
    """Gated dilated convolutions; each layer adds to a residual and to a skip stream."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = CausalConv(1, 12, 2)
        self.gated = nn.ModuleList(CausalConv(12, 2 * w, 2, dilation=2**i) for i, w in enumerate((8, 9, 10)))
        self.residuals = nn.ModuleList(nn.Conv1d(w, 12, 1) for w in (8, 9, 10))
        self.skips = nn.ModuleList(nn.Conv1d(w, 18, 1) for w in (8, 9, 10))
        self.leave = nn.Sequential(nn.ReLU(), nn.Conv1d(18, 16, 1), nn.ReLU(), nn.Conv1d(16, 11, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, skip = self.enter(x), 0.0
        for gated, residual, to_skip in zip(self.gated, self.residuals, self.skips, strict=True):
            signal, gate = gated(x).chunk(2, 1)
            z = torch.tanh(signal) * torch.sigmoid(gate)
            skip = skip + to_skip(z)
            x = x + residual(z)
        return self.leave(skip)


NETWORKS = {
    "tcn": Entry(
        exported(TCN, (1, 4, 12)),
        ("10", "12", "14", "15", "16"),
        axes=({2: "time"},),
    ),
    # The last layer's residual goes nowhere.
    "wavenet": Entry(
        exported(WaveNet, (1, 1, 12)),
        ("12", "18", "8", "9", "10", "16"),
        axes=({2: "time"},),
    ),
}
