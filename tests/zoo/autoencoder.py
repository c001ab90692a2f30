"""Autoencoders: a sparse one with its dictionary in both directions, and a convolutional variational one."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported


class Sparse(nn.Module):
    """Features of an activation vector: a bias is subtracted before and added after; tied: one dictionary both ways."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.randn(12))
        self.enter = nn.Linear(12, 48)
        self.dictionary = nn.Parameter(torch.randn(12, 48)) if not tied else None

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.relu(self.enter(x - self.centre))
        back = self.enter.weight.T if self.dictionary is None else self.dictionary
        return nn.functional.linear(features, back) + self.centre, features.sum(-1)


class Variational(nn.Module):
    """Deterministic at inference; the decoder unflattens its code to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU(), nn.Flatten()),
        )
        self.statistics = nn.Linear(12 * 16, 2 * 9)
        self.decoder = nn.Sequential(
            *(nn.Linear(9, 10 * 16), nn.ReLU(), nn.Unflatten(1, (10, 4, 4))),
            *(nn.ConvTranspose2d(10, 14, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(14, 1, 4, 2, 1)),
        )

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        mean, log_variance = self.statistics(self.encoder(x)).chunk(2, 1)
        return self.decoder(mean + torch.exp(0.5 * log_variance) * noise.mean(-1, keepdim=True))


NETWORKS = {
    "sparse": Entry(exported(lambda: Sparse(False), (3, 12)), ("48",)),
    "tied": Entry(exported(lambda: Sparse(True), (3, 12)), ("48",)),
    # A code is a mean and a variance.
    "variational": Entry(
        exported(Variational, (1, 1, 16, 16), (1, 4)),
        ("8", "12", "9", "10", "14"),
        closed="its code is an image of one size, flattened",
    ),
}
