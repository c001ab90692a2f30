"""What an entry of the zoo states, and how a torch module becomes the ONNX model that is tested."""

from __future__ import annotations

import importlib
import io
import pkgutil
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import torch
from torch import nn

import tests.zoo

OPSET = 18


@dataclass(frozen=True)
class Exported:
    """A torch module and example inputs, of which a call makes the ONNX model.

    The exporter is TorchScript's, which keeps BatchNorm as one node without folding it.
    """

    module: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...] | torch.Tensor, ...]
    opset: int = OPSET

    def made(self) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        """The module, the same one every time, and its arguments."""
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(repr(self.inputs).encode()))
            net = self.module().eval()
            _tell_channels_apart(net)
            return net, tuple(torch.randn(i) if isinstance(i, tuple) else i for i in self.inputs)

    def __call__(self, **options: Any) -> onnx.ModelProto:
        """options: those of torch.onnx.export, over ours."""
        return _export(*self.made(), {"opset_version": self.opset, **options})

    def symbolic(self) -> onnx.ModelProto:
        """The model whose inputs share a symbolic first extent, the batch."""
        return self(dynamic_axes={f"x{i}": {0: "batch"} for i in range(len(self.inputs))})

    def symbolic_space(self, axes: Axes, one_batch: bool) -> tuple[onnx.ModelProto, dict[str, int]]:
        """The model with other symbolic extents as well, and what those of the example inputs are.

        axes: those of each input, by name; of images and volumes, all after the channels are symbolic anyway.
        """
        shapes = [x if isinstance(x, tuple) else tuple(x.shape) for x in self.inputs]
        names = [
            {**({} if one_batch else {0: "batch"}), **_space(shape), **own}
            for shape, own in zip(shapes, (*axes, *[{}] * len(shapes)), strict=False)
        ]
        sizes = {n: shape[a] for shape, own in zip(shapes, names, strict=True) for a, n in own.items()}
        return self(dynamic_axes={f"x{i}": own for i, own in enumerate(names)}), sizes


Axes = tuple[dict[int, str], ...]


def _space(shape: tuple[int, ...]) -> dict[int, str]:
    return dict(zip(range(2, len(shape)), ("height", "width", "depth"), strict=False)) if len(shape) > 3 else {}


@dataclass(frozen=True)
class Entry:
    """One network.

    build: makes the model. expected: the groups derived by hand, each as "width" or "width in k blocks", in any order;
    None where a derivation by hand is not to be trusted. ratio: the share of parameters that is pruned, lower
    than a half only where the architecture's fixed share forbids it. explain: why more than a fifth of the
    parameters cannot be pruned. heads: the groups of whole attention heads, where those are asked for instead of
    channels within heads. one_batch: the network itself takes one example at a time (its windows or volumes lie on
    the batch axis).

    axes: what else than the batch can be symbolic (a sequence, nodes), of each input by name; of images and volumes,
    space is anyway. closed: why the network has no other symbolic extents than the batch.

    The faults say what our engine does wrong here, so that a test is expected to fail: of the network as it is, with
    whole heads, with a symbolic batch, and with symbolic space or sequence.
    """

    build: Exported
    expected: tuple[str, ...] | None
    ratio: float = 0.5
    explain: str = ""
    heads: tuple[str, ...] = ()
    one_batch: bool = False
    fault: str = ""
    heads_fault: str = ""
    batch_fault: str = ""
    axes: Axes = ()
    closed: str = ""
    space_fault: str = ""

    @property
    def has_space(self) -> bool:
        """True when inputs have extents of space, or others that can be symbolic."""
        shapes = [x if isinstance(x, tuple) else tuple(x.shape) for x in self.build.inputs]
        return not self.closed and (bool(self.axes) or any(len(s) > 3 for s in shapes))


def ids(*shape: int) -> torch.Tensor:
    """An example input of token or category numbers."""
    return torch.zeros(shape, dtype=torch.int64)


def exported(module: Callable[[], nn.Module], *inputs: tuple[int, ...] | torch.Tensor, opset: int = OPSET) -> Exported:
    """How to build the ONNX model of a module. A tuple is the shape of a floating-point input."""
    return Exported(module, inputs, opset)


def _tell_channels_apart(net: nn.Module) -> None:
    """Give every vector (scales, biases, statistics) values of its own, else a permutation of it would not show."""
    with torch.no_grad():
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if not tensor.is_floating_point() or tensor.dim() != 1 or len(tensor) == 0:
                continue
            leaf = name.rsplit(".", 1)[-1]
            if leaf in ("weight", "running_var", "scale", "gamma"):
                tensor.uniform_(0.5, 1.5)
            elif leaf in ("running_mean",) or leaf.startswith("bias") or leaf == "beta":
                tensor.normal_(0, 0.1)


def _export(net: nn.Module, arguments: tuple[torch.Tensor, ...], options: dict[str, Any]) -> onnx.ModelProto:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            arguments,
            file,
            dynamo=False,
            training=torch.onnx.TrainingMode.EVAL,
            do_constant_folding=False,
            input_names=[f"x{i}" for i in range(len(arguments))],
            **options,
        )
    return onnx.load_from_string(file.getvalue())


@cache
def zoo() -> dict[str, Entry]:
    """Every network, as "family.name"."""
    found = {}
    for info in (i for i in pkgutil.iter_modules(tests.zoo.__path__) if not i.name.startswith("test_")):
        networks = getattr(importlib.import_module(f"tests.zoo.{info.name}"), "NETWORKS", {})
        found.update({f"{info.name}.{name}": entry for name, entry in networks.items()})
    return found
