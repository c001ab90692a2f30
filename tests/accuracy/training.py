"""A network trained from scratch, kept in build/; what pruned networks are measured and trained on with.

Where the data lies is told to the processes of a study by environment variables.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compiler import export, load
from compiler.ir import graph_cost
from examples.fashion_mnist.data import load_split, preprocess
from examples.fashion_mnist.train import accuracy, load_tensors, train
from tests.accuracy.networks import NETWORKS

DATA, OTHER = "SECATEUR_ACCURACY_DATA", "SECATEUR_ACCURACY_OTHER"
"""Folders of idx files: Fashion-MNIST, and another data set of the same shape (may be missing)."""
FOLDER = Path(__file__).parents[2] / "build" / "accuracy"
EPOCHS = 5
TEST_IMAGES = 5_000
CALIBRATION_IMAGES = 512
RATES = {"vit": 0.03}
"""The highest learning rate of the training, where it is not 0.1; of the epoch after pruning, a fifth of it."""


def tell(**facts: Any) -> None:
    """Print what was found out, for the process that waits for it."""
    print(json.dumps(facts), flush=True)


@cache
def split(name: str) -> tuple[Tensor, Tensor]:
    """Images and labels of Fashion-MNIST: train or t10k."""
    return load_tensors(os.environ[DATA], name)


def trained(network: str, seed: int) -> nn.Module:
    """The trained network."""
    net = NETWORKS[network]()
    net.load_state_dict(torch.load(path_of(network, seed, "pt"), weights_only=True))
    return net.eval()


def measured(net: nn.Module) -> float:
    """Accuracy on the test images."""
    images, labels = split("t10k")
    return accuracy(net, images[:TEST_IMAGES], labels[:TEST_IMAGES])


def calibration(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Images `float32 [512, 1, 28, 28]`, and labels for data of the network's own kind.

    kind: data (training images), other (of another data set, or, where there is none, white noise over the range of
    the pixels).
    """
    rng = np.random.default_rng(seed)
    if kind == "data":
        images, labels = split("train")
        chosen = rng.permutation(len(images))[:CALIBRATION_IMAGES]
        return images[chosen].numpy(), labels[chosen].numpy()
    if OTHER in os.environ:
        pixels = load_split(os.environ[OTHER], "t10k")[0]
        return preprocess(pixels[rng.permutation(len(pixels))[:CALIBRATION_IMAGES]]), None
    return preprocess(rng.integers(0, 256, (CALIBRATION_IMAGES, 28, 28), np.uint8)), None


def path_of(network: str, seed: int, ending: str) -> Path:
    """Where a trained network lies: its parameters (pt), or the file that a user would have (onnx)."""
    return FOLDER / f"{network}-{seed}.{ending}"


def pruned_path(name: str, factor: float) -> Path:
    """Where a pruned network lies, without its ending."""
    words = "".join(c if c.isalnum() else "-" for c in name)
    return FOLDER / "pruned" / f"{words}-{round(100 * factor)}"


def main(name: str) -> None:
    """Train NETWORK/SEED."""
    network, number = name.split("/")
    seed = int(number)
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net = NETWORKS[network]()
    train(net, *split("train"), epochs=EPOCHS, lr=RATES.get(network, 0.1), seed=seed)
    net.eval()
    (FOLDER / "pruned").mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), path_of(network, seed, "pt"))
    graph = load(net, args=(torch.zeros(2, 1, 28, 28),), dynamic_shapes={"x": {0: "batch"}})
    export(graph, path_of(network, seed, "onnx"), overwrite=True)
    tell(accuracy=measured(net), params=sum(p.numel() for p in net.parameters()), macs=graph_cost(graph).macs)
