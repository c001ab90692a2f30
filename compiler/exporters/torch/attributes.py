"""What the layers of torch.nn say about the shapes of their own tensors, one rule a family.

Most forwards read some of it (`groups`, `normalized_shape`, `num_heads`), and all of it is printed and saved.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from compiler.ir import Node

Rule = Callable[[Any, list[Node]], dict[str, Any]]
"""(the layer, with its new tensors; the nodes that its forward made) -> the attributes and their values."""

RULES: dict[type[nn.Module], Rule] = {}

_R = TypeVar("_R", bound=Rule)


def attribute_rule(*types: type[nn.Module]) -> Callable[[_R], _R]:
    """Register the rule of these classes and of what derives from them."""

    def register(rule: _R) -> _R:
        RULES.update(dict.fromkeys(types, rule))
        return rule

    return register


def attributes_of(module: nn.Module, nodes: list[Node]) -> dict[str, Any]:
    """The attributes that a layer should have; none for modules that say nothing about shapes."""
    rule = next((RULES[kind] for kind in type(module).__mro__ if kind in RULES), None)
    return {} if rule is None else rule(module, nodes)


def _attribute(nodes: list[Node], ops: tuple[str, ...], name: str, default: Any) -> Any:
    return next((n.attribute(name, default) for n in nodes if n.op in ops), default)


def _shape(tensor: Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tuple(tensor.shape)


@attribute_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def _convolution(layer: nn.Conv2d, nodes: list[Node]) -> dict[str, Any]:
    groups = _attribute(nodes, ("Conv",), "group", layer.groups)
    outputs, inputs = layer.weight.shape[:2]
    return {"groups": groups, "in_channels": inputs * groups, "out_channels": outputs}


@attribute_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def _transposed_convolution(layer: nn.ConvTranspose2d, nodes: list[Node]) -> dict[str, Any]:
    groups = _attribute(nodes, ("ConvTranspose",), "group", layer.groups)
    inputs, outputs = layer.weight.shape[:2]
    return {"groups": groups, "in_channels": inputs, "out_channels": outputs * groups}


@attribute_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
@attribute_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _batch_norm(layer: nn.BatchNorm2d, nodes: list[Node]) -> dict[str, Any]:
    shape = _shape(layer.weight) or _shape(layer.running_mean)
    return {"num_features": shape[0]} if shape else {}


@attribute_rule(nn.LayerNorm, nn.RMSNorm)
def _layer_norm(layer: nn.LayerNorm, nodes: list[Node]) -> dict[str, Any]:
    if layer.weight is not None:
        return {"normalized_shape": _shape(layer.weight)}
    for node in nodes:
        x = node.inputs[0]
        if node.op in ("LayerNormalization", "RMSNormalization") and x is not None and x.shape is not None:
            sizes = x.shape[-len(layer.normalized_shape) :]
            if all(isinstance(d, int) for d in sizes):
                return {"normalized_shape": tuple(sizes)}
    return {}


@attribute_rule(nn.GroupNorm)
def _group_norm(layer: nn.GroupNorm, nodes: list[Node]) -> dict[str, Any]:
    groups = {"num_groups": _attribute(nodes, ("GroupNormalization",), "num_groups", layer.num_groups)}
    return groups | ({"num_channels": layer.weight.shape[0]} if layer.weight is not None else {})


@attribute_rule(nn.Linear)
def _linear(layer: nn.Linear, nodes: list[Node]) -> dict[str, Any]:
    outputs, inputs = layer.weight.shape
    return {"in_features": inputs, "out_features": outputs}


@attribute_rule(nn.Bilinear)
def _bilinear(layer: nn.Bilinear, nodes: list[Node]) -> dict[str, Any]:
    outputs, first, second = layer.weight.shape
    return {"in1_features": first, "in2_features": second, "out_features": outputs}


@attribute_rule(nn.PReLU)
def _prelu(layer: nn.PReLU, nodes: list[Node]) -> dict[str, Any]:
    return {"num_parameters": layer.weight.shape[0]}


@attribute_rule(nn.Embedding, nn.EmbeddingBag)
def _embedding(layer: nn.Embedding, nodes: list[Node]) -> dict[str, Any]:
    rows, width = layer.weight.shape
    return {"num_embeddings": rows, "embedding_dim": width}


@attribute_rule(nn.RNNBase)
def _recurrent(layer: nn.RNNBase, nodes: list[Node]) -> dict[str, Any]:
    gates, inputs = layer.get_parameter("weight_ih_l0").shape
    blocks = {"LSTM": 4, "GRU": 3}.get(layer.mode, 1)
    sizes: dict[str, Any] = {"input_size": inputs, "hidden_size": gates // blocks}
    if layer.proj_size:
        sizes["proj_size"] = layer.get_parameter("weight_hr_l0").shape[0]
    # forward reads its weights from this list.
    sizes["_flat_weights"] = [getattr(layer, name, None) for name in layer._flat_weights_names]
    return sizes


@attribute_rule(nn.RNNCellBase)
def _recurrent_cell(layer: nn.RNNCell, nodes: list[Node]) -> dict[str, Any]:
    return {"input_size": layer.weight_ih.shape[1], "hidden_size": layer.weight_hh.shape[1]}


@attribute_rule(nn.MultiheadAttention)
def _attention(layer: nn.MultiheadAttention, nodes: list[Node]) -> dict[str, Any]:
    width, inner = layer.out_proj.weight.shape
    sizes: dict[str, Any] = {"embed_dim": width}
    if inner % layer.head_dim == 0:  # whole heads went
        heads = inner // layer.head_dim
    elif inner % layer.num_heads == 0:  # each became narrower
        heads = layer.num_heads
    else:
        return sizes
    sizes |= {"num_heads": heads, "head_dim": inner // heads}
    if layer.in_proj_weight is not None:
        return sizes | {"kdim": layer.in_proj_weight.shape[1], "vdim": layer.in_proj_weight.shape[1]}
    return sizes | {"kdim": layer.k_proj_weight.shape[1], "vdim": layer.v_proj_weight.shape[1]}


@attribute_rule(nn.Unflatten)
def _unflatten(layer: nn.Unflatten, nodes: list[Node]) -> dict[str, Any]:
    shape = next((n.outputs[0].shape for n in nodes if n.op == "Reshape"), None)
    if shape is None or not isinstance(layer.dim, int):
        return {}
    first = layer.dim % (len(shape) - len(layer.unflattened_size) + 1)
    sizes = shape[first : first + len(layer.unflattened_size)]
    return {"unflattened_size": tuple(sizes)} if all(isinstance(d, int) for d in sizes) else {}
