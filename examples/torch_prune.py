"""Prune a PyTorch network by its dependency groups in your own training loop: torch in, torch out.

    python -m examples.torch_prune

Needs `pip install "secateur[torch]"`. The network stands in for yours: any nn.Module that torch.export accepts.
"""

from __future__ import annotations

import torch
from torch import nn

from compiler import export, load
from passes import Context, Pipeline


class Network(nn.Module):
    """A residual convolutional network; the sum ties the widths of `stem` and `second` together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(64, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[N, 3, H, W]` -> logits `[N, 10]`."""
        y = self.stem(x)
        return self.head(torch.relu(y + self.second(self.first(y))).mean((2, 3)))


def main() -> None:
    """Train, prune and train on, three times over, with one optimiser and one schedule."""
    torch.manual_seed(0)
    network: nn.Module = Network()
    labels = torch.randint(0, 10, (64,))
    images = torch.randn(10, 3, 1, 1)[labels] + torch.randn(64, 3, 16, 16)  # ten colours in noise
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)

    for epoch in range(40):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if epoch % 10 != 9:
            continue
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
        if epoch < 39:
            # Momentum is cut as the weights are; the module is compared with the pruned graph before it is returned.
            graph = load(network, args=(images,), dynamic_shapes={"x": {0: "batch"}})
            context = Context()
            pruned = Pipeline("simplify,prune(ratio=0.2,metric=params)").run(graph, context)
            network = export(pruned, network, optimizer=optimizer)
            report = context.reports["prune"][-1]
            print(f"  removed {report.reached:.0%} of {report.before.params:,} parameters")
            for change in report.groups:
                print(f"    {change.name}: {change.before} -> {change.after}")
    print(network)


if __name__ == "__main__":
    main()
