"""Criteria over gradients against autograd on the original module, on a residual network and on attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from compiler.frontends import load
from compiler.ir import SecateurError
from passes import Context, Groups, Pipeline, Prune, dependency_groups
from passes.calibration import Evidence, calibration_samples
from passes.calibration.gradients import Gradients
from passes.calibration.losses import Loss
from passes.importance import criterion, unit_scores

Weights = dict[str, torch.Tensor]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.deep = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.wide = nn.Conv2d(6, 6, 1)
        self.last = nn.Conv2d(12, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.stem(x))
        x = x + self.wide(torch.tanh(self.deep(x)))
        x = torch.tanh(self.last(torch.cat([x, x.sin()], 1)))
        return self.head(x.mean((2, 3)))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 12, bias=False) for _ in range(3))
        self.head = nn.Linear(12, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (f(x).reshape(-1, 5, 2, 6).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.head(y.transpose(1, 2).reshape(-1, 5, 12).mean(1))


class Case:
    """A module, its graph's groups, labelled samples, and autograd on the module itself."""

    def __init__(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        torch.manual_seed(3)
        self.module = module.eval()
        self.x, self.labels = torch.randn(12, *shape), torch.randint(0, 4, (12,))
        spec = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
        graph = Pipeline("simplify")(load(module, args=(self.x,), dynamic_shapes=spec))
        self.groups = dependency_groups(graph)
        samples = calibration_samples(graph, {"x": self.x.numpy(), "labels": self.labels.numpy()}, batch=5)
        self.evidence = Evidence(self.groups, samples)

    def loss(self, rows: slice = slice(None)) -> torch.Tensor:
        return nn.functional.cross_entropy(self.module(self.x[rows]), self.labels[rows])

    @property
    def weights(self) -> Weights:
        return {name: p for name, p in self.module.named_parameters() if p.dim() > 1}

    def gradients(self, loss: torch.Tensor, graph: bool = False) -> Weights:
        found = torch.autograd.grad(loss, list(self.weights.values()), create_graph=graph)
        return dict(zip(self.weights, found, strict=True))

    def hessian_gradient(self) -> Weights:
        first = self.gradients(self.loss(), graph=True)
        along = sum((g * g.detach()).sum() for g in first.values())
        return self.gradients(along)  # type: ignore[arg-type]


CASES = {"residual": lambda: Case(Residual(), (2, 7, 7)), "heads": lambda: Case(Heads(), (5, 8))}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def expected(groups: Groups, elements: Weights, finish: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Sums over all that each unit owns of the elements' scores, by looking up each element's units."""
    totals = np.zeros(groups.unit_count)
    for constant in groups.graph.constants():
        layout = groups.layouts.get(constant) or []
        stored = constant.numpy().shape
        for name, scores in elements.items():
            if not constant.name.startswith(name.removesuffix(".weight")) or len(stored) != scores.dim():
                continue
            array = scores.detach().double().numpy()
            array = array if array.shape == stored and _same(constant.numpy(), name) else array.T
            for labels in layout:
                if labels is not None:
                    units = np.broadcast_to(labels, stored)
                    np.add.at(totals, units[units >= 0], array[units >= 0])
    return finish(totals)


_STORED: dict[str, np.ndarray] = {}


def _same(array: np.ndarray, name: str) -> bool:
    return bool(np.array_equal(array, _STORED[name]))


def check(case: Case, name: str, elements: Weights, finish: Callable[[np.ndarray], np.ndarray] = np.asarray) -> None:
    _STORED.clear()
    _STORED.update({n: p.detach().numpy() for n, p in case.weights.items()})
    scores = unit_scores(case.groups, criterion(name), case.evidence)
    wanted = expected(case.groups, elements, finish)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores, wanted, rtol=2e-3, atol=1e-6 * np.abs(wanted).max())


def test_snip(case: Case) -> None:
    g = case.gradients(case.loss())
    check(case, "snip", {n: (w * g[n]).abs() for n, w in case.weights.items()})


def test_taylor(case: Case) -> None:
    g = case.gradients(case.loss())
    check(case, "taylor", {n: (w * g[n]).square() for n, w in case.weights.items()})


def test_taylor_of_a_whole_unit(case: Case) -> None:
    g = case.gradients(case.loss())
    check(case, "taylor_group", {n: w * g[n] for n, w in case.weights.items()}, np.square)


def test_obd_with_the_fisher_diagonal(case: Case) -> None:
    total = {n: torch.zeros_like(w) for n, w in case.weights.items()}
    for i in range(len(case.x)):
        for n, g in case.gradients(case.loss(slice(i, i + 1))).items():
            total[n] += g.square() / len(case.x)
    check(case, "obd_fisher", {n: w.square() * total[n] / 2 for n, w in case.weights.items()})


def full_products(case: Case, batches: list[slice]) -> Weights:
    """H g with g of all samples and H summed over batches, as the samples come."""
    g = case.gradients(case.loss())
    total = {n: torch.zeros_like(w) for n, w in case.weights.items()}
    for rows in batches:
        first = case.gradients(case.loss(rows), graph=True)
        along = sum((first[n] * g[n].detach()).sum() for n in g)
        for n, h in case.gradients(along).items():  # type: ignore[arg-type]
            total[n] += h * len(case.x[rows]) / len(case.x)
    return total


def test_grasp_and_crop(case: Case) -> None:
    product = full_products(case, [slice(0, 5), slice(5, 10), slice(10, 12)])
    biases = case.evidence.gradients.first  # the gradient in biases takes part in H g
    assert len(biases) >= len(case.weights)
    own = unit_scores(case.groups, criterion("crop"), case.evidence)
    assert np.isfinite(own).all()
    assert (own >= 0).all()
    if not any(p.dim() == 1 for p in case.module.parameters()):
        check(case, "grasp", {n: w * product[n] for n, w in case.weights.items()})


def test_the_diagonal_of_the_hessian_is_that_of_a_linear_model() -> None:
    """Squared error of y = W x: the Hessian is E[x x'] for each output, and 2 / outputs."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False)).eval()
    x, y = torch.randn(64, 4), torch.randn(64, 3)
    graph = Pipeline("simplify")(load(module, args=(x,)))
    name = graph.inputs[0].name
    samples = calibration_samples(graph, {name: x.numpy(), "labels": y.numpy()})
    estimates = [Gradients(graph, samples, "mse", seed=seed).hessian_diagonal for seed in range(60)]
    found = {v: np.mean([e[v] for e in estimates], 0) for v in estimates[0]}
    hidden = module[0](x).detach()
    wanted = 2 / 3 * hidden.square().mean(0).numpy()
    last = next(a for v, a in found.items() if sorted(a.shape) == [3, 5])
    rows = last if last.shape == (3, 5) else last.T
    np.testing.assert_allclose(rows.mean(0), wanted, rtol=0.25)


def test_synflow_needs_no_data(case: Case) -> None:
    groups = case.groups
    scores = unit_scores(groups, criterion("synflow"))
    assert np.isfinite(scores).all()
    assert (scores >= 0).all() or isinstance(case.module, Heads)  # Softmax inhibits


def test_synflow_of_a_chain_is_the_flow_through_each_unit() -> None:
    module = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).eval()
    graph = Pipeline("simplify")(load(module, args=(torch.randn(1, 4),)))
    groups = dependency_groups(graph)
    up, down = (p.detach().abs().double() for p in module.parameters())
    flow = (up.sum(1) * down.sum(0)).numpy()
    np.testing.assert_allclose(unit_scores(groups, criterion("synflow"))[groups[0].blocks[0]], 2 * flow, rtol=1e-6)


def test_a_loss_needs_labels(case: Case) -> None:
    samples = calibration_samples(case.groups.graph, {"x": case.x.numpy()})
    with pytest.raises(SecateurError, match="E_NO_LABELS"):
        unit_scores(case.groups, criterion("snip"), Evidence(case.groups, samples))
    with pytest.raises(SecateurError, match="E_NO_LABELS"):
        unit_scores(case.groups, criterion("taylor"))


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.classes, self.boxes = nn.Linear(6, 10), nn.Linear(10, 5), nn.Linear(10, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.tanh(self.body(x))
        return self.classes(h).softmax(-1), self.boxes(h)


@pytest.fixture
def two_heads() -> tuple[TwoHeads, Groups, torch.Tensor]:
    torch.manual_seed(0)
    module, x = TwoHeads().eval(), torch.randn(8, 6)
    graph = Pipeline("simplify")(load(module, args=(x,)))
    return module, dependency_groups(graph), x


def gradient(groups: Groups, x: torch.Tensor, labels: np.ndarray, *loss: object, **options: str) -> np.ndarray:
    """dL/dw of the layer that both heads read, [10, 6]."""
    name = groups.graph.inputs[0].name
    samples = calibration_samples(groups.graph, {name: x.numpy(), "labels": labels})
    found = Evidence(groups, samples, *loss, **options).gradients.first  # type: ignore[arg-type]
    array = next(a for a in found.values() if sorted(a.shape) == [6, 10])
    return array if array.shape == (10, 6) else array.T


def test_the_loss_reads_the_output_that_is_named(two_heads: tuple[TwoHeads, Groups, torch.Tensor]) -> None:
    module, groups, x = two_heads
    classes, boxes = (v.name for v in groups.graph.outputs)
    numbers, targets = np.arange(8) % 5, np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)

    def expected(loss: torch.Tensor) -> np.ndarray:
        return torch.autograd.grad(loss, module.body.weight)[0].numpy()

    scores, sides = module(x)
    own = gradient(groups, x, numbers, "cross_entropy", loss_output=classes)
    np.testing.assert_allclose(
        own, expected(nn.functional.nll_loss(scores.log(), torch.tensor(numbers))), rtol=1e-3, atol=1e-7
    )
    scores, sides = module(x)
    wanted = expected(nn.functional.mse_loss(sides, torch.tensor(targets)))
    np.testing.assert_allclose(gradient(groups, x, targets, "mse", loss_output=boxes), wanted, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(
        gradient(groups, x, targets, lambda y, t: (y - t).square().mean(), loss_output=boxes),
        wanted,
        rtol=1e-3,
        atol=1e-7,
    )
    scores, sides = module(x)
    both = expected(sides.abs().mean() + scores[:, 0].mean())
    found = gradient(groups, x, numbers, lambda found, t: found[boxes].abs().mean() + found[classes][:, 0].mean())
    np.testing.assert_allclose(found, both, rtol=1e-3, atol=1e-7)


def test_classes_may_be_the_last_axis_and_labels_may_be_left_out(case: Case) -> None:
    graph = case.groups.graph
    scores, labels = torch.randn(2, 7, 5, requires_grad=True), np.array([[1, 4, 0, 2, 3, -100, 1]] * 2)
    expected = nn.functional.cross_entropy(scores.movedim(-1, 1), torch.tensor(labels))
    torch.testing.assert_close(Loss(graph)(scores, labels), expected)
    torch.testing.assert_close(Loss(graph)(scores.movedim(-1, 1), labels.astype(np.int32)), expected)


WRONG_LABELS = {
    "several outputs": (np.arange(8) % 5, ("cross_entropy",), {}, "E_LOSS_OUTPUT.*2 outputs, and the loss reads one"),
    "no such output": (np.arange(8) % 5, ("mse",), {"loss_output": "z"}, "E_LOSS_OUTPUT.*has no output 'z'"),
    "shape": (
        np.zeros((8, 2), int),
        ("cross_entropy", 0),
        {},
        r"E_LABELS.*must be \[8\], as output .*\[8, 5\], and are \[8, 2\]",
    ),
    "floats": (np.zeros(8), ("cross_entropy", 0), {}, "E_LABELS.*must be integers, and are of float64"),
    "range": (np.arange(8), ("cross_entropy", 0), {}, "E_LABELS.*from 0 to 4, and 7 is among them"),
    "negative": (np.full(8, -1), ("cross_entropy", 0), {}, "E_LABELS.*and -1 is among them"),
    "targets": (np.zeros((8, 3)), ("mse", 1), {}, r"E_LABELS.*must be \[8, 4\], as output .*, and are \[8, 3\]"),
    "no scalar": (np.zeros(8), (lambda y, t: y, 1), {}, r"E_LOSS.*gave a tensor \[8, 4\], not a scalar"),
    "no tensor": (np.zeros(8), (lambda y, t: 1.0, 1), {}, "E_LOSS.*gave a float, not a scalar"),
    "detached": (np.zeros(8), (lambda y, t: y.sum().detach(), 1), {}, "E_LOSS.*without a gradient"),
    "infinite": (np.zeros(8), (lambda y, t: y.sum() / 0, 1), {}, "E_LOSS.*the loss is -?inf on samples 0"),
    "unknown": (np.zeros(8), ("mean_squared", 1), {}, "E_OPTION_VALUE.*loss cannot be 'mean_squared'"),
}


@pytest.mark.parametrize("name", WRONG_LABELS)
def test_wrong_labels_and_losses_are_refused(name: str, two_heads: tuple[TwoHeads, Groups, torch.Tensor]) -> None:
    _, groups, x = two_heads
    labels, (loss, *index), options, message = WRONG_LABELS[name]
    named = {"loss_output": groups.graph.outputs[index[0]].name} if index else {}
    with pytest.raises(SecateurError, match="(?s)" + message):
        gradient(groups, x, labels, loss, **options, **named)


def test_prune_takes_a_loss(two_heads: tuple[TwoHeads, Groups, torch.Tensor]) -> None:
    _, groups, x = two_heads
    data = {groups.graph.inputs[0].name: x.numpy(), "sides": np.ones((8, 4), np.float32)}
    output = groups.graph.outputs[1].name
    pruned = [
        Prune(ratio=0.3, criterion="taylor", calibration=data, labels="sides", loss=loss, loss_output=output)(
            groups.graph
        )
        for loss in ("mse", lambda y, t: (y - t).square().mean())
    ]
    assert str(pruned[0]) == str(pruned[1])


@pytest.mark.parametrize(
    "name", ["snip", "grasp", "crop", "synflow", "taylor", "taylor_group", "obd_fisher", "hessian_trace"]
)
def test_every_criterion_prunes(case: Case, name: str) -> None:
    context = Context()
    data = {"x": case.x.numpy(), "labels": case.labels.numpy()}
    Prune(ratio=0.4, metric="params", criterion=name, calibration=data)(case.groups.graph, context)
    assert context.reports["prune"][0].reached == pytest.approx(0.4, abs=0.1)
