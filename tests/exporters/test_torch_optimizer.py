"""Optimisers that go on after a pruning: their state is cut as the parameters were, and a step is the step it was."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn import functional

from compiler.exporters import export
from compiler.frontends import load
from compiler.ir import Graph, SecateurError
from passes import Pipeline, Prune, dependency_groups
from passes.coupling.transform import restrict
from passes.importance import criterion, unit_scores
from tests.exporters.test_torch import BATCH, NETWORKS, Residual, Tagger, made, pruned

torch.set_num_threads(1)

OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.02, amsgrad=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.05),
}


class Transformer(nn.Module):
    """Attention of four heads with a packed projection, and a perceptron, both in residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(6, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, -1, 4).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, t, -1)
        x = self.norm(x + self.out(y))
        return self.head(x + self.down(functional.relu(self.up(x))))


def heads(gone: list[int], parts: int) -> list[int]:
    """Rows of a projection of 16 features a part, in heads of 4."""
    return [16 * part + 4 * head + i for part in range(parts) for head in gone for i in range(4)]


def gates(gone: list[int], count: int, width: int) -> list[int]:
    return [width * gate + unit for gate in range(count) for unit in gone]


STEM, HIDDEN = [1, 4, 9, 14], [0, 5, 6, 8, 13, 15, 19, 22]
"""Units that are dead. `project` has four groups, so that one goes from each four of STEM, two from six of HIDDEN."""

Cut = dict[str, dict[int, Any]]
"""Parameter -> axis -> positions of dead units, or a list for each group of rows; coupled groups, derived by hand."""

RESIDUAL: Cut = {
    "stem.weight": {0: STEM},
    "norm.weight": {0: STEM},
    "norm.bias": {0: STEM},
    "expand.weight": {0: HIDDEN, 1: STEM},
    "expand.bias": {0: HIDDEN},
    "depthwise.weight": {0: HIDDEN},
    "norm2.weight": {0: HIDDEN},
    "norm2.bias": {0: HIDDEN},
    "project.weight": {1: [[0, 5], [0, 2], [1, 3], [1, 4]], 0: STEM},
    "project.bias": {0: STEM},
    "head.weight": {1: STEM},
}
ATTENTION: Cut = {
    "qkv.weight": {0: heads([2], 3)},
    "qkv.bias": {0: heads([2], 3)},
    "out.weight": {1: heads([2], 1)},
    "up.weight": {0: [3, 4, 11]},
    "up.bias": {0: [3, 4, 11]},
    "down.weight": {1: [3, 4, 11]},
}
LSTM: Cut = {
    "embed.weight": {1: [2, 5]},
    "lstm.weight_ih_l0": {0: gates([0, 3], 4, 6), 1: [2, 5]},
    "lstm.weight_hh_l0": {0: gates([0, 3], 4, 6), 1: [0, 3]},
    "lstm.bias_ih_l0": {0: gates([0, 3], 4, 6)},
    "lstm.bias_hh_l0": {0: gates([0, 3], 4, 6)},
    "wide.weight": {0: [1, 9, 10], 1: [0, 3]},
    "wide.bias": {0: [1, 9, 10]},
    "head.weight": {1: [1, 9, 10]},
}
DEAD: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], Cut, bool]] = {
    "residual, depthwise": (Residual, lambda: torch.randn(4, 3, 8, 8), RESIDUAL, False),
    "attention heads": (Transformer, lambda: torch.randn(4, 5, 6), ATTENTION, True),
    "recurrent": (Tagger, lambda: torch.randint(0, 10, (4, 5)), LSTM, False),
}


def alive(tensor: Tensor, cut: dict[int, Any]) -> Tensor:
    """Which elements belong to no dead unit."""
    flags = torch.ones(tensor.shape, dtype=torch.bool)
    for axis, gone in cut.items():
        by_rows = gone if isinstance(gone[0], list) else [gone]
        for part, own in zip(flags.chunk(len(by_rows)), by_rows, strict=True):
            part.index_fill_(axis, torch.tensor(own), False)
    return flags


def rest(tensor: Tensor, cut: dict[int, Any], like: Tensor) -> Tensor:
    """The elements of living units, in the shape that is left."""
    return tensor[alive(tensor, cut)].reshape(like.shape)


def dead(name: str) -> tuple[Any, Tensor, Cut, bool]:
    """A network in which some units are dead: every weight that makes or reads them is 0, and so is its gradient."""
    build, example, cut, whole_heads = DEAD[name]
    module, x = made(build), example()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    for key, parameter in module.named_parameters():
        with torch.no_grad():
            parameter.mul_(alive(parameter, cut.get(key, {})))
    return module, x, cut, whole_heads


def without_dead_units(module: nn.Module, x: Tensor, heads: bool) -> Graph:
    graph = Pipeline("simplify")(load(module, args=(x,)))
    groups = dependency_groups(graph, heads=heads)
    return restrict(groups, ~(unit_scores(groups, criterion("l1")) == 0))


def step(module: nn.Module, optimizer: optim.Optimizer, x: Tensor) -> float:
    y = module(x)
    loss = (y - 1).square().mean() + y.abs().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(loss.item())


def tensors_of(state: dict[str, Any]) -> dict[str, Tensor]:
    return {name: item for name, item in state.items() if isinstance(item, Tensor)}


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("name", DEAD)
def test_a_step_after_is_the_slice_of_a_step_before(name: str, optimizer_name: str) -> None:
    module, x, cut, whole_heads = dead(name)
    parameters = list(module.named_parameters())
    groups = [
        {"params": [p for _, p in parameters[1::2]], "lr": 0.01},
        {"params": [p for _, p in parameters[::2]], "weight_decay": 0.1},
    ]
    optimizer = OPTIMIZERS[optimizer_name](groups)
    for _ in range(3):
        step(module, optimizer, x)
    smaller = without_dead_units(module, x, whole_heads)
    other, ours = copy.deepcopy((module, optimizer))
    result = export(smaller, other, optimizer=ours)

    assert sum(p.numel() for p in result.parameters()) < 0.9 * sum(p.numel() for _, p in parameters)
    named = dict(result.named_parameters())
    for old, new in zip(optimizer.param_groups, ours.param_groups, strict=True):
        assert {k: v for k, v in old.items() if k != "params"} == {k: v for k, v in new.items() if k != "params"}
        keys = [k for p in old["params"] for k, q in parameters if p is q]
        assert all(p is named[k] for p, k in zip(new["params"], keys, strict=True))
    assert ours.state.keys() == set(named.values())

    step(module, optimizer, x)
    step(result, ours, x)
    for key, before in parameters:
        after, kept = named[key], cut.get(key, {})
        assert (after.shape == before.shape) is not bool(kept)
        torch.testing.assert_close(after, rest(before, kept, after), rtol=1e-4, atol=1e-6)
        states = tensors_of(ours.state[after])
        assert states.keys() == tensors_of(optimizer.state[before]).keys()
        for entry, old_state in tensors_of(optimizer.state[before]).items():
            expected = rest(old_state, kept, after) if old_state.dim() else old_state
            torch.testing.assert_close(states[entry], expected, rtol=1e-4, atol=1e-6)


def remember_the_weights(optimizer: optim.Optimizer) -> None:
    """State that is known from the parameter alone."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            optimizer.state[p] = {"step": torch.tensor(7.0), "exp_avg": 3 * p.detach(), "exp_avg_sq": p.detach() ** 2}


@pytest.mark.parametrize("name", NETWORKS)
def test_state_is_cut_as_its_parameter(name: str) -> None:
    """Traced modules, tied weights, branches and every layout that simplify moves: what was 3 w is 3 w afterwards."""
    build, example, symbol, _ = NETWORKS[name]
    module, x = made(build), example()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    graph = load(module, args=(x,), dynamic_shapes=({0: symbol},) if symbol else None)
    optimizer = optim.Adam(module.parameters())
    remember_the_weights(optimizer)
    result = export(pruned(graph), module, optimizer=optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == len(list(module.parameters()))
    assert {id(p) for p in held} == {id(p) for p in result.parameters()}
    assert optimizer.state.keys() == set(held)
    for parameter in held:
        state = optimizer.state[parameter]
        assert state["step"].item() == 7
        assert torch.equal(state["exp_avg"], 3 * parameter) and torch.equal(state["exp_avg_sq"], parameter**2)


@pytest.mark.parametrize("inplace", [False, True])
def test_mended_weights_change_and_their_state_does_not(inplace: bool) -> None:
    """Which elements are left cannot be read off the new values."""
    x, found = torch.randn(64, 3, 8, 8), []
    for mend in ("none", "layers"):
        module = made(Residual)
        optimizer = optim.Adam(module.parameters())
        remember_the_weights(optimizer)
        graph = load(module, args=(x,), dynamic_shapes=({0: BATCH},))
        smaller = Pipeline([*Pipeline("simplify").passes, Prune(calibration=x.numpy(), mend=mend)])(graph)
        result = export(smaller, module, inplace=inplace, optimizer=optimizer)
        assert (result is module) is inplace
        found.append([(p.detach(), optimizer.state[p]["exp_avg"]) for p in result.parameters()])
    plain, mended = found
    assert all(torch.equal(a[1], b[1]) for a, b in zip(plain, mended, strict=True))
    assert not all(torch.equal(a[0], b[0]) for a, b in zip(plain, mended, strict=True))


def test_stages_and_passes_in_a_row_add_up() -> None:
    module, x = made(Residual), torch.randn(2, 3, 8, 8)
    optimizer = optim.Adam(module.parameters())
    remember_the_weights(optimizer)
    passes = "simplify,prune(ratio=0.3,steps=3),prune(ratio=0.2,criterion=random),eliminate_dead"
    result = export(Pipeline(passes)(load(module, args=(x,))), module, optimizer=optimizer)
    for parameter in result.parameters():
        assert torch.equal(optimizer.state[parameter]["exp_avg"], 3 * parameter)


def test_several_optimizers_and_parameters_of_other_modules() -> None:
    module, other, x = made(Residual), nn.Linear(3, 3), torch.randn(2, 3, 8, 8)
    matrices = [p for p in module.parameters() if p.dim() > 1]
    first = optim.SGD([*matrices, *other.parameters()], lr=0.1, momentum=0.9)
    second = optim.Adam([p for p in module.parameters() if p.dim() == 1])
    schedule = optim.lr_scheduler.StepLR(first, 1, 0.5)
    other(torch.randn(2, 3)).sum().backward()
    step(module, second, x)
    first.step()
    moment = first.state[other.weight]["momentum_buffer"]
    result = export(pruned(load(module, args=(x,))), module, optimizer=[first, second])
    held = [p for o in (first, second) for g in o.param_groups for p in g["params"]]
    assert {id(p) for p in held} == {id(p) for p in [*result.parameters(), *other.parameters()]}
    assert first.state[other.weight]["momentum_buffer"] is moment
    schedule.step()
    assert first.param_groups[0]["lr"] == 0.05
    step(result, second, x)
    first.step()


def problem() -> tuple[Tensor, Tensor]:
    """Five colours in noise, and which of them it is."""
    labels = torch.randint(0, 5, (96,))
    return torch.randn(5, 3, 1, 1)[labels] + torch.randn(96, 3, 8, 8), labels


def test_prune_train_prune() -> None:
    """Three rounds in a training loop: the loss falls between prunings, and one optimiser stays in charge."""
    torch.manual_seed(0)
    x, labels = problem()
    module: nn.Module = made(Residual)
    optimizer = optim.AdamW(module.parameters(), lr=3e-3)
    sizes, losses = [], []
    for round_ in range(4):
        for _ in range(12):
            loss = functional.cross_entropy(module(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        sizes.append(sum(p.numel() for p in module.parameters()))
        if round_ == 3:
            break
        graph = Pipeline("simplify,prune(ratio=0.2,criterion=l2)")(load(module, args=(x[:2],)))
        module = export(graph, module, inplace=round_ == 1, optimizer=optimizer)
        assert [p for g in optimizer.param_groups for p in g["params"]] == list(module.parameters())
        for parameter in module.parameters():
            state = optimizer.state[parameter]
            assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
            assert state["step"] == 12 * (round_ + 1)
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    assert losses[-1] < 0.5 * losses[0]
    torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict()}, buffer := io.BytesIO())
    buffer.seek(0)
    saved = torch.load(buffer)
    fresh = optim.AdamW(module.parameters())
    fresh.load_state_dict(saved["optimizer"])
    assert torch.equal(*(next(iter(o.state.values()))["exp_avg"] for o in (fresh, optimizer)))


@pytest.mark.parametrize("criterion_name", ["snip", "grasp", "crop", "synflow", "random"])
def test_before_training(criterion_name: str) -> None:
    """Fresh weights, a fresh optimiser: prune first, then train."""
    torch.manual_seed(0)
    x, labels = problem()
    module = Residual()
    optimizer = optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    prune = Prune(criterion=criterion_name, metric="params", calibration={"x": x.numpy(), "labels": labels.numpy()})
    graph = prune(Pipeline("simplify")(load(module, args=(x,), dynamic_shapes=({0: BATCH},))))
    result = export(graph, module, optimizer=optimizer)
    assert sum(p.numel() for p in result.parameters()) < 0.6 * sum(p.numel() for p in module.parameters())
    assert not optimizer.state
    losses = []
    for _ in range(25):
        loss = functional.cross_entropy(result(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def stepped(module: nn.Module, make: Callable[[Any], optim.Optimizer], x: Tensor) -> optim.Optimizer:
    optimizer = make(module.parameters())
    module(x).square().mean().backward()
    optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type, return-value]
    return optimizer


@pytest.mark.parametrize(
    ("make", "match", "hint"),
    [
        (lambda p: optim.SGD(nn.Linear(2, 2).parameters()), "SGD holds none of the module's", "of the old module"),
        (lambda p: optim.Adafactor(p), "'row_var', of shape .*for 'depthwise.weight', of shape", r"state.clear\(\)"),
        (lambda p: optim.LBFGS(p), "LBFGS keeps parameters in its attribute '_params'", "a new optimizer"),
    ],
)
def test_what_cannot_be_cut_is_refused(make: Any, match: str, hint: str) -> None:
    module, x = made(Residual), torch.randn(2, 3, 8, 8)
    optimizer = stepped(module, make, x)
    before = [dict(g) for g in optimizer.param_groups], dict(optimizer.state)
    widths = dict(module.named_parameters())
    with pytest.raises(SecateurError, match=match) as caught:
        export(pruned(load(module, args=(x,))), module, inplace=True, optimizer=optimizer)
    assert caught.value.code == "E_TORCH_OPTIMIZER" and re.search(hint, caught.value.hint)
    assert ([dict(g) for g in optimizer.param_groups], dict(optimizer.state)) == before
    assert all(p is widths[n] for n, p in module.named_parameters())


def test_what_did_not_change_may_be_remembered_in_any_form() -> None:
    module, x = made(Residual), torch.randn(2, 3, 8, 8)
    optimizer = stepped(module, lambda p: optim.Adafactor(p), x)
    only_head = Pipeline("simplify,prune(ratio=0.1,metric=params,ignore=[stem*])")(load(module, args=(x,)))
    for parameter in (module.expand.weight, module.project.weight, module.depthwise.weight):
        del optimizer.state[parameter]
    for parameter in (module.expand.bias, module.norm2.weight, module.norm2.bias):
        del optimizer.state[parameter]
    row = optimizer.state[module.stem.weight]["row_var"]
    result: Any = export(only_head, module, optimizer=optimizer)
    assert optimizer.state[result.stem.weight]["row_var"] is row


def test_a_graph_from_a_file_does_not_tell(tmp_path: Path) -> None:
    module, x = made(Residual), torch.randn(2, 3, 8, 8)
    optimizer = optim.SGD(module.parameters(), momentum=0.9)
    smaller = load(export(pruned(load(module, args=(x,))), tmp_path / "pruned.onnx")[0])
    with pytest.raises(SecateurError, match="does not say which elements of") as caught:
        export(smaller, module, optimizer=optimizer)
    assert caught.value.code == "E_TORCH_OPTIMIZER" and "as it is" in caught.value.hint
    with pytest.raises(SecateurError, match="an optimizer goes with a module") as caught:
        export(smaller, tmp_path / "again.onnx", optimizer=optimizer)  # type: ignore[call-overload]
    assert caught.value.code == "E_EXPORT_TARGET"
    with pytest.raises(SecateurError, match=r"a int is no torch\.optim\.Optimizer"):
        export(pruned(load(module, args=(x,))), module, optimizer=[3])  # type: ignore[call-overload]


def test_a_failure_leaves_the_optimizer_alone() -> None:
    module, x = made(NETWORKS["hard-coded"][0]), torch.randn(2, 3, 4, 4)
    optimizer = optim.Adam(module.parameters())
    remember_the_weights(optimizer)
    with pytest.raises(SecateurError, match="forward depends on the old widths"):
        export(pruned(load(module, args=(x,))), module, inplace=True, optimizer=optimizer)
    assert optimizer.state.keys() == set(module.parameters())
    assert all(torch.equal(optimizer.state[p]["exp_avg"], 3 * p) for p in module.parameters())
