"""What `make bench` measures with: peers, the peak, memory, pruned networks; on a network that takes no time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from backends.benchmark import onnxruntime_outputs, onnxruntime_session
from backends.schedules import module, object_code
from backends.target import Target
from compiler.errors import SecateurError
from compiler.exporters.onnx import save_onnx
from compiler.frontends.onnx import load_onnx
from tests.backends.schedules_harness import Library
from tests.benchmarks import measure, peak, peers
from tests.benchmarks.case import Case
from tests.benchmarks.deepsparse_worker import MARK
from tests.benchmarks.memory import activation_bytes
from tests.benchmarks.models import NETWORKS, Network, mobilenet_v1, resnet18
from tests.benchmarks.models.builder import NetworkBuilder
from tests.benchmarks.peers import PEERS, Peer, version, worker
from tests.benchmarks.variants import VARIANTS, nonzero_macs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "model.onnx"
    onnx.save(mobilenet_v1(32), path)
    return path


@pytest.fixture(scope="module")
def inputs(model: Path) -> Path:
    path = model.with_name("inputs.npz")
    np.savez(path, input=np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32))
    return path


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_peers_time_each_call(name: str, model: Path, inputs: Path) -> None:
    pytest.importorskip(name)
    with PEERS[name].open(model, 1, inputs) as run:
        assert len(run(3)) == 3 and min(run(2)) > 0


def test_a_missing_peer_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Peer(peers.deepsparse, Path("/nowhere/python"), "make bench-deepsparse")
    monkeypatch.setitem(PEERS, "deepsparse", missing)
    with pytest.raises(SecateurError, match="deepsparse is not installed for /nowhere/python") as caught:
        version("deepsparse")
    assert caught.value.code == "E_NO_PEER" and "make bench-deepsparse" in caught.value.hint
    monkeypatch.setitem(PEERS, "surely_missing", Peer(peers.onnxruntime))
    with pytest.raises(SecateurError, match="surely_missing is not installed"):
        version("surely_missing")


_FAKE = f"""
import sys
print("a banner"); print("{MARK} ready", flush=True)
for line in sys.stdin:
    if int(line) > 3: raise ValueError("too many")
    print("{MARK}", *range(int(line)), flush=True)
"""


def test_a_worker_times_itself() -> None:
    with worker([sys.executable, "-c", _FAKE]) as run:
        assert run(2) == [0, 1] and run(3) == [0, 1, 2]
        with pytest.raises(SecateurError, match="ended with status 1: ValueError: too many") as caught:
            run(4)
    assert caught.value.code == "E_PEER"


def test_a_worker_that_does_not_start_says_why() -> None:
    with pytest.raises(SecateurError, match="status 3: no room"), worker(["sh", "-c", "echo no room >&2; exit 3"]):
        pass


def test_a_case_is_measured_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(NETWORKS, "MobileNetV1", Network(_small, "cnn", 0, 0))
    measure.main(Case("MobileNetV1", "90", threads=(1,), seconds=0, rounds=2, peers=("onnxruntime",)).name)
    facts = {k: v for line in capsys.readouterr().out.splitlines() for k, v in json.loads(line).items()}
    times = facts["threads 1"]
    first, depthwise, pruned = 27 * 32 * 64, 9 * 32 * 64, 32 * 64 * 64 + 64 * 100
    assert facts["nonzero_macs"] == pytest.approx(first + depthwise + 0.1 * pruned, rel=1e-3)
    assert facts["difference"] < 1e-4
    assert times["peak"] > 1 and all(times[side]["calls"] == 10 for side in ("ours", "ours, dense", "onnxruntime"))
    assert sum(facts["shares"].values()) == pytest.approx(1)
    assert {"first convolution", "depthwise 3x3", "Gemm"} <= {kind.partition(",")[0] for kind in facts["shares"]}


def _small() -> onnx.ModelProto:
    """A first, a depthwise and a 1x1 convolution, and a classifier."""
    b = NetworkBuilder()
    x = b.conv(b.input("input", (1, 3, 8, 8)), 3, 32, 3)
    x = b.conv(b.conv(x, 32, 32, 3, groups=32), 32, 64, 1)
    return b.model("small", {b.classifier(x, 64, 100): (1, 100)})


def test_nonzeros_are_counted_where_they_multiply() -> None:
    dense, graph = load_onnx(_small()), VARIANTS["2:4"](load_onnx(_small()))
    pruned = 32 * 64 * 64 + 64 * 100  # the 1x1 convolution and the classifier: the others are first, and depthwise
    assert nonzero_macs(dense) - nonzero_macs(graph) == pruned // 2


def test_a_sparse_file_keeps_its_opset(tmp_path: Path) -> None:
    dense, path = _small(), tmp_path / "sparse.onnx"
    graph = VARIANTS["90"](load_onnx(dense))
    measure.write_variant(_small(), graph, path)
    written = onnx.load(path)
    assert (written.opset_import, written.ir_version) == (dense.opset_import, dense.ir_version)
    zeros = [w.size - np.count_nonzero(w) for w in map(numpy_helper.to_array, written.graph.initializer)]
    assert zeros == [np.count_nonzero(v.data.numpy() == 0) for v in graph.all_constants() if v.data]


def test_half_the_macs_is_a_smaller_network(tmp_path: Path) -> None:
    dense = load_onnx(resnet18(32))
    whole, graph = nonzero_macs(dense), VARIANTS["half"](load_onnx(resnet18(32)))
    assert 0.42 * whole < nonzero_macs(graph) < 0.55 * whole
    save_onnx(graph, tmp_path / "half.onnx")
    x = {"input": np.zeros((1, 3, 32, 32), np.float32)}
    (result,) = onnxruntime_outputs(onnxruntime_session(tmp_path / "half.onnx", 1), x).values()
    assert result.shape == (1, 1000)


def test_activations_that_onnx_runtime_plans(model: Path, inputs: Path) -> None:
    widest = 64 * 16 * 16 * 4  # what the widest layer writes, in bytes
    assert widest < activation_bytes(model, inputs) < 4 * widest


def test_the_peak_is_of_multiply_adds_that_are_all_done() -> None:
    target = Target.native()
    lanes, count = target.lanes(), peak.accumulators(target)
    library = Library([peak.kernel(target, repeats=3)], target)
    operands = np.repeat(np.array([2, 1], np.float32), lanes)
    results = np.arange(count * lanes, dtype=np.float32)
    library.function("fma_peak")(operands.ctypes.data_as(peak.Pointer), results.ctypes.data_as(peak.Pointer))
    assert np.array_equal(results, 8 * np.arange(count * lanes) + 7)
    assert len(object_code(module([peak.kernel(target)]), target)) > 0
