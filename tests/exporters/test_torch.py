"""Writing a pruning back: torch -> prune -> torch -> ONNX equals torch -> ONNX -> prune, and the result trains."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from compiler.exporters import export
from compiler.exporters.torch.tensors import reshaped_back
from compiler.frontends import load
from compiler.ir import ArrayConstant, CheckFailed, Graph, SecateurError
from compiler.ir.execute import execute, relative_difference
from examples.fashion_mnist.model import Net
from passes import Context, Pipeline

torch.set_num_threads(1)


class Residual(nn.Module):
    """A residual stem, a depthwise and a grouped convolution, BatchNorm with statistics of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.expand = nn.Conv2d(16, 24, 1)
        self.depthwise, self.norm2 = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)
        self.project = nn.Conv2d(24, 16, 1, groups=4)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm(self.stem(x)))
        z = self.project(functional.relu(self.norm2(self.depthwise(self.expand(y)))))
        return self.head(self.drop((y + z).mean((2, 3))))


class Norms(nn.Module):
    """The other layers that know their width: GroupNorm, InstanceNorm, PReLU, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.group_norm, self.prelu = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.PReLU(8)
        self.up, self.instance_norm = nn.ConvTranspose2d(8, 12, 2, 2), nn.InstanceNorm2d(12, affine=True)
        self.scale = torch.rand(8, 1, 1)
        self.last = nn.Conv2d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.group_norm(self.conv(x))) * self.scale
        return self.last(self.instance_norm(self.up(y)))


class HardCoded(nn.Module):
    """Sizes in forward that no parameter tells: two reshapes, a split, channel padding, an unaffine LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.wide, self.left, self.right = nn.Linear(8 * 16, 12), nn.Linear(6, 10), nn.Linear(6, 10)
        self.last = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm(self.conv(x))).view(-1, 8 * 16)
        left, right = torch.split(self.wide(y).view(-1, 12), 6, dim=1)
        return self.last(functional.layer_norm(self.left(left) + self.right(right), (10,)))


class Block(nn.Module):
    """A transformer encoder block whose heads are cut out of one projection by numbers."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.qkv, self.out = nn.Linear(6, width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down, self.head = nn.Linear(width, 32), nn.Linear(32, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, d))
        return self.head(x + self.down(functional.gelu(self.up(self.norm2(x)))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = nn.Linear(6, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down, self.norm, self.head = (
            nn.Linear(16, 32),
            nn.Linear(32, 16),
            nn.LayerNorm(16),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.norm(x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(x + self.down(functional.relu(self.up(x))))


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(10, 8), nn.LSTM(8, 6, batch_first=True)
        self.wide, self.head = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(functional.relu(self.wide(self.lstm(self.embed(tokens))[0])))


class Shared(nn.Module):
    """A layer used twice, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.other, self.last = (nn.Linear(*s) for s in ((8, 16), (16, 16), (16, 16), (16, 4)))
        self.other.weight = self.twice.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + functional.relu(self.twice(x))
        x = x + functional.relu(self.twice(x))
        return self.last(x + self.other(x))


class Branch(nn.Module):
    """A depthwise convolution and a perceptron over channels, for one side of a branch. sizes: spell the width out."""

    def __init__(self, hidden: int, sizes: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(4, hidden, 1), nn.Conv2d(hidden, 4, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.mix = nn.Sequential(nn.Linear(4, hidden + 2), nn.ReLU(), nn.Linear(hidden + 2, 4))
        self.shape = (-1, hidden, 5, 5) if sizes else ()

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.up(x))
        y = self.down(torch.relu(y.flatten(1).reshape(self.shape) if self.shape else y))
        return self.mix(y.permute(0, 2, 3, 1))


class Branches(nn.Module):
    """Data decide which of two branches is taken."""

    def __init__(self, sizes: bool = False) -> None:
        super().__init__()
        self.stem, self.small, self.large = nn.Conv2d(3, 4, 1), Branch(8, sizes), Branch(12, sizes)
        self.last = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.last(torch.cond(y.sum() > 0, self.small.forward, self.large.forward, (y,)))


class Gated(nn.Module):
    """Slices by numbers, a parameter that is viewed and expanded, another that is part of the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.scale = nn.Linear(8, 32), nn.Linear(16, 8), nn.Parameter(torch.rand(16))
        self.embed, self.token = nn.Linear(5, 8), nn.Parameter(torch.randn(1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1)
        y = self.up(x)
        return self.down(functional.silu(y[..., :16]) * y[..., 16:] * self.scale.view(1, 1, 16))[:, 0]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 3)).double()


BATCH = "batch"
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], str | None, bool]] = {
    "residual": (Residual, lambda: torch.randn(2, 3, 8, 8), BATCH, True),
    "fashion_mnist": (Net, lambda: torch.randn(2, 1, 28, 28), BATCH, True),
    "mlp": (mlp, lambda: torch.randn(4, 6, dtype=torch.float64), BATCH, True),
    "norms": (Norms, lambda: torch.randn(2, 3, 6, 6), None, True),
    "hard-coded": (HardCoded, lambda: torch.randn(2, 3, 4, 4), BATCH, False),
    "block": (Block, lambda: torch.randn(2, 5, 6), BATCH, False),
    "attention": (Attention, lambda: torch.randn(2, 5, 6), None, False),
    "gated": (Gated, lambda: torch.randn(2, 3, 5), BATCH, False),
    "lstm": (Tagger, lambda: torch.randint(0, 10, (2, 5)), BATCH, True),
    "shared": (Shared, lambda: torch.randn(2, 8), BATCH, True),
    "branches": (Branches, lambda: torch.randn(2, 3, 5, 5), BATCH, True),
}
"""Network, its input, the name of axis 0 when that is open, and whether the live module can hold the result."""


def made(build: Callable[[], nn.Module]) -> nn.Module:
    """A network with BatchNorm statistics that a wrong index would show in."""
    torch.manual_seed(0)
    module = build()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2)
    return module


def pruned(graph: Graph, ratio: float = 0.4) -> Graph:
    return Pipeline(f"simplify,prune(ratio={ratio},metric=params)").run(graph, Context())


def weights(graph: Graph, module: nn.Module) -> dict[str, np.ndarray]:
    """The graph's constants that are the module's tensors or come from them."""
    names = tuple(name for name, _ in module.named_parameters(remove_duplicate=False))
    return {v.name: v.numpy() for v in graph.all_constants() if v.name.startswith(names)}


def outputs(graph: Graph, x: Tensor) -> dict[str, np.ndarray]:
    results = execute(graph, {graph.inputs[0].name: x.numpy()})
    return {str(i): array for i, array in enumerate(results.values())}


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, Graph]:
    module = made(Residual)
    return module, load(module, args=(torch.randn(2, 3, 8, 8),), dynamic_shapes={"x": {0: "n"}})


@pytest.fixture(scope="module")
def hard_coded() -> tuple[nn.Module, Graph]:
    module = made(HardCoded)
    return module, load(module, args=(torch.randn(2, 3, 4, 4),))


@pytest.mark.parametrize("name", NETWORKS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    build, example, symbol, live = NETWORKS[name]
    module, x = made(build), example()
    options = {"args": (x,), "dynamic_shapes": ({0: symbol},) if symbol else None}
    before = {k: t.clone() for k, t in module.state_dict().items()}
    graph = load(module, **options)
    smaller = pruned(graph)
    result = export(smaller, module)

    # The user's own module is as it was; the result has narrower parameters of the same names.
    assert all(torch.equal(t, before[k]) for k, t in module.state_dict().items())
    assert isinstance(result, fx.GraphModule) is not live and (type(result) is type(module)) is live
    names = dict(module.named_parameters())
    assert dict(result.named_parameters()).keys() == names.keys()
    assert sum(p.numel() for p in result.parameters()) < 0.75 * sum(p.numel() for p in names.values())
    assert all(part.training for part in result.modules())

    # torch -> prune -> torch -> ONNX, against torch -> prune and against torch -> ONNX -> prune.
    again = Pipeline("simplify").run(load(result, **options, name=graph.name), Context())
    file = export(graph, tmp_path / "net.onnx")[0]
    by_file = pruned(load(file))
    for other in (smaller, by_file):
        expected = weights(other, module)
        assert weights(again, module).keys() == expected.keys()
        assert all(np.array_equal(array, expected[k]) for k, array in weights(again, module).items())
        assert relative_difference(outputs(again, x), outputs(other, x)) <= 1e-6
    if live:
        assert str(again) == str(smaller)

    # It trains.
    optimizer = torch.optim.SGD(result.parameters(), lr=0.02)
    losses = []
    for _ in range(4):
        loss = result(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_attributes_follow(residual: tuple[Any, Graph]) -> None:
    module, graph = residual
    result: Any = export(pruned(graph), module)
    width = result.expand.weight.shape[0]
    assert width < 24 and (result.expand.in_channels, result.expand.out_channels) == (16, width)
    assert (result.depthwise.in_channels, result.depthwise.out_channels, result.depthwise.groups) == (width,) * 3
    assert (result.project.in_channels, result.project.out_channels, result.project.groups) == (width, 16, 4)
    assert result.norm2.num_features == width and result.norm2.running_var.shape == (width,)
    assert torch.equal(result.norm2.num_batches_tracked, module.norm2.num_batches_tracked)


def test_in_place_keeps_the_objects_that_do_not_change(residual: tuple[Any, Graph]) -> None:
    module = copy.deepcopy(residual[0]).train()
    module.drop.eval()
    module.expand.weight.requires_grad_(False)
    stem, expand = module.stem.weight, module.expand.weight
    assert export(pruned(residual[1]), module, inplace=True) is module
    assert module.stem.weight is stem and module.expand.weight is not expand
    assert not module.expand.weight.requires_grad and module.expand.bias.requires_grad
    assert isinstance(module.expand.weight, nn.Parameter) and module.training and not module.drop.training
    assert list(module.state_dict()) == list(made(Residual).state_dict())


def test_the_branch_that_is_not_taken_is_written_back_too() -> None:
    module = made(Branches)
    graph = load(module, args=(torch.randn(2, 3, 5, 5),), dynamic_shapes={"x": {0: BATCH}})
    smaller = pruned(graph, 0.5)
    result: Any = export(smaller, module)
    for name, width in (("small", 8), ("large", 12)):
        branch = getattr(result, name)
        hidden = branch.depthwise.groups
        assert hidden < width
        assert branch.up.out_channels == branch.down.in_channels == branch.depthwise.in_channels == hidden
        assert branch.mix[0].out_features == branch.mix[2].in_features < width + 2
    taken = set()
    for bias in (-5.0, 5.0):  # what decides, in both
        x = torch.randn(2, 3, 5, 5)
        for net in (module, result):
            nn.init.constant_(net.stem.bias, bias)
        (constant,) = (v for v in smaller.all_constants() if v.name == "stem.bias")
        constant.data = ArrayConstant(np.full(4, bias, np.float32))
        taken.add(bool(module.stem(x).sum() > 0))
        expected = {"0": result(x).detach().numpy()}
        assert relative_difference(outputs(smaller, x), expected) <= 1e-6
    assert taken == {True, False}


def test_sizes_inside_a_branch_are_refused() -> None:
    """A trace shows torch.cond as one operation, whose numbers no rule corrects."""
    module = made(lambda: Branches(sizes=True))
    graph = load(module, args=(torch.randn(2, 3, 5, 5),))
    with pytest.raises(CheckFailed, match="neither the module nor its trace computes") as caught:
        export(pruned(graph), module)
    assert caught.value.code == "E_TORCH_WRITE_BACK"
    assert "cond" in caught.value.where
    assert len(caught.value.where) < 400


def test_shared_parameters_stay_shared() -> None:
    module = made(Shared)
    result: Any = export(pruned(load(module, args=(torch.randn(2, 8),))), module)
    assert result.other.weight is result.twice.weight and result.other.weight.shape[0] < 16


@pytest.mark.parametrize(("places", "passes"), [(5, "simplify"), (9, "simplify(weights=false)")])
def test_a_table_that_is_picked_from_comes_back_whole(places: int, passes: str) -> None:
    """Positions 0 to 4 of a table, all that it has or the first of many."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places, self.embed, self.head = nn.Embedding(places, 12), nn.Linear(6, 12), nn.Linear(12, 3)
            self.register_buffer("order", torch.arange(5))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(functional.relu(self.embed(x) + self.places(self.order)))

    module = made(Positions)
    graph = Pipeline(f"{passes},prune(ratio=0.4,metric=params)").run(
        load(module, args=(torch.randn(2, 5, 6),)), Context()
    )
    result: Any = export(graph, module)
    width = result.embed.out_features
    assert width < 12 and result.places.weight.shape == (places, width) and result.places.embedding_dim == width
    columns = [int((module.places.weight == column[:, None]).all(0).nonzero()) for column in result.places.weight.T]
    assert columns == sorted(set(columns))


def test_a_saved_graph_writes_back_into_a_copy(residual: tuple[Any, Graph], tmp_path: Path) -> None:
    """No memory of how the module was called: the graph's inputs and forward's parameters say it."""
    file = export(pruned(residual[1]), tmp_path / "pruned.onnx")[0]
    result: Any = export(load(file), copy.deepcopy(residual[0]))
    assert result.depthwise.groups == result.depthwise.weight.shape[0] < 24


def test_a_traced_module_prunes_again_and_follows_its_mode(hard_coded: tuple[nn.Module, Graph]) -> None:
    module, x = hard_coded[0], torch.randn(2, 3, 4, 4)
    once = export(pruned(hard_coded[1]), module)
    twice = export(pruned(load(once, args=(x,)), 0.3), once)
    assert sum(p.numel() for p in twice.parameters()) < sum(p.numel() for p in once.parameters())
    mean = twice.get_buffer("norm.running_mean")
    for mode in (False, True):
        before = mean.clone()
        twice.train(mode)(x)
        assert torch.equal(mean, before) is not mode


def test_every_recurrent_layout_is_undone() -> None:
    """A narrow network's own graph, written into a wide one, gives the narrow one back."""

    class Stack(nn.Module):
        def __init__(self, embed: int, hidden: int, gates: int) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, embed)
            self.lstm = nn.LSTM(embed, hidden, num_layers=2, bidirectional=True, batch_first=True)
            self.gru = nn.GRU(2 * hidden, gates, bidirectional=True)
            self.rnn = nn.RNN(2 * gates, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.rnn(self.gru(self.lstm(self.embed(tokens))[0])[0])[0]

    wide, narrow, tokens = Stack(6, 8, 5), Stack(4, 5, 3), torch.randint(0, 9, (2, 4))
    simple = Pipeline("simplify").run(load(narrow, args=(tokens,)), Context())
    result: Any = export(simple, wide, args=(tokens,))
    for name, tensor in narrow.state_dict().items():
        assert torch.equal(result.state_dict()[name], tensor)
    assert (result.lstm.input_size, result.lstm.hidden_size, result.gru.hidden_size) == (4, 5, 3)


def test_forward_that_depends_on_old_widths_is_refused_in_place(hard_coded: tuple[Any, Graph]) -> None:
    module = hard_coded[0]
    before = dict(module.named_parameters())
    smaller = pruned(hard_coded[1])
    with pytest.raises(SecateurError, match="forward depends on the old widths") as caught:
        export(smaller, module, inplace=True)
    assert caught.value.code == "E_TORCH_WRITE_BACK"
    assert all(p is before[k] for k, p in module.named_parameters()) and module.conv.out_channels == 8


@pytest.mark.parametrize(
    ("change", "passes", "match", "hint"),
    [
        (nn.utils.parametrizations.weight_norm, "simplify", "original0' was folded", "remove_parametrizations"),
        (lambda conv: conv, "simplify(batchnorm=true)", "was folded into others", "weights=false"),
    ],
)
def test_weights_that_are_gone_are_named(change: Any, passes: str, match: str, hint: str) -> None:
    module: Any = made(Residual)
    change(module.expand)
    graph = load(module, args=(torch.randn(2, 3, 8, 8),))
    with pytest.raises(SecateurError, match=match) as caught:
        export(Pipeline(f"{passes},prune(ratio=0.3)").run(graph, Context()), module)
    assert caught.value.code == "E_TORCH_WRITE_BACK" and hint in caught.value.hint


def test_a_graph_that_the_module_cannot_follow_is_refused() -> None:
    """An operator that a pass took out of the graph is still in the module's forward."""
    module = made(mlp)
    graph = load(module, args=(torch.randn(2, 6, dtype=torch.float64),))
    tanh = next(n for n in graph.nodes if n.op == "Tanh")
    graph.replace_value(tanh.outputs[0], tanh.inputs[0])
    graph.nodes.remove(tanh)
    with pytest.raises(CheckFailed, match="differs from the graph") as caught:
        export(graph, module)
    assert caught.value.code == "E_TORCH_WRITE_BACK"


def test_only_paths_and_modules_are_targets() -> None:
    graph = load(nn.Linear(3, 2), args=(torch.ones(2, 3),))
    with pytest.raises(SecateurError, match=r"cannot be exported to a builtins\.int") as caught:
        export(graph, 3)  # type: ignore[call-overload]
    assert caught.value.code == "E_EXPORT_TARGET"
    with pytest.raises(SecateurError, match="called with 2 tensors") as caught:
        export(graph, nn.Bilinear(3, 3, 2), args=(torch.ones(2, 3), torch.ones(2, 3)))
    assert caught.value.code == "E_TORCH_ARGS"


@pytest.mark.parametrize(
    ("source", "result", "found", "expected"),
    [
        ((8,), (1, 8, 1, 1), (1, 5, 1, 1), (5,)),
        ((2, 1, 8), (2, 8), (2, 5), (2, 1, 5)),
        ((24,), (4, 6), (4, 3), (12,)),
        ((4, 6), (24,), (24,), (4, 6)),
        ((4, 6), (24,), (20,), (4, 5)),
        ((4, 6), (24,), (12,), None),  # 2x6 or 4x3
        ((6, 4), (4, 6), (4, 3), None),
    ],
)
def test_reshapes_are_undone_or_refused(source: Any, result: Any, found: Any, expected: Any) -> None:
    assert reshaped_back(source, result, found) == expected
