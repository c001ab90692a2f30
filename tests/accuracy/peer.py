"""The peer's side: Torch-Pruning on the same trained networks, brought to the same multiply-accumulates.

Torch-Pruning (Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900) takes a share of
channels, not of work: the share that gives the wanted work is found by bisection, and only one pruning is timed.
Afterwards BatchNorm statistics are estimated anew on the same images that our criteria are given.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from tests.accuracy.networks import Block
from tests.accuracy.ours import RATIOS
from tests.accuracy.training import calibration, measured, pruned_path, tell, trained

METHODS: Mapping[str, Callable[[], Any]] = {
    "Torch-Pruning, magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=1),
    "Torch-Pruning, Taylor": lambda: tp.importance.GroupTaylorImportance(),
    "Torch-Pruning, BN scale": lambda: tp.importance.BNScaleImportance(),
}
BATCH = 32
HALVINGS = 8


def macs(net: nn.Module) -> float:
    """Multiply-accumulates of one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 1, 28, 28))
    return counter.get_total_flops() / 2


def prune(net: nn.Module, method: str, share: float, images: Tensor, labels: Tensor) -> tuple[nn.Module, float]:
    """A copy without `share` of each layer's channels, and the seconds of processor time that it took."""
    net = copy.deepcopy(net)
    start = time.process_time()
    pruner = tp.pruner.BasePruner(
        net,
        example_inputs=torch.zeros(1, 1, 28, 28),
        importance=METHODS[method](),
        pruning_ratio=share,
        ignored_layers=[net.head],
        num_heads={block.qkv: block.heads for block in net.modules() if isinstance(block, Block)},
    )
    if "Taylor" in method:
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            (functional.cross_entropy(net(x), y) * len(x) / len(images)).backward()
    pruner.step()
    net.zero_grad()
    return net, time.process_time() - start


def recalibrate(net: nn.Module, images: Tensor) -> None:
    """Estimate BatchNorm's statistics anew, as the mean over batches."""
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
    net.train()
    with torch.no_grad():
        for x in images.split(BATCH):
            net(x)
    net.eval()
    for norm in norms:
        norm.momentum = 0.1


def main(name: str) -> None:
    """Prune NETWORK/SEED/METHOD at each ratio."""
    network, number, method = name.split("/")
    torch.set_num_threads(1)
    seed = int(number)
    net = trained(network, seed)
    pixels, answers = calibration("data", seed)
    images, labels = torch.from_numpy(pixels), torch.from_numpy(answers)
    before = macs(net)
    found: dict[str, dict[str, float]] = {}
    for factor in RATIOS:
        low, high, tried = 0.0, 1.0, []
        for _ in range(HALVINGS):
            share = (low + high) / 2
            pruned, seconds = prune(net, method, share, images, labels)
            reached = before / macs(pruned)
            tried.append((abs(reached - factor), reached, seconds, pruned))
            low, high = (share, high) if reached < factor else (low, share)
        _, reached, seconds, pruned = min(tried, key=lambda t: t[0])
        recalibrate(pruned, images)
        torch.save(pruned, pruned_path(name, factor).with_suffix(".pt"))
        found[f"{factor:g}"] = {"reached": reached, "seconds": seconds, "accuracy": measured(pruned)}
        tell(found=found)
