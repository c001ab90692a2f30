"""A normalising flow (Dinh et al., 2017; Kingma and Dhariwal, 2018): affine coupling, invertible 1x1, squeezing."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported


class AffineCoupling(nn.Module):
    """Half of the channels decide how the other half is scaled and shifted."""

    def __init__(self, channels: int, hidden: tuple[int, int]) -> None:
        super().__init__()
        half = channels // 2
        self.offset, self.scale = nn.Parameter(torch.randn(1, channels, 1, 1)), nn.Parameter(torch.ones(channels))
        self.mix = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])
        self.net = nn.Sequential(
            *(nn.Conv2d(half, hidden[0], 3, padding=1), nn.ReLU(), nn.Conv2d(hidden[0], hidden[1], 1), nn.ReLU()),
            nn.Conv2d(hidden[1], channels, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = (x + self.offset) * self.scale.view(1, -1, 1, 1)
        x = nn.functional.conv2d(x, self.mix[:, :, None, None])
        kept, changed = x.chunk(2, 1)
        log_scale, shift = self.net(kept).chunk(2, 1)
        gate = torch.sigmoid(log_scale + 2)
        return torch.cat([kept, changed * gate + shift], 1), gate.log().flatten(1).sum(1)


class Flow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList([AffineCoupling(12, (24, 20)), AffineCoupling(12, (22, 26))])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = nn.functional.pixel_unshuffle(x, 2)
        log_determinant = torch.zeros(x.shape[0])
        for step in self.steps:
            x, change = step(x)
            log_determinant = log_determinant + change
        return x, log_determinant


NETWORKS = {
    # Between the two mixing convolutions: the 6 channels that are kept, and the 6 that are scaled and shifted; hidden
    # layers. What the second mixing makes is the model's output.
    "glow": Entry(
        exported(Flow, (1, 3, 8, 8)),
        ("6", "6", "24", "20", "22", "26"),
        space_fault="a Flatten that joins channels with symbolic space pins them",
    )
}
