"""torch -> prune -> torch -> ONNX equals torch -> ONNX -> prune, and the module that comes back trains.

Here for the networks of the zoo that ask most of the write-back; `make conformance` does the same for all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compiler.exporters import export
from compiler.frontends import load
from compiler.ir import Graph
from compiler.ir.execute import execute, relative_difference
from passes import Context, Pipeline
from tests.zoo.entry import zoo

TOLERANCE = 1e-4
SAMPLE = {
    "bert.bert": "positions picked from a table",
    "detr.detr": "queries that are weights, projected by weights",
    "gpt.gpt2": "an embedding tied to the output",
    "llama.llama": "tables of angles that layers share, cut to the tokens at hand",
    "mobilenet.v3": "plain layers",
    "swin.swin": "a table of relative positions, and a mask",
    "table_structure.tableformer": "a packed projection split in two",
    "tagger.lstm": "recurrent layers",
}


@pytest.mark.parametrize("name", SAMPLE)
def test_round_trip(name: str, tmp_path: Path) -> None:
    check_round_trip(name, tmp_path)


def check_round_trip(name: str, folder: Path) -> None:
    entry = zoo()[name]
    module, arguments = entry.build.made()
    graph = load(module, args=arguments)
    passes = Pipeline(f"simplify(weights=false),prune(ratio={entry.ratio},metric=params)")
    pruned = passes.run(graph, Context())
    result = export(pruned, module).eval()
    assert dict(result.named_parameters()).keys() <= dict(module.named_parameters()).keys()
    assert parameters(result) < (1 - 0.8 * entry.ratio) * parameters(module)

    expected = outputs(pruned, arguments)
    by_file = passes.run(load(export(graph, folder / "net.onnx")[0]), Context())
    again = load(result, args=arguments)
    found = [leaf.detach().numpy() for leaf in torch.utils._pytree.tree_leaves(result(*arguments))]
    assert relative_difference(dict(enumerate(found)), expected) <= TOLERANCE
    for other in (by_file, again):
        assert relative_difference(outputs(other, arguments), expected) <= TOLERANCE
    for layer in result.modules():
        check_attributes(layer)

    losses = torch.utils._pytree.tree_leaves(result.train()(*arguments))
    optimizer = torch.optim.SGD(result.parameters(), lr=1e-3)
    sum(leaf.square().mean() for leaf in losses if leaf.is_floating_point()).backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in result.parameters())
    optimizer.step()


def outputs(graph: Graph, arguments: tuple[torch.Tensor, ...]) -> dict[int, np.ndarray]:
    """The results by position: names differ between the roads."""
    data = {v.name: a.numpy() for v, a in zip(graph.inputs, arguments, strict=True)}
    return dict(enumerate(execute(graph, data).values()))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def check_attributes(layer: nn.Module) -> None:
    """What a layer says of its size is what its tensors have."""
    match layer:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            assert tuple(layer.weight.shape[:2]) == (layer.out_channels, layer.in_channels // layer.groups)
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            assert tuple(layer.weight.shape[:2]) == (layer.in_channels, layer.out_channels // layer.groups)
        case nn.Linear():
            assert tuple(layer.weight.shape) == (layer.out_features, layer.in_features)
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d():
            assert layer.running_var is not None and len(layer.running_var) == layer.num_features
        case nn.LayerNorm():
            assert layer.weight is None or tuple(layer.weight.shape) == tuple(layer.normalized_shape)
        case nn.GroupNorm():
            assert layer.weight is None or len(layer.weight) == layer.num_channels
        case nn.Embedding():
            assert tuple(layer.weight.shape) == (layer.num_embeddings, layer.embedding_dim)
        case nn.MultiheadAttention():
            assert layer.out_proj.weight.shape == (layer.embed_dim, layer.num_heads * layer.head_dim)
        case nn.RNNBase():
            assert layer.get_parameter("weight_hh_l0").shape[1] == layer.hidden_size
