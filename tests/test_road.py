"""The whole road on real networks: load, group, certify, prune, compile, run, each step checked by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from backends import build
from backends import load as load_artifact
from compiler import compile
from compiler.frontends import load
from compiler.ir import Graph, graph_cost
from compiler.ir.execute import execute, random_inputs, relative_difference
from passes import Context, Pipeline, Prune, certify, dependency_groups
from passes.structured.check import pruning_error
from tests.models import LIGHT_MODELS, LONG_LIGHT_MODELS, SMALL_LIGHT_MODELS, light_model

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "examples" / "fashion_mnist" / "fashion_cnn.onnx"
SHARED = ROOT.parent / "shared" / "models"
SHARED_MODELS = {"mnist": {}, "super_resolution": {"input": (1, 1, 224, 224)}, "Ultraface_version-RFB-320": {}}


def native_difference(graph: Graph, folder: Path) -> float:
    """The native artifact's largest relative difference from ONNX Runtime on one input of noise."""
    data = random_inputs(graph, seed=5)
    with load_artifact(build(graph, folder).path) as executable:
        return relative_difference(executable.run(data), execute(graph, data))


def whole_road(graph: Graph, folder: Path) -> None:
    groups = dependency_groups(graph)
    assert certify(graph, groups) <= 1e-4
    context = Context()
    pruned = Prune(ratio=0.5)(graph, context)
    report = context.reports["prune"][0]
    assert abs(report.reached - 0.5) <= 0.01
    data = random_inputs(graph, seed=4)
    before, after = execute(graph, data), execute(pruned, data)
    assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in before.items()}
    error = pruning_error(*report.selection, pruned)
    assert error is not None and error <= 1e-5
    assert native_difference(pruned, folder / "pruned") <= 1e-4


@pytest.mark.parametrize("name", [name for name in LIGHT_MODELS if name not in LONG_LIGHT_MODELS])
def test_light_networks(name: str, tmp_path: Path) -> None:
    whole_road(Pipeline("simplify")(load(light_model(name))), tmp_path)


@pytest.mark.parametrize("name", SMALL_LIGHT_MODELS)
def test_light_networks_unpruned(name: str, tmp_path: Path) -> None:
    graph = Pipeline("simplify(batchnorm=true)")(load(light_model(name)))
    assert native_difference(graph, tmp_path / "dense") <= 1e-4


def test_bundled_model(tmp_path: Path) -> None:
    graph = Pipeline("simplify")(load(BUNDLED, shapes={"input": (1, 1, 28, 28)}))
    assert len(dependency_groups(graph)) == 9
    whole_road(graph, tmp_path)


@pytest.mark.parametrize("name", SHARED_MODELS)
def test_shared_models(name: str, tmp_path: Path) -> None:
    path = SHARED / f"{name}.onnx"
    if not path.is_file():
        pytest.skip("the folder of further models is not there")
    graph = Pipeline("simplify")(load(path, shapes=SHARED_MODELS[name]))
    whole_road(graph, tmp_path)
    assert native_difference(graph, tmp_path / "dense") <= 1e-4


def test_torch_module(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    )
    x = torch.randn(1, 3, 8, 8)
    artifact = compile(module, args=(x,), output=tmp_path / "out")
    with load_artifact(artifact.path) as executable:
        (name,) = (i.name for i in executable.inputs)
        (result,) = executable.run({name: x.numpy()}).values()
    np.testing.assert_allclose(result, module(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_symbolic_batch_survives_pruning() -> None:
    graph = load(BUNDLED)
    pruned = Pipeline("simplify,prune(ratio=0.5)")(graph)
    assert pruned.inputs[0].shape == ("N", 1, 28, 28)
    assert pruned.outputs[0].shape == ("N", 10)
    assert graph_cost(pruned).macs < 0.51 * graph_cost(graph).macs
    for batch in (1, 3):
        assert execute(pruned, random_inputs(pruned, symbol=batch))["logits"].shape == (batch, 10)


def test_compiling_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        compile(BUNDLED, output=tmp_path / name, passes="simplify,prune(ratio=0.5)", shapes={"input": (1, 1, 28, 28)})
    files = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    assert set(files) == {"manifest.json", "model.so", "weights.bin", "module.py", "model.onnx"}
    assert files == {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()}
    onnx.checker.check_model(str(tmp_path / "a" / "model.onnx"), full_check=True)


def test_accuracy_of_the_bundled_models(tmp_path: Path) -> None:
    from examples.fashion_mnist.data import load_test_images, preprocess

    images, labels = load_test_images()
    inputs = preprocess(images[:300])
    for name, least in (("fashion_cnn.onnx", 0.92), ("fashion_cnn_pruned50_finetuned.onnx", 0.9)):
        artifact = compile(BUNDLED.with_name(name), output=tmp_path / name, shapes={"input": (100, 1, 28, 28)})
        with load_artifact(artifact.path, threads=2) as executable:
            logits = [executable.run({"input": inputs[i : i + 100]})["logits"] for i in (0, 100, 200)]
        assert (np.concatenate(logits).argmax(1) == labels[:300]).mean() >= least
