"""AlexNet (Krizhevsky et al., 2012), with and without its local response normalisation: Flatten after convolution."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported


class AlexNet(nn.Module):
    def __init__(self, response_norm: bool) -> None:
        super().__init__()
        norm = nn.LocalResponseNorm(5) if response_norm else nn.Identity()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), norm, nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(24, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 20, 3, padding=1), nn.ReLU()),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            *(nn.Dropout(), nn.Linear(20 * 2 * 2, 48), nn.ReLU()),
            *(nn.Dropout(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 10)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


NETWORKS = {
    "alexnet": Entry(
        exported(lambda: AlexNet(False), (1, 3, 32, 32)),
        expected=("16", "24", "32", "20", "48", "40"),
        closed="its classifier reads an image of one size, flattened",
    ),
    "alexnet_lrn": Entry(
        exported(lambda: AlexNet(True), (1, 3, 32, 32)),
        expected=("24", "32", "20", "48", "40"),  # LRN orders the first 16,
        closed="its classifier reads an image of one size, flattened",
    ),
}
