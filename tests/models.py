"""Networks for tests: the nine that onnx ships, with weights that a pruner can tell apart."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

_LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"

LIGHT_MODELS = tuple(sorted(p.stem.removeprefix("light_") for p in _LIGHT.glob("light_*.onnx")))
"""bvlc_alexnet, densenet121, inception_v1, inception_v2, resnet50, shufflenet, squeezenet, vgg19, zfnet512."""

SMALL_LIGHT_MODELS = ("densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet")
"""Those of less than 110 MB."""

LONG_LIGHT_MODELS = ("vgg19", "zfnet512")
"""Those of hundreds of MB in fully connected layers; bvlc_alexnet is of their kind, and smaller."""


_PER_CHANNEL = ("BatchNormalization", "Mul", "Add")

_made: dict[str, onnx.ModelProto] = {}


def light_path(name: str) -> Path:
    """The file of one of LIGHT_MODELS; its weights are made by ConstantOfShape nodes, all equal."""
    return _LIGHT / f"light_{name}.onnx"


def light_model(name: str, randomize: bool = True) -> onnx.ModelProto:
    """One of LIGHT_MODELS. randomize: its weights become random initializers, the same ones every time.

    Convolutions and fully connected layers are He-scaled; BatchNormalization and per-channel scales lie
    around 1, variances are positive, residual branches and classifiers are damped. So activations stay of
    order 1 through the whole network and no softmax saturates.
    """
    model = onnx.load(light_path(name))
    if not randomize:
        return model
    if name not in _made:
        _randomize(model)
        if name not in SMALL_LIGHT_MODELS:
            return model
        _made[name] = model
    copy = onnx.ModelProto()
    copy.CopyFrom(_made[name])
    return copy


def _randomize(model: onnx.ModelProto) -> None:
    graph = model.graph
    shapes = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made = {n.output[0]: shapes[n.input[0]] for n in graph.node if n.op_type == "ConstantOfShape"}
    roles = _roles(graph)
    nodes = [n for n in graph.node if n.output[0] not in made]
    read = {name for n in nodes for name in n.input}
    kept = [t for t in graph.initializer if t.name in read]
    names = {t.name for t in kept}
    inputs = [i for i in graph.input if i.name in names or i.name not in shapes]
    weights = [
        numpy_helper.from_array(_weight(name, tuple(int(d) for d in shape), roles.get(name, "shift")), name)
        for name, shape in made.items()
    ]
    inputs += [helper.make_tensor_value_info(w.name, onnx.TensorProto.FLOAT, w.dims) for w in weights]
    del graph.node[:], graph.initializer[:], graph.input[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *weights])
    graph.input.extend(inputs)


def _roles(graph: onnx.GraphProto) -> dict[str, str]:
    """What each weight is for, by name; through the Unsqueeze of old exporters."""
    roles: dict[str, str] = {}
    damped: set[str] = set()
    rectified: set[str] = set()
    makers = {n.output[0]: n.op_type for n in graph.node}
    for node in reversed(graph.node):
        kinds = {
            "Conv": ("", "weight", "shift"),
            "Gemm": ("", "weight", "shift"),
            "BatchNormalization": ("", "scale", "shift", "shift", "variance"),
            "Mul": ("", "scale"),
            "Add": ("", "shift"),
        }.get(node.op_type, ())
        if node.output[0] in damped and node.op_type in ("Gemm", "BatchNormalization"):
            kinds = tuple(kind if kind in ("", "shift", "variance") else f"small {kind}" for kind in kinds)
        if node.op_type == "Relu" or (node.op_type in _PER_CHANNEL and node.output[0] in rectified):
            rectified.add(node.input[0])
        elif node.op_type == "Conv" and node.output[0] not in rectified:
            kinds = ("", "linear weight", "shift")
        if node.op_type == "Unsqueeze" and node.output[0] in roles:
            kinds = (roles[node.output[0]],)
        roles.update({name: kind for name, kind in zip(node.input, kinds, strict=False) if kind})
        if node.op_type in ("Softmax", "Sum"):
            damped.add(next((i for i in node.input if makers.get(i) == "BatchNormalization"), node.input[0]))
    return roles


def _weight(name: str, shape: tuple[int, ...], role: str) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    damping = 0.2 if role.startswith("small") else 1.0
    if role.endswith("weight"):
        fan_in = int(np.prod(shape[1:]))
        gain = 1 if role.startswith("linear") else 2  # half of the signal survives a Relu
        return rng.standard_normal(shape, np.float32) * np.float32(damping * np.sqrt(gain / fan_in))
    if role.endswith("scale"):
        return (damping * rng.uniform(0.7, 1.3, shape)).astype(np.float32)
    if role == "variance":
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return rng.uniform(-0.1, 0.1, shape).astype(np.float32)
