"""The example network: a residual stage and an inverted-residual stage, with a width argument for every layer.

It holds, small, the three couplings that structured pruning has to get right: residual additions (He et al. 2015,
https://arxiv.org/abs/1512.03385), depthwise convolutions (Sandler et al. 2018, https://arxiv.org/abs/1801.04381),
and a flattened head. Widths are free, so that a pruned checkpoint can be rebuilt and trained on.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# One entry per group of coupled channels. Layers that meet in an addition share one.
WIDTHS: Mapping[str, int] = {
    "stem": 16,
    "block1.mid": 24,
    "stage1": 32,  # block1 and its projection, block2
    "block2.mid": 32,
    "block3.expand": 160,
    "stage2": 96,  # block3, block4, block5
    "block4.expand": 288,
    "block5.expand": 288,
    "head": 288,
}

# The parameter whose first axis tells each width.
_WIDTH_FROM: Mapping[str, str] = {
    "stem": "stem.conv.weight",
    "block1.mid": "block1.conv1.weight",
    "stage1": "block1.conv2.weight",
    "block2.mid": "block2.conv1.weight",
    "block3.expand": "block3.expand.conv.weight",
    "stage2": "block3.project.conv.weight",
    "block4.expand": "block4.expand.conv.weight",
    "block5.expand": "block5.expand.conv.weight",
    "head": "head.conv.weight",
}


class ConvBN(nn.Module):
    """Convolution, batch normalisation and, unless `relu` is false, a ReLU; padded to keep the spatial size."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(cout)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """`[N, cin, H, W]` -> `[N, cout, H / stride, W / stride]`."""
        y = self.bn(self.conv(x))
        return torch.relu(y) if self.relu else y


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 projection where the shape changes."""

    def __init__(self, cin: int, mid: int, cout: int, stride: int = 1, project: bool = False):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, mid, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, cout, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(cout)
        self.shortcut = ConvBN(cin, cout, 1, stride, relu=False) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """`[N, cin, H, W]` -> `[N, cout, H / stride, W / stride]`."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, linear 1x1 projection; added to its input where `residual` is true."""

    def __init__(self, cin: int, expand: int, cout: int, stride: int = 1, residual: bool = True):
        super().__init__()
        self.expand = ConvBN(cin, expand, 1)
        self.depthwise = ConvBN(expand, expand, 3, stride, groups=expand)
        self.project = ConvBN(expand, cout, 1, relu=False)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """`[N, cin, H, W]` -> `[N, cout, H / stride, W / stride]`."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class Net(nn.Module):
    """The network: normalised images `[N, 1, 28, 28]` -> logits `[N, 10]`.

    Args:
        widths: channels per group, by the names in `WIDTHS`; those left out keep their default.

    Raises:
        ValueError: if `widths` has an unknown name or a width below 1.
    """

    def __init__(self, widths: Mapping[str, int] | None = None):
        super().__init__()
        unknown = sorted(set(widths or ()) - set(WIDTHS))
        if unknown:
            raise ValueError(f"unknown widths {unknown}; the names are {list(WIDTHS)}")
        w = {**WIDTHS, **(widths or {})}
        if min(w.values()) < 1:
            raise ValueError(f"widths must be at least 1, got {w}")
        self.widths = w
        self.stem = ConvBN(1, w["stem"], 3)
        self.block1 = BasicBlock(w["stem"], w["block1.mid"], w["stage1"], stride=2, project=True)
        self.block2 = BasicBlock(w["stage1"], w["block2.mid"], w["stage1"])
        self.block3 = InvertedResidual(w["stage1"], w["block3.expand"], w["stage2"], stride=2, residual=False)
        self.block4 = InvertedResidual(w["stage2"], w["block4.expand"], w["stage2"])
        self.block5 = InvertedResidual(w["stage2"], w["block5.expand"], w["stage2"])
        self.head = ConvBN(w["stage2"], w["head"], 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(w["head"], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images `[N, 1, 28, 28]` -> logits `[N, 10]`."""
        x = self.block2(self.block1(self.stem(x)))
        x = self.block5(self.block4(self.block3(x)))
        return self.classifier(self.pool(self.head(x)).flatten(1))

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Net:
        """Rebuild a network of any widths from its parameters, which tell the widths by their shapes.

        Raises:
            KeyError: if a parameter that tells a width is missing.
            RuntimeError: if the parameters do not fit together (PyTorch's message names each one).
        """
        missing = [name for name in _WIDTH_FROM.values() if name not in state]
        if missing:
            raise KeyError(f"not a state of this network: it has no {', '.join(missing)}")
        net = cls({width: state[name].shape[0] for width, name in _WIDTH_FROM.items()})
        # A model file has no use for num_batches_tracked; it matters only to BatchNorm without momentum.
        counters = {k: v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")}
        net.load_state_dict({**counters, **state})
        return net
