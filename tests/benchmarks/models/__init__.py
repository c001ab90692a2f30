"""Whole networks for timing, from their papers, with random weights: the shapes and the operators are the point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx

from tests.benchmarks.models.mobilenet import efficientnet_b0, mobilenet_v1, mobilenet_v2
from tests.benchmarks.models.resnet import resnet18, resnet50
from tests.benchmarks.models.transformers import bert_base, vit_s

__all__ = [
    "NETWORKS",
    "Network",
    "bert_base",
    "efficientnet_b0",
    "mobilenet_v1",
    "mobilenet_v2",
    "resnet18",
    "resnet50",
    "vit_s",
]


@dataclass(frozen=True)
class Network:
    """A network and what is published of it. family: "cnn" are the four whose geometric mean has a target.

    params: parameters that training changes (without BatchNormalization's statistics). macs: multiply-accumulates.
    """

    make: Callable[[], onnx.ModelProto]
    family: str
    params: int
    macs: float


NETWORKS = {
    "MobileNetV1": Network(mobilenet_v1, "cnn", 4_231_976, 569e6),
    "MobileNetV2": Network(mobilenet_v2, "cnn", 3_504_872, 301e6),
    "ResNet-18": Network(resnet18, "cnn", 11_689_512, 1.81e9),
    "ResNet-50": Network(resnet50, "cnn", 25_557_032, 4.09e9),
    "EfficientNet-B0": Network(efficientnet_b0, "other", 5_288_548, 0.39e9),
    "BERT-base": Network(bert_base, "transformer", 109_482_240, 11.2e9),
    "ViT-S": Network(vit_s, "transformer", 22_050_664, 4.6e9),
}
"""Parameters: torchvision's, timm's and transformers' models; multiply-accumulates: the papers and torchvision's table
(BERT: 22.5 billion operations at 128 tokens, Jiao et al. 2020)."""
