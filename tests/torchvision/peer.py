"""The peer's side: prune the same model with Torch-Pruning as its documentation says.

Torch-Pruning (Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, arXiv:2301.12900). The settings are
those of its own torchvision example (github.com/VainF/Torch-Pruning, examples/torchvision_models) and of its
transformer examples: half of the channels of each layer, layers that make outputs spared, heads told per attention
module, and attributes that torchvision's forward reads set again after pruning.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from typing import Any

from tests.torchvision.models import build
from tests.torchvision.ours import first_line, tell

# isort: split
import torch
import torch_pruning as tp
from torch import nn
from torchvision.models.maxvit import RelativePositionalMultiHeadAttention
from torchvision.models.swin_transformer import ShiftedWindowAttention
from torchvision.models.video.mvit import MultiscaleAttention
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d
from torchvision.models.vision_transformer import VisionTransformer

CHANNELS = 0.5
ENOUGH = 0.2
"""The share of parameters that must go for a pruning to count."""


def spared(name: str, model: Any, *, fewest: bool) -> Iterator[nn.Module]:
    """The layers that make outputs, as its example spares them; for models that it does not list, by the same idea.

    fewest: where its example spares whole parts of a network, little more than the layers that make its outputs.
    """
    for module in model.modules():
        width = getattr(module, "out_features", getattr(module, "out_channels", None))
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and width in (1000, 400):
            yield module
    if name.startswith(("deeplab", "fcn")):
        yield model.classifier[-1]
    if name.startswith("lraspp"):
        yield from (model.classifier.low_classifier, model.classifier.high_classifier)
    if name.startswith("ssd"):
        yield model.head
    if name.startswith("raft"):
        yield from _spared_in_raft(model, fewest)
    if "rcnn" in name:
        yield from _spared_in_rcnn(name, model, fewest)
    if name.startswith(("fcos", "retinanet")):
        yield from (model.head.classification_head.cls_logits, model.head.regression_head.bbox_reg)
    if name.startswith("fcos"):
        yield model.head.regression_head.bbox_ctrness


def _spared_in_raft(model: Any, fewest: bool) -> Iterator[nn.Module]:
    if fewest:
        yield model.update_block.flow_head.conv2
    else:
        yield from (model.corr_block, model.update_block)
    if model.mask_predictor is not None:
        yield model.mask_predictor


def _spared_in_rcnn(name: str, model: Any, fewest: bool) -> Iterator[nn.Module]:
    yield from (model.rpn.head.cls_logits, model.rpn.head.bbox_pred)
    parts = model.roi_heads
    if fewest:
        predictors = (model.backbone.fpn, parts.box_predictor, parts.mask_predictor, parts.keypoint_predictor)
        yield from (p for p in predictors if p is not None)
    elif "fasterrcnn" in name:
        yield from (model.backbone.fpn, parts)
    elif "keypointrcnn" in name:
        yield from (model.backbone.fpn.layer_blocks, parts.box_head, parts.box_predictor, parts.keypoint_predictor)
    else:
        yield from (parts.box_predictor, parts.mask_predictor)


def heads(model: nn.Module) -> dict[nn.Module, int]:
    """How many heads the layers that make queries, keys and values have."""
    found: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            found[module] = module.num_heads
        elif isinstance(module, ShiftedWindowAttention | ShiftedWindowAttention3d | MultiscaleAttention):
            found[module.qkv] = module.num_heads
        elif isinstance(module, RelativePositionalMultiHeadAttention):
            found[module.to_qkv] = module.n_heads
    return found


def set_widths(model: nn.Module, num_heads: dict[nn.Module, int]) -> None:
    """Attributes that torchvision's forward takes its widths from."""
    if isinstance(model, VisionTransformer):
        model.hidden_dim = model.conv_proj.out_channels
    for module in model.modules():
        if isinstance(module, MultiscaleAttention):
            module.num_heads = num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
            module.output_dim = module.head_dim * module.num_heads
        elif isinstance(module, RelativePositionalMultiHeadAttention):
            module.n_heads = num_heads[module.to_qkv]
            module.head_dim = module.to_qkv.out_features // (3 * module.n_heads)


def shapes(outputs: Any) -> list[tuple[int, ...]]:
    """Of each tensor among the outputs; how many boxes a detector finds is left out."""
    boxes = isinstance(outputs, list) and bool(outputs) and isinstance(outputs[0], dict)
    return [tuple(o.shape)[boxes:] for o in tp.utils.flatten_as_list(outputs)]


def prune(name: str, *, fewest: bool = False) -> str:
    """Tell how far it gets; returns why it does not pass, if so."""
    model, arguments = build(name)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    with torch.no_grad():
        expected = shapes(model(*arguments))
    before = tp.utils.count_params(model)
    tell(step="building the dependency graph")
    start = time.process_time()
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs=arguments,
        importance=tp.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=CHANNELS,
        iterative_steps=1,
        ignored_layers=list(spared(name, model, fewest=fewest)),
        num_heads=heads(model),
    )
    tell(graph_seconds=time.process_time() - start, step="pruning")
    pruner.step()
    gone = 1 - tp.utils.count_params(model) / before
    set_widths(model, pruner.num_heads)
    tell(prune_seconds=time.process_time() - start, gone=gone, step="running the pruned model")
    with torch.no_grad():
        found = shapes(model(*arguments))
    if found != expected:
        return "the shapes of the outputs changed"
    if gone < ENOUGH:
        return f"only {gone:.1%} of the parameters went"
    tell(passed=True, step="exporting the pruned model")
    tell(exports=_exports(model, arguments))
    return ""


def _exports(model: nn.Module, arguments: tuple[Any, ...]) -> bool:
    try:
        torch.onnx.export(model, arguments, io.BytesIO(), dynamo=False, training=torch.onnx.TrainingMode.EVAL)
    except Exception:
        return False
    return True


def main(name: str) -> None:
    """What it raises is the model's failure, not the run's. Where its example spares much, sparing less may do."""
    failures = []
    for fewest in (False, True) if name.startswith("raft") or "rcnn" in name else (False,):
        try:
            failure = prune(name, fewest=fewest)
        except Exception as error:  # whatever it meets
            failure = f"{type(error).__name__}: {first_line(error)}"
        if not failure:
            return
        failures.append(failure)
    tell(failure="; sparing less: ".join(failures))
