"""A graph as an nn.Module: equal to ONNX Runtime, with the original's gradients, trained and written back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

from compiler.exporters import from_module, save_onnx, to_module
from compiler.exporters.torch.differentiable.checking import check_module
from compiler.exporters.torch.differentiable.module import DifferentiableGraph
from compiler.exporters.torch.differentiable.rules import RULES, torch_rule
from compiler.frontends import load
from compiler.ir import CheckFailed, Graph, Node, SecateurError, Value, infer_shapes, verify
from compiler.ir.execute import execute, random_inputs, relative_difference
from examples.fashion_mnist.data import load_test_images, preprocess
from passes import Pipeline, Prune, Sparsify, sparsity_of
from tests.networks import network
from tests.passes.test_coupling_contrib import PATTERNS
from tests.strategies import networks
from tests.zoo.entry import zoo

torch.set_num_threads(1)

FASHION = Path(__file__).parents[2] / "examples" / "fashion_mnist" / "fashion_cnn.onnx"


def graph_of(op: str, *operands: Value | None, outputs: int = 1, domain: str = "", **attributes: object) -> Graph:
    """One node; operands that are no constants are the inputs."""
    results = [Value(f"y{i}") for i in range(outputs)]
    node = Node(op, list(operands), results, attributes, name="node", domain=domain)
    graph = Graph("net", [v for v in operands if v is not None and not v.is_constant], results, [node])
    infer_shapes(graph)
    verify(graph)
    return graph


def constant(name: str, *shape: int, scale: float = 1.0) -> Value:
    return Value(name, data=(scale * np.random.default_rng(len(name)).standard_normal(shape)).astype(np.float32))


@pytest.mark.parametrize("name", zoo())
def test_a_network_of_the_zoo(name: str) -> None:
    to_module(Pipeline("simplify")(load(zoo()[name].build())))  # compares with ONNX Runtime, at most 1e-4


@pytest.mark.parametrize("name", ["resnet.bottleneck", "vit.vit", "tagger.lstm", "unet.unet"])
def test_a_symbolic_batch(name: str) -> None:
    graph = Pipeline("simplify")(load(zoo()[name].build.symbolic()))
    module = to_module(graph)
    for batch in (1, 3):
        check_module(graph, module, random_inputs(graph, symbol=batch))


@pytest.mark.parametrize("name", PATTERNS)
def test_operators_of_the_runtime(name: str) -> None:
    to_module(network(PATTERNS[name][0]))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks())
def test_any_network_and_what_is_left_of_it(graph: Graph) -> None:
    to_module(graph)
    try:
        pruned = Prune(ratio=0.4, criterion="random")(graph)
    except SecateurError as error:
        if error.code not in ("E_RATIO_UNREACHABLE", "E_NOTHING_TO_PRUNE"):
            raise
        return
    to_module(pruned)


@pytest.mark.parametrize("name", ["mobilenet.v3", "vit.vit", "tagger.lstm", "tagger.gru"])
def test_gradients_are_those_of_the_original_module(name: str) -> None:
    net, arguments = zoo()[name].build.made()
    graph = load(net, args=arguments)  # not simplified, so that every parameter is there as it is
    module = to_module(graph).double()
    net.double()
    arguments = tuple(a.double() if a.is_floating_point() else a for a in arguments)
    for training in (False, True):
        for part in (*net.modules(), *module.modules()):
            part.training = training and not isinstance(part, nn.Dropout)
        compare_gradients(net, module, arguments)
        statistics = {n: b for n, b in net.named_buffers() if n in module.state_names}
        for key, buffer in statistics.items():
            torch.testing.assert_close(module.constant(key), buffer, rtol=1e-6, atol=1e-7)
            changed = not np.allclose(graph.value(key).numpy(), buffer)
            assert changed == (training and "running" in key)


def compare_gradients(net: nn.Module, module: DifferentiableGraph, arguments: tuple[Tensor, ...]) -> None:
    """Of a weighed sum of all outputs, by every parameter of the original module."""
    net.zero_grad()
    module.zero_grad()
    expected, found = (y if isinstance(y, tuple) else (y,) for y in (net(*arguments), module(*arguments)))
    weights = [torch.randn_like(y) for y in expected]
    for outputs in (expected, found):
        sum((y * w).sum() for y, w in zip(outputs, weights, strict=True)).backward()
    parameters = module.parameters_by_constant()
    named = {n: p for n, p in net.named_parameters() if p.grad is not None}
    assert named and set(named) <= set(parameters)
    for key, parameter in named.items():
        torch.testing.assert_close(parameters[key].grad, parameter.grad, rtol=1e-5, atol=1e-7)


def small_network() -> Graph:
    """Convolution, BatchNormalization, a residual sum, pooling and a classifier; the batch is symbolic."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    torch.manual_seed(0)
    return load(net, args=(torch.randn(3, 2, 4, 4),), dynamic_shapes={"input": {0: "batch"}})


@pytest.mark.parametrize("training", [False, True])
def test_numerical_gradients(training: bool) -> None:
    module = to_module(small_network()).double().train(training)
    parameters = dict(module.named_parameters())
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, *values: Tensor) -> Tensor:
        named = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(module, named, (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters.values()))


def test_second_derivatives() -> None:
    module = to_module(small_network())
    loss = module(torch.randn(2, 2, 4, 4)).square().sum()
    first = torch.autograd.grad(loss, list(module.parameters()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), list(module.parameters()))
    assert all(torch.isfinite(g).all() for g in second) and any(g.abs().sum() > 0 for g in second)


def test_fine_tuning_an_onnx_file(tmp_path: Path) -> None:
    graph = load(FASHION)
    module = to_module(graph).train()
    images, labels = load_test_images()
    x, y = torch.from_numpy(preprocess(images[:64])), torch.from_numpy(labels[:64].astype(np.int64))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02)
    losses = []
    for _ in range(3):
        loss = nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    trained = from_module(graph, module)
    save_onnx(trained, tmp_path / "trained.onnx")
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    found = execute(tmp_path / "trained.onnx", {"input": x.numpy()})
    assert relative_difference(found, {"logits": expected}) <= 1e-4
    assert relative_difference(execute(graph, {"input": x.numpy()}), {"logits": expected}) > 1e-3
    mean = "stem.bn.running_mean"
    assert not np.array_equal(trained.value(mean).numpy(), graph.value(mean).numpy())
    check_module(trained, to_module(load(tmp_path / "trained.onnx")))


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.AdamW(p, lr=1e-3),
    ],
    ids=["sgd", "adamw"],
)
def test_zeros_stay_while_a_sparse_network_learns(optimizer: Callable) -> None:
    graph = Sparsify(0.7, "4x1", "erk")(load(FASHION))
    images, labels = load_test_images()
    x, y = torch.from_numpy(preprocess(images[:64])), torch.from_numpy(labels[:64].astype(np.int64))
    trained = {}
    for keep_zeros in (True, False):
        module = copy.deepcopy(to_module(graph, keep_zeros=keep_zeros)).train()
        steps, losses = optimizer(module.parameters()), []
        for _ in range(4):
            loss = nn.functional.cross_entropy(module(x), y)
            steps.zero_grad()
            loss.backward()
            steps.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        trained[keep_zeros] = from_module(graph, module)
    before = {w.name: w.zeros for w in sparsity_of(graph)}
    assert sum(w > 0 for w in before.values()) > 5
    assert {w.name: w.zeros for w in sparsity_of(trained[True])} == before
    assert sum(w.zeros for w in sparsity_of(trained[False])) < sum(before.values()) // 2
    for name, zeros in before.items():
        old, new = (g.value(name).numpy() for g in (graph, trained[True]))
        assert not zeros or not np.array_equal(old, new)
    module = to_module(trained[True], keep_zeros=True)
    assert set(module.state_dict()) == set(to_module(graph).state_dict())


def test_constants_keep_their_names_and_roles() -> None:
    graph = load(FASHION)
    module = to_module(graph)
    assert set(module.state_names) == {v.name for v in graph.constants()}
    assert all(name == held for name, held in module.state_names.items())
    assert "block1.shortcut.conv.weight" in dict(module.named_parameters())
    assert {n for n, _ in module.named_buffers() if "running" in n} == {
        v.name for v in graph.constants() if "running" in v.name
    }
    assert all("running" not in n for n in module.parameters_by_constant())
    assert module.constant("classifier.bias") is dict(module.named_parameters())["classifier.bias"]
    assert not isinstance(to_module(graph, trainable=("classifier*",)).constant("stem.conv.weight"), nn.Parameter)


@pytest.mark.parametrize("name", ["a/b:0", "1.weight", "", "a..b", "training", "forward.weight", "state_names"])
def test_any_name_can_be_held(name: str) -> None:
    name = name or "."
    x, bias = Value("x", np.float32, (2, 3)), constant("bias", 3)
    weight = Value(name, data=np.ones((2, 3), np.float32))
    total, result = Value("total"), Value("y")
    nodes = [Node("Add", [x, weight], [total], name="add"), Node("Mul", [total, bias], [result], name="mul")]
    graph = Graph("net", [x], [result], nodes)
    infer_shapes(graph)
    module = to_module(graph)
    with torch.no_grad():
        module.parameters_by_constant()[name].mul_(3)
    assert (from_module(graph, module).value(name).numpy() == 3).all()
    assert len(module.state_dict()) == 2


def test_names_that_contain_each_other() -> None:
    x = Value("x", np.float32, (2,))
    values = [constant(n, 2) for n in ("a", "a.b", "a_b", "a.b.c")]
    results = [Value(f"y{i}") for i in range(4)]
    nodes = [
        Node("Add", [before, value], [result], name=f"add{result.name}")
        for before, value, result in zip([x, *results], values, results, strict=False)
    ]
    graph = Graph("net", [x], [results[-1]], nodes)
    infer_shapes(graph)
    module = to_module(graph)
    assert set(module.parameters_by_constant()) == {v.name for v in values}
    assert len(set(module.state_names.values())) == 4


def test_a_constant_used_twice_is_one_parameter() -> None:
    x, weight = Value("x", np.float32, (2, 3, 3)), constant("weight", 3, 3)
    y, z = Value("y"), Value("z")
    graph = Graph(
        "net", [x], [z], [Node("MatMul", [x, weight], [y], name="a"), Node("MatMul", [y, weight], [z], name="b")]
    )
    infer_shapes(graph)
    module = to_module(graph)
    assert [n for n, _ in module.named_parameters()] == ["weight"]
    data = torch.randn(2, 3, 3)
    module(data).sum().backward()
    again = torch.from_numpy(weight.numpy()).clone().requires_grad_()
    (data @ again @ again).sum().backward()
    torch.testing.assert_close(module.constant("weight").grad, again.grad)


def test_what_only_shapes_need_is_no_parameter() -> None:
    x, scales = Value("x", np.float32, (1, 2, 4, 4)), Value("scales", data=np.array([1, 1, 2, 2], np.float32))
    module = to_module(graph_of("Resize", x, None, scales, mode="nearest"))
    assert list(module.parameters()) == [] and not isinstance(module.constant("scales"), nn.Parameter)
    x = Value("x", np.float32, (4, 4))
    mask = Value("mask", data=np.triu(np.full((4, 4), -np.inf, np.float32), 1))
    assert list(to_module(graph_of("Add", x, mask)).parameters()) == []


def test_precision_and_copies() -> None:
    graph = load(FASHION)
    module = to_module(graph)
    data = random_inputs(graph)["input"]
    x = torch.from_numpy(data)
    expected = module(x)
    for dtype, tolerance in ((torch.float64, 1e-4), (torch.bfloat16, 0.1), (torch.float16, 0.02)):
        other = copy.deepcopy(module).to(dtype)
        result = other(x.to(dtype))
        assert result.dtype == dtype
        assert torch.linalg.vector_norm(result.float() - expected) <= tolerance * torch.linalg.vector_norm(expected)
    assert from_module(graph, copy.deepcopy(module).double()).value("stem.conv.weight").dtype == np.float32
    torch.testing.assert_close(pickle.loads(pickle.dumps(module))(x), expected)
    torch.testing.assert_close(module(input=x), expected)


def test_casts_follow_the_precision_of_the_module() -> None:
    x, y, z, weight = Value("x", np.float32, (2, 2)), Value("y"), Value("z"), constant("weight", 2, 2)
    nodes = [Node("Cast", [x], [y], {"to": 1}, name="cast"), Node("MatMul", [y, weight], [z], name="product")]
    graph = Graph("net", [x], [z], nodes)
    infer_shapes(graph)
    module = to_module(graph).double()
    assert module(torch.randn(2, 2, dtype=torch.float64)).dtype == torch.float64


def test_dropout_drops_in_training_only() -> None:
    x, ratio = Value("x", np.float32, (1, 1000)), Value("ratio", data=np.float32(0.25))
    module = to_module(graph_of("Dropout", x, ratio))
    data = torch.ones(1, 1000)
    assert torch.equal(module(data), data)
    dropped = module.train()(data)
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert 0.15 < (dropped == 0).float().mean() < 0.35


def test_a_quantiser_passes_the_gradient_straight() -> None:
    x, scale = Value("x", np.float32, (4,)), Value("scale", data=np.float32(0.1))
    zero, y, z = Value("zero", data=np.int8(3)), Value("y"), Value("z")
    nodes = [
        Node("QuantizeLinear", [x, scale, zero], [y], name="quantize"),
        Node("DequantizeLinear", [y, scale, zero], [z], name="dequantize"),
    ]
    graph = Graph("net", [x], [z, y], nodes)
    infer_shapes(graph)
    data = torch.tensor([0.123, -0.456, 100.0, 0.0], requires_grad=True)
    result, integers = to_module(graph)(data)
    assert integers.dtype == torch.int8 and integers.tolist() == [4, -2, 127, 3]
    result.sum().backward()
    assert data.grad is not None
    torch.testing.assert_close(data.grad, torch.tensor([1.0, 1.0, 0.0, 1.0]))


def test_an_operator_without_a_rule_is_refused_when_the_module_is_made() -> None:
    x = Value("x", np.float32, (3, 3))
    numbers = {"bins": 8, "length": 16, "rate": 8192, "low": 0.0, "high": 9.0}
    graph = graph_of("MelWeightMatrix", *(Value(n, data=np.array(v)) for n, v in numbers.items()))
    graph.inputs = [x]
    with pytest.raises(SecateurError, match=r"(?s)E_NO_TORCH_RULE.*MelWeightMatrix.*node 'node'.*@torch_rule"):
        to_module(graph)


def test_what_a_rule_does_not_cover_is_refused_when_the_module_is_made() -> None:
    x, w, r = Value("x", np.float32, (2, 1, 3)), constant("w", 1, 4, 3), constant("r", 1, 4, 4)
    graph = graph_of("RNN", x, w, r, hidden_size=4, activations=["Nonsense"])
    with pytest.raises(SecateurError, match=r"(?s)E_NO_TORCH_RULE.*with the activation Nonsense"):
        to_module(graph)
    with pytest.raises(SecateurError, match=r"(?s)E_NO_TORCH_RULE.*'text' holds elements of type"):
        to_module(Graph("net", [text := Value("text", object, (1,))], [text], []))


def test_a_rule_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, ("", "Relu"), RULES["", "Relu"])
    torch_rule("Relu")(lambda op, x: x.clamp(min=0) + 1e-2)
    x = Value("x", np.float32, (2, 8))
    graph = graph_of("Relu", x)
    with pytest.raises(CheckFailed, match=r"(?s)E_TORCH_MODULE.*node 'node' \(Relu\): 'y0' is the first to differ"):
        to_module(graph)
    module = to_module(graph, verify=False)
    assert isinstance(module, DifferentiableGraph)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, "input 'input' is missing"),
        ((torch.zeros(1, 1, 28, 28),) * 2, {}, "2 tensors are given where the graph has 1 inputs"),
        ((torch.zeros(1, 1, 28, 28),), {"input": torch.zeros(1)}, "'input' is given twice"),
        ((), {"x": torch.zeros(1)}, "'x' is none of the graph"),
        ((torch.zeros(1, 3, 28, 28),), {}, "'input' is .1, 3, 28, 28. where the graph has"),
        ((np.zeros((1, 1, 28, 28), np.float32),), {}, "'input' is a ndarray, not a tensor"),
    ],
)
def test_wrong_inputs(args: tuple, kwargs: dict, message: str) -> None:
    module = to_module(load(FASHION), verify=False)
    with pytest.raises(SecateurError, match=rf"E_TORCH_ARGS.*{message}"):
        module(*args, **kwargs)


def test_a_module_of_another_graph() -> None:
    module = to_module(load(FASHION), verify=False)
    pruned = Pipeline("simplify,prune(ratio=0.3)")(load(FASHION))
    with pytest.raises(SecateurError, match=r"E_TORCH_WRITE_BACK.*is \[.*\] in the graph and \[.*\] in the module"):
        from_module(pruned, module)
    with pytest.raises(SecateurError, match=r"E_TORCH_WRITE_BACK.*the graph has no constant"):
        from_module(graph_of("Relu", Value("x", np.float32, (1,))), module)


def test_bodies_hold_parameters() -> None:
    """The branch that is taken is trained; the constants of both are the module's."""
    flag, x = Value("flag", np.bool_, ()), Value("x", np.float32, (2, 3))
    yes, no, y = Value("yes"), Value("no"), Value("y")
    then = Graph("then", [], [yes], [Node("MatMul", [x, constant("a", 3, 3)], [yes], name="a")])
    other = Graph("else", [], [no], [Node("MatMul", [x, constant("bb", 3, 3)], [no], name="b")])
    graph = Graph("net", [flag, x], [y], [Node("If", [flag], [y], {"then_branch": then, "else_branch": other})])
    infer_shapes(graph)
    module = to_module(graph)
    module(torch.tensor(True), torch.ones(2, 3)).sum().backward()
    assert module.constant("a").grad is not None and module.constant("bb").grad is None
    with torch.no_grad():
        module.constant("bb").zero_()
    assert not from_module(graph, module).all_constants()[1].numpy().any()


SMOOTH = {
    "transposed convolution": """(float[1,2,3,4] x, float[2,3,3,3] w) => (float[1,3,6,8] y) {
        y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w) }""",
    "deformable convolution": """(float[1,2,4,4] x, float[2,2,2,2] w, float[1,8,3,3] t) => (float[1,2,3,3] y) {
        o = Sigmoid(t) y = DeformConv(x, w, o) }""",
    "average pooling": """(float[1,2,5,5] x) => (float[1,2,3,3] y) {
        y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,0,0], ceil_mode=1>(x) }""",
    "p-norm pooling": """(float[1,2,4,4] x) => (float[1,2,3,3] y) { y = LpPool<kernel_shape=[2,2]>(x) }""",
    "cubic resizing": """(float[1,1,4,4] x) => (float[1,1,6,3] y) { s = Constant<value_floats=[1.0,1.0,1.5,0.75]>()
        y = Resize<mode="cubic", antialias=1, exclude_outside=1>(x, , s) }""",
    "local response": "(float[1,5,2,2] x) => (float[1,5,2,2] y) { y = LRN<size=3, alpha=0.5>(x) }",
    "mean and variance": "(float[2,2,2,2] x) => (float[2,2,2,2] y) { y = MeanVarianceNormalization(x) }",
    "unit vectors": "(float[2,4] x) => (float[2,4] y) { y = LpNormalization(x) }",
    "reflection": """(float[1,1,3,3] x) => (float[1,1,6,5] y) { p = Constant<value_ints=[0,0,2,1,0,0,1,1]>()
        y = Pad<mode="reflect">(x, p) }""",
    "backward slices": """(float[3,4] x) => (float[3,2] y) { a = Constant<value_ints=[1]>()
        s = Constant<value_ints=[-1]>() e = Constant<value_ints=[-9]>() t = Constant<value_ints=[-2]>()
        y = Slice(x, s, e, a, t) }""",
    "scattered sums": """(float[4,3] x) => (float[4,3] y) { i = Constant<value=int64[3,1] {0,2,0}>() s = Tanh(x)
        r = Constant<value_ints=[3]>() z = Constant<value_ints=[0]>() u = Slice(s, z, r, z)
        y = ScatterND<reduction="add">(x, i, u) }""",
    "attention": """(float[1,4,8] x) => (float[1,4,8] y) {
        y = Attention<is_causal=1, q_num_heads=2, kv_num_heads=2, softcap=2.0>(x, x, x) }""",
    "lstm": """(float[3,1,2] x, float[2,12,2] w, float[2,12,3] r, float[2,24] b, float[2,9] p) => (float[3,2,1,3] y) {
        y = LSTM<direction="bidirectional", hidden_size=3>(x, w, r, b, , , , p) }""",
    "gru": """(float[3,1,2] x, float[1,9,2] w, float[1,9,3] r) => (float[3,1,1,3] y) {
        y = GRU<direction="reverse", hidden_size=3>(x, w, r) }""",
    "sampling": """(float[1,2,4,4] x, float[1,2,3,2] g) => (float[1,2,2,3] y) { t = Tanh(g) y = GridSample(x, t) }""",
    "cumulative sums": """(float[4] x) => (float[4] y) { a = Constant<value=int64 {0}>()
        y = CumSum<exclusive=1, reverse=1>(x, a) }""",
}


@pytest.mark.parametrize("name", SMOOTH)
def test_numerical_gradients_of_operators(name: str) -> None:
    """By the input and by every parameter: nothing on the way is computed outside of torch's reach."""
    graph = network(SMOOTH[name], opset=23)
    module = to_module(graph).double()
    names, parameters = zip(*module.named_parameters(), strict=True) if list(module.parameters()) else ((), ())
    torch.manual_seed(0)
    x = torch.randn(graph.inputs[0].static_shape, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *parameters), fast_mode=True)
