"""Reading torch modules: their own names and layouts, evaluation mode, origins, open dimensions, one error each."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.frontends import load
from compiler.ir import Graph, SecateurError
from compiler.ir.execute import execute, relative_difference
from passes import Context, Pipeline

torch.set_num_threads(1)


class Layer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.scale = torch.full((channels, 1, 1), 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.relu(self.norm(self.conv(x))) * self.scale


class Small(nn.Module):
    """Covers names: nested modules, a buffer, a plain tensor, a shared weight, a Linear on 2 and on 3 axes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 1), Layer(8), nn.Dropout(0.5))
        self.wide = nn.Linear(8, 6)
        self.narrow = nn.Linear(6, 6)
        self.again = nn.Linear(6, 6)
        self.again.weight = self.narrow.weight
        self.register_buffer("offset", torch.randn(6))

    def forward(self, x: Tensor, *, gate: Tensor | None = None) -> dict[str, Tensor]:
        y = self.wide(self.layers(x).flatten(2).transpose(1, 2)).mean(1) + self.offset
        first, second = self.narrow(y).chunk(2, 1)
        y = self.again(torch.cat([second, first], 1))
        return {"y": y if gate is None else y * gate}


IMAGE = torch.randn(2, 3, 4, 5)


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return Small()


@pytest.fixture(scope="module")
def graph(small: nn.Module) -> Graph:
    return load(small, args=(IMAGE,), dynamic_shapes={"x": {0: "batch"}})


def run(module: nn.Module, *args: Any) -> dict[str, np.ndarray]:
    with torch.no_grad():
        return {f"{i}": t.numpy() for i, t in enumerate(module(*args).values())}


def outputs(graph: Graph, *args: Tensor) -> dict[str, np.ndarray]:
    inputs = {v.name: a.numpy() for v, a in zip(graph.inputs, args, strict=True)}
    return {f"{i}": array for i, array in enumerate(execute(graph, inputs).values())}


def test_constants_are_the_module_s_own_tensors(small: nn.Module, graph: Graph) -> None:
    constants = {v.name: v.numpy() for v in graph.constants() if v.dtype is not None and v.dtype.kind == "f"}
    expected = {k: t for k, t in small.state_dict().items() if "num_batches" not in k and k != "again.weight"}
    expected |= {"layers.1.scale": small.layers[1].scale}
    assert constants.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.array_equal(constants[name], tensor.numpy())


def test_shared_parameters_are_one_constant(graph: Graph) -> None:
    readers = [node.origin.path for node, _ in graph.consumers()[graph.value("narrow.weight")] if node.origin]
    assert readers == ["narrow", "again"]


def test_training_the_module_leaves_the_graph_alone() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 500))
    graph = load(module, args=(torch.ones(1, 3),))
    before = [graph.value(name).numpy().copy() for name in ("0.weight", "1.weight")]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1
    for name, array in zip(("0.weight", "1.weight"), before, strict=True):
        assert np.array_equal(graph.value(name).numpy(), array)


def test_nodes_come_from_modules(graph: Graph) -> None:
    norm = next(n for n in graph.nodes if n.op == "BatchNormalization")
    assert norm.origin is not None and (norm.origin.framework, norm.origin.path) == ("torch", "layers.1.norm")
    conv = next(n for n in graph.nodes if n.name == "layers.1.conv/Conv")
    assert len(conv.inputs) == 2  # no bias of zeros


def test_a_linear_s_transpose_is_named_after_its_weight(graph: Graph) -> None:
    assert graph.value("wide.weight.T").producer.inputs == [graph.value("wide.weight")]  # type: ignore[union-attr]
    simple = Pipeline("simplify").run(graph, Context())
    assert np.array_equal(simple.value("wide.weight.T").numpy(), graph.value("wide.weight").numpy().T)
    assert next(n for n in simple.nodes if n.op == "Gemm").attribute("transB") == 1


def test_the_function_is_that_of_evaluation_mode_at_any_batch(small: nn.Module, graph: Graph) -> None:
    assert [(v.name, v.shape) for v in graph.inputs] == [("x", ("batch", 3, 4, 5))]
    assert [v.shape for v in graph.outputs] == [("batch", 6)]
    small.eval()
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 4, 5)
        assert relative_difference(outputs(graph, x), run(small, x)) <= 1e-5
    small.train()


def test_shapes_bind_open_dimensions() -> None:
    graph = load(nn.Linear(3, 2), args=(torch.ones(2, 3),), dynamic_shapes=({0: "n"},), shapes={"input": (7, 3)})
    assert graph.inputs[0].shape == (7, 3) and graph.outputs[0].shape == (7, 2)


def test_modes_are_kept() -> None:
    module = Small().train()
    module.layers[2].eval()
    modes = [part.training for part in module.modules()]
    load(module, args=(IMAGE,))
    assert [part.training for part in module.modules()] == modes


def test_keyword_inputs_keep_their_names() -> None:
    module, gate = Small().eval(), torch.rand(2, 6)
    graph = load(module, args=(IMAGE,), kwargs={"gate": gate})
    assert [v.name for v in graph.inputs] == ["x", "gate"]
    with torch.no_grad():
        expected = {"0": module(IMAGE, gate=gate)["y"].numpy()}
    assert relative_difference(outputs(graph, IMAGE, gate), expected) <= 1e-5


def test_exported_programs_and_graph_modules_give_the_same_graph(small: nn.Module) -> None:
    small.eval()
    expected = load(small, args=(IMAGE,), name="g")
    program = torch.export.export(small, (IMAGE,))
    assert str(load(program, name="g")) == str(expected)
    traced = load(torch.fx.symbolic_trace(small, concrete_args={"gate": None}), args=(IMAGE, None), name="g")
    assert {v.name for v in traced.constants()} >= {"layers.0.weight", "wide.weight", "offset"}
    assert relative_difference(outputs(traced, IMAGE), outputs(expected, IMAGE)) <= 1e-6
    small.train()


def test_an_lstm_is_one_node_on_its_own_weights() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.lstm = nn.Embedding(9, 4), nn.LSTM(4, 3, batch_first=True)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.lstm(self.embed(tokens))[0]

    tokens = torch.randint(0, 9, (2, 5))
    graph = load(Tagger(), args=(tokens,), dynamic_shapes={"tokens": {0: "batch"}})
    simple = Pipeline("simplify").run(graph, Context())
    (node,) = (n for n in simple.nodes if n.op == "LSTM")
    assert [v.name for v in node.inputs[1:] if v] == [
        "lstm.weight_ih_l0.unsqueeze",
        "lstm.weight_hh_l0.unsqueeze",
        "lstm.bias_ih_l0.unsqueeze",
    ]  # and no initial states: they are zero


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_branches_on_data_are_refused_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SecateurError, match="data-dependent") as caught:
        load(Branching(), args=(torch.ones(3),))
    assert caught.value.code == "E_TORCH_EXPORT" and "torch.cond" in caught.value.hint
    assert "\n" not in caught.value.message and capfd.readouterr() == ("", "")


def test_a_dimension_that_the_network_fixes_cannot_be_open() -> None:
    with pytest.raises(SecateurError, match="specialized") as caught:
        load(nn.Linear(3, 2), args=(torch.ones(2, 3),), dynamic_shapes=({1: "n"},))
    assert caught.value.code == "E_TORCH_EXPORT" and "dynamic_shapes" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "options", "match"),
    [
        (nn.Linear(3, 2), {}, "no example inputs"),
        (nn.Linear(3, 2), {"args": (torch.ones(2, 3), 1)}, "too many positional"),
        (nn.Linear(3, 2), {"args": (torch.ones(2, 4),)}, "same reduction dim"),
    ],
)
def test_inputs_that_do_not_fit(source: nn.Module, options: dict[str, Any], match: str) -> None:
    with pytest.raises(SecateurError, match=match) as caught:
        load(source, **options)
    assert caught.value.code in ("E_TORCH_ARGS", "E_TORCH_EXPORT") and caught.value.hint


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnxscript", "torch"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(SecateurError, match=f"'{package}'") as caught:
            load(nn.Linear(3, 2), args=(torch.ones(2, 3),))
        assert caught.value.code == "E_NO_TORCH" and caught.value.hint == 'pip install "secateur[torch]"'


def test_torch_is_not_imported_until_it_is_needed() -> None:
    code = "import sys, compiler.frontends, compiler.exporters, passes, backends; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
