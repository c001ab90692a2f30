"""One epoch of training after pruning, on a part of the training images."""

from __future__ import annotations

import torch
from torch import nn

from compiler import load
from compiler.exporters import to_module
from examples.fashion_mnist.train import train
from tests.accuracy.training import RATES, measured, pruned_path, split, tell

IMAGES = 10_000
"""Images of the epoch."""


def pruned_module(name: str, factor: float) -> nn.Module:
    """What NETWORK/SEED/METHOD left: from the file that we wrote, or the module that the peer pruned."""
    path = pruned_path(name, factor)
    if path.with_suffix(".onnx").exists():
        return to_module(load(path.with_suffix(".onnx")))
    return torch.load(path.with_suffix(".pt"), weights_only=False)


def main(name: str) -> None:
    """Tune NETWORK/SEED/METHOD/FACTOR."""
    pruned, _, factor = name.rpartition("/")
    network, number, _ = pruned.split("/")
    torch.set_num_threads(1)
    seed = int(number)
    net = pruned_module(pruned, float(factor))
    images, labels = split("train")
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:IMAGES]
    train(net, images[chosen], labels[chosen], epochs=1, lr=RATES.get(network, 0.1) / 5, warmup=0.1, seed=seed)
    tell(accuracy=measured(net))
