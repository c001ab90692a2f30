"""The example network to ONNX and back: BatchNorm stays a node, and initializers keep the parameters' names.

So a pruner sees the network as it was trained, and a pruned file can be trained on (`finetune.py`).
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from .model import Net

OPSET = 18


def write_onnx(net: Net, path: str | Path) -> None:
    """Write `net` to `path`: `input [N, 1, 28, 28]` -> `logits [N, 10]`, float32, N free; sets `net` to evaluation.

    Of PyTorch's two exporters, torch.export's folds BatchNorm into the convolutions, or, told not to optimise, leaves
    shape arithmetic around it; TorchScript's keeps one plain node per layer, so that is the one used.
    """
    net.eval()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        exported = Path(folder) / "exported.onnx"
        torch.onnx.export(
            net,
            (torch.zeros(1, 1, 28, 28),),
            exported,
            dynamo=False,
            training=torch.onnx.TrainingMode.EVAL,
            do_constant_folding=False,  # which would fold BatchNorm
            opset_version=OPSET,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
        )
        model = onnx.load(exported)
    _give_every_parameter_its_own_initializer(model.graph)
    model.graph.name = "fashion_cnn"
    for node in model.graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def read_state(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the network's parameters from an ONNX file, by their names; their shapes may be smaller.

    Raises:
        ValueError: if a parameter is missing (a pass such as BatchNorm folding has changed the network's form).
    """
    model = onnx.load(path)
    _give_every_parameter_its_own_initializer(model.graph)
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    names = [name for name in Net().state_dict() if not name.endswith("num_batches_tracked")]
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{path} does not hold the example network as it was trained: {len(missing)} parameters are missing, "
            f"{missing[0]} the first. Prune without folding BatchNorm or renaming constants."
        )
    return {name: torch.from_numpy(np.array(numpy_helper.to_array(found[name]))) for name in names}


def _give_every_parameter_its_own_initializer(graph: onnx.GraphProto) -> None:
    """Undo the exporter's sharing: equal parameters become one initializer and Identity nodes named by the others."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Identity" and node.input[0] in tensors]:
        copy = graph.initializer.add()
        copy.CopyFrom(tensors[node.input[0]])
        copy.name = node.output[0]
        tensors[copy.name] = copy
        graph.node.remove(node)
