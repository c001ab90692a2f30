"""A decoder-only transformer of any size as ONNX, its weights in a sparse external file that takes no disk.

Grouped-query attention, rotary positions, RMS normalisation, a gated feed-forward network: the shape of the
8-billion-parameter models of 2024-2026. The weights are zeros: it measures size, not quality.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Decoder:
    """Sizes; the defaults are those of an 8B-class model."""

    layers: int = 36
    width: int = 4096
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    hidden: int = 12288
    vocabulary: int = 151936
    positions: int = 4096

    def write(self, path: Path) -> int:
        """Write `path` and `path.data`; returns the number of parameters."""
        return _Writer(self, path).write()


class _Writer:
    def __init__(self, sizes: Decoder, path: Path) -> None:
        self.sizes = sizes
        self.path = path
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.offset = 0
        self.params = 0

    def write(self) -> int:
        s = self.sizes
        embedding = self.weight("embed.weight", s.vocabulary, s.width)
        x = self.op("Gather", "embed", embedding, "tokens")
        cos = self.op("Gather", "cos", self.weight("rotary.cos", s.positions, s.head_dim), "positions")
        sin = self.op("Gather", "sin", self.weight("rotary.sin", s.positions, s.head_dim), "positions")
        cos, sin = (self.op("Unsqueeze", f"{n}.heads", n, self.ints(f"{n}.axis", 1)) for n in (cos, sin))
        for i in range(s.layers):
            x = self.attention(f"layers.{i}.attn", x, cos, sin)
            x = self.feed_forward(f"layers.{i}.mlp", x)
        x = self.norm("norm", x)
        self.op("MatMul", "logits", x, self.weight("head.weight", s.width, s.vocabulary))
        graph = helper.make_graph(
            self.nodes,
            "decoder",
            [helper.make_tensor_value_info(n, TensorProto.INT64, ["B", "S"]) for n in ("tokens", "positions")],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT16, ["B", "S", s.vocabulary])],
            self.tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        self.path.write_bytes(model.SerializeToString())
        with self.path.with_name(self.path.name + ".data").open("wb") as data:
            data.truncate(self.offset)
        return self.params

    def attention(self, name: str, x: str, cos: str, sin: str) -> str:
        s = self.sizes
        n = self.norm(f"{name}.norm", x)
        queries = self.split(f"{name}.q", n, s.heads)
        keys, values = (self.split(f"{name}.{k}", n, s.kv_heads) for k in "kv")
        queries, keys = (self.rotate(f"{t}.rot", t, cos, sin) for t in (queries, keys))
        keys, values = (self.repeat(f"{t}.rep", t) for t in (keys, values))
        keys = self.op("Transpose", f"{name}.kt", keys, perm=[0, 1, 3, 2])
        scores = self.op("MatMul", f"{name}.scores", queries, keys)
        weights = self.op("Softmax", f"{name}.softmax", scores, axis=-1)
        mixed = self.op("MatMul", f"{name}.mixed", weights, values)
        mixed = self.op("Transpose", f"{name}.merge", mixed, perm=[0, 2, 1, 3])
        flat = self.op("Reshape", f"{name}.flat", mixed, self.ints(f"{name}.flat.shape", 0, 0, s.heads * s.head_dim))
        out = self.op("MatMul", f"{name}.o", flat, self.weight(f"{name}.o.weight", s.heads * s.head_dim, s.width))
        return self.op("Add", f"{name}.add", x, out)

    def split(self, name: str, x: str, heads: int) -> str:
        s = self.sizes
        flat = self.op("MatMul", name, x, self.weight(f"{name}.weight", s.width, heads * s.head_dim))
        split = self.op("Reshape", f"{name}.split", flat, self.ints(f"{name}.shape", 0, 0, heads, s.head_dim))
        return self.op("Transpose", f"{name}.heads", split, perm=[0, 2, 1, 3])

    def rotate(self, name: str, x: str, cos: str, sin: str) -> str:
        half = self.sizes.head_dim // 2
        self.nodes.append(
            helper.make_node("Split", [x, self.ints(f"{name}.sizes", half, half)], [f"{name}.a", f"{name}.b"], axis=3)
        )
        minus = self.op("Neg", f"{name}.minus", f"{name}.b")
        turned = self.op("Concat", f"{name}.turned", minus, f"{name}.a", axis=3)
        straight = self.op("Mul", f"{name}.cos", x, cos)
        across = self.op("Mul", f"{name}.sin", turned, sin)
        return self.op("Add", name, straight, across)

    def repeat(self, name: str, x: str) -> str:
        s = self.sizes
        ratio = s.heads // s.kv_heads
        wide = self.op("Unsqueeze", f"{name}.wide", x, self.ints(f"{name}.axis", 2))
        many = self.op("Expand", f"{name}.many", wide, self.ints(f"{name}.shape", 1, 1, ratio, 1, 1))
        return self.op("Reshape", name, many, self.ints(f"{name}.flat", 0, s.heads, -1, s.head_dim))

    def feed_forward(self, name: str, x: str) -> str:
        s = self.sizes
        n = self.norm(f"{name}.norm", x)
        gate = self.op("MatMul", f"{name}.gate", n, self.weight(f"{name}.gate.weight", s.width, s.hidden))
        up = self.op("MatMul", f"{name}.up", n, self.weight(f"{name}.up.weight", s.width, s.hidden))
        act = self.op("Mul", f"{name}.act", self.op("Sigmoid", f"{name}.sigmoid", gate), gate)
        both = self.op("Mul", f"{name}.both", act, up)
        down = self.op("MatMul", f"{name}.down", both, self.weight(f"{name}.down.weight", s.hidden, s.width))
        return self.op("Add", f"{name}.add", x, down)

    def norm(self, name: str, x: str) -> str:
        square = self.op("Mul", f"{name}.square", x, x)
        mean = self.op("ReduceMean", f"{name}.mean", square, self.ints(f"{name}.axes", -1))
        root = self.op("Sqrt", f"{name}.root", mean)
        scaled = self.op("Div", f"{name}.div", x, root)
        return self.op("Mul", f"{name}.scaled", scaled, self.weight(f"{name}.weight", self.sizes.width))

    def op(self, kind: str, name: str, *inputs: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def ints(self, name: str, *numbers: int) -> str:
        self.tensors.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        length = 2 * math.prod(shape)
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT16, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": f"{self.path.name}.data", "offset": self.offset, "length": length}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        self.tensors.append(tensor)
        self.offset += -(-length // 4096) * 4096
        self.params += math.prod(shape)
        return name
