"""Networks that decide at run time: an image classifier of adaptive depth, and a recurrent cell stepped by a loop.

Scripted, so that the exporter makes Loop and If of the loops and branches; what crosses their boundary is fixed.
"""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported


class Bottleneck(nn.Module):
    """A residual block with a depthwise convolution."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.up, self.norm = nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.down = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.depthwise(torch.relu(self.norm(self.up(x))))))


class Adaptive(nn.Module):
    """Refines a feature map until it is confident, by two blocks in turns, and picks one of two classifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.even, self.odd = Bottleneck(16, 40), Bottleneck(16, 32)
        self.small = nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 12))
        self.large = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 12))
        self.hidden, self.classes = nn.Linear(12, 28), nn.Linear(28, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(torch.relu(self.first(x)))
        step = 0
        while bool(x.abs().mean() < 100.0) and step < 3:
            x = self.even(x) if step % 2 == 0 else self.odd(x)
            step += 1
        pooled = x.mean((2, 3))
        y = self.small(pooled) if bool(pooled.max() > 1.0) else self.large(pooled)
        return self.classes(torch.relu(self.hidden(y)))


class Stepped(nn.Module):
    """A gated recurrence whose update is a perceptron, one step of the sequence at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.gate = nn.Linear(20, 48), nn.Linear(48, 12), nn.Linear(20, 12)
        self.hidden, self.tags = nn.Linear(12, 24), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(x.size(1), 12)
        for t in range(x.size(0)):
            both = torch.cat([x[t], state], 1)
            gate = torch.sigmoid(self.gate(both))
            state = gate * state + (1 - gate) * self.down(torch.tanh(self.up(both)))
        return self.tags(torch.relu(self.hidden(state)))


NETWORKS = {
    # Before the loop, one block of each parity, the hidden layer of each classifier and of what follows them. The
    # sixteen channels of the state and the twelve that a branch gives out stay.
    "adaptive": Entry(
        exported(lambda: torch.jit.script(Adaptive()), (1, 3, 12, 12)), ("24", "40", "32", "20", "48", "28")
    ),
    # The update's hidden layer and the head's; state and gate stay.
    "stepped": Entry(exported(lambda: torch.jit.script(Stepped()), (4, 1, 8)), ("48", "24")),
}
