"""The models of torchvision.models with random weights, each with small example inputs that its architecture allows."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from inspect import signature
from typing import Any

import tests.torchvision.operators  # noqa: F401  (before torchvision)

# isort: split
import torch
from torch import nn
from torchvision.models import get_model, get_model_builder, list_models

DETECTORS = ("*rcnn*", "retinanet*", "fcos*", "ssd*")


@dataclass(frozen=True)
class Recipe:
    """Shapes of the inputs and options of the constructor.

    listed: the inputs go in as a list of images. lists: the model splits tensors into lists, which the TorchScript
    exporter leaves as they are, so that no axis can be followed through them.
    """

    shapes: tuple[tuple[int, ...], ...] = ((1, 3, 64, 64),)
    options: dict[str, Any] = field(default_factory=dict)
    listed: bool = False
    lists: bool = False


_SMALL_IMAGES = {"min_size": 128, "max_size": 160}
_FEW_BOXES = {"rpn_post_nms_top_n_test": 40, "box_score_thresh": 0.0, "box_detections_per_img": 20}

_RECIPES: tuple[tuple[str, Recipe], ...] = (
    ("alexnet", Recipe(((1, 3, 224, 224),))),  # the exporter needs pooled sizes that divide what is pooled
    ("vgg*", Recipe(((1, 3, 224, 224),))),
    ("*googlenet", Recipe(options={"aux_logits": False})),
    ("*inception_v3", Recipe(((1, 3, 96, 96),), {"aux_logits": False})),
    ("vit_h_14", Recipe(((1, 3, 56, 56),), {"image_size": 56})),
    ("vit_*", Recipe(options={"image_size": 64})),
    ("maxvit_t", Recipe(((1, 3, 224, 224),))),
    ("swin_v2_*", Recipe(((1, 3, 256, 256),))),
    ("swin3d_*", Recipe(((1, 3, 8, 112, 112),))),
    ("swin_*", Recipe(((1, 3, 224, 224),))),
    ("mvit_*", Recipe(((1, 3, 16, 224, 224),), lists=True)),
    ("s3d", Recipe(((1, 3, 16, 224, 224),))),
    *((name, Recipe(((1, 3, 8, 64, 64),))) for name in ("r3d_18", "mc3_18", "r2plus1d_18")),
    ("raft_*", Recipe(((1, 3, 128, 128), (1, 3, 128, 128)))),
    ("ssd*", Recipe(((3, 128, 160),), listed=True)),
    ("*rcnn*", Recipe(((3, 128, 160),), {**_SMALL_IMAGES, **_FEW_BOXES}, listed=True)),
    *((name, Recipe(((3, 128, 160),), _SMALL_IMAGES, listed=True)) for name in ("retinanet*", "fcos*")),
    ("*", Recipe()),
)


def names() -> list[str]:
    """Every model that torchvision registers."""
    return list_models()


def recipe(name: str) -> Recipe:
    """The first recipe whose pattern fits."""
    return next(found for pattern, found in _RECIPES if fnmatchcase(name, pattern))


def build(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The model in evaluation mode, the same one every time, and its arguments."""
    made = recipe(name)
    torch.set_num_threads(1)
    torch.manual_seed(zlib.crc32(name.encode()))
    # A detector's backbone has weights of its own, which would be downloaded.
    own = {"weights_backbone": None} if "weights_backbone" in signature(get_model_builder(name)).parameters else {}
    model = get_model(name, weights=None, **own, **made.options).eval()
    _tell_channels_apart(model)
    arguments = tuple(torch.randn(shape) for shape in made.shapes)
    return model, (list(arguments),) if made.listed else arguments


def is_detector(name: str) -> bool:
    """True for models whose outputs are as many boxes as they find."""
    return any(fnmatchcase(name, pattern) for pattern in DETECTORS)


def _tell_channels_apart(model: nn.Module) -> None:
    """Give tensors that an initialiser fills with one value (scales, biases, zeroed heads) values of their own."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point() or tensor.numel() < 2 or tensor.min() != tensor.max():
                continue
            leaf = name.rsplit(".", 1)[-1]
            if leaf in ("running_var", "layer_scale") or (leaf == "weight" and tensor.dim() == 1):
                tensor.uniform_(0.5, 1.5)
            else:
                tensor.normal_(0, 0.1)
