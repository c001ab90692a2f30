"""What users have: networks that ONNX Runtime has fused or quantised keep the groups of the network as exported."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.transformers import optimizer

from compiler.exporters import save_onnx
from compiler.frontends import load
from compiler.ir.execute import execute, random_inputs, relative_difference
from passes import Context, Pipeline, Prune, certify, dependency_groups
from tests.zoo.entry import zoo
from tests.zoo.test_zoo import TOLERANCE, check_pruning, described

FUSED = {
    "bert.bert": {"FusedMatMul", "Gelu", "SkipLayerNormalization", "FusedGemm"},
    "convnext.convnext": {"Gelu"},
    "detr.detr": {"FusedConv", "FusedMatMul", "SkipLayerNormalization"},
    "efficientnet.b": {"QuickGelu", "FusedConv"},
    "gpt.gpt2": {"FusedMatMul", "SkipLayerNormalization"},
    "llama.llama": {"SimplifiedLayerNormalization", "FusedMatMul", "QuickGelu"},
    "mobilenet.v3": {"FusedConv"},
    "moe.stacked": {"SimplifiedLayerNormalization", "FusedMatMul"},
    "nerf.nerf": {"FusedGemm"},
    "resnet.bottleneck": {"FusedConv"},
    "swin.swin": {"FusedMatMul", "Gelu"},
    "t5.t5": {"SimplifiedLayerNormalization", "FusedMatMul"},
    "whisper.whisper": {"FusedMatMul", "Gelu", "SkipLayerNormalization"},
}
"""Network -> some of the operators that the runtime's optimiser must put into it, else the test says nothing."""


def optimised(source: Path, target: Path) -> Path:
    """Write what ONNX Runtime makes of a model when it fuses nodes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.intra_op_num_threads = 1
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return target


def check(path: Path, name: str, wanted: set[str], folder: Path) -> None:
    """The model holds the operators, has the groups of the zoo's network, certified, prunes, and is written again."""
    entry = zoo()[name]
    loaded = load(path)
    assert wanted <= {n.op for n in loaded.nodes}
    graph = Pipeline("simplify")(loaded)
    groups = dependency_groups(graph)
    assert certify(graph, groups) <= TOLERANCE
    assert entry.expected is not None
    assert described(groups) == sorted(entry.expected)
    check_pruning(graph, entry.ratio, "local")
    written, *_ = save_onnx(loaded, folder / "again.onnx")
    data = random_inputs(loaded)
    assert relative_difference(execute(written, data), execute(path, data)) <= 1e-5


@pytest.mark.parametrize("name", FUSED)
def test_fused_network(name: str, tmp_path: Path) -> None:
    onnx.save(zoo()[name].build(), tmp_path / "plain.onnx")
    check(optimised(tmp_path / "plain.onnx", tmp_path / "fused.onnx"), name, FUSED[name], tmp_path)


class Noise(CalibrationDataReader):
    """Three batches of noise."""

    def __init__(self, path: Path) -> None:
        self._batches = iter([random_inputs(load(path), seed) for seed in range(3)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


@pytest.mark.parametrize(
    ("name", "form", "wanted"),
    [
        ("resnet.basic", QuantFormat.QOperator, {"QLinearConv", "QLinearAdd", "QLinearGlobalAveragePool", "QGemm"}),
        ("resnet.basic", QuantFormat.QDQ, {"QLinearConv", "QLinearGlobalAveragePool", "QGemm"}),
        ("bert.bert", QuantFormat.QOperator, {"QLinearAdd", "QLinearMul", "QLinearMatMul", "QLinearSoftmax", "QGemm"}),
        ("bert.bert", QuantFormat.QDQ, {"QLinearMatMul", "QLinearSoftmax", "QGemm"}),
    ],
)
def test_network_quantised_with_calibration(name: str, form: QuantFormat, wanted: set[str], tmp_path: Path) -> None:
    plain, quantised = tmp_path / "plain.onnx", tmp_path / "quantised.onnx"
    onnx.save(zoo()[name].build(), plain)
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            plain, quantised, Noise(plain), quant_format=form, per_channel=True, weight_type=QuantType.QInt8
        )
    finally:
        logging.disable(logging.NOTSET)
    check(optimised(quantised, tmp_path / "fused.onnx"), name, wanted, tmp_path)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", ["bert.bert", "resnet.basic"])
def test_network_quantised_as_it_runs(name: str, per_channel: bool, tmp_path: Path) -> None:
    plain, quantised = tmp_path / "plain.onnx", tmp_path / "quantised.onnx"
    onnx.save(zoo()[name].build(), plain)
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(plain, quantised, per_channel=per_channel)
    finally:
        logging.disable(logging.NOTSET)
    check(optimised(quantised, tmp_path / "fused.onnx"), name, {"DynamicQuantizeMatMul"}, tmp_path)


def test_attention_that_the_runtime_s_transformer_tools_fuse(tmp_path: Path) -> None:
    entry = zoo()["bert.bert"]
    plain = entry.build()
    onnx.save(plain, tmp_path / "plain.onnx")
    logging.disable(logging.WARNING)
    try:
        fused = optimizer.optimize_model(
            str(tmp_path / "plain.onnx"), model_type="bert", num_heads=2, hidden_size=16, opt_level=0
        )
        fused.save_model_to_file(str(tmp_path / "fused.onnx"))
    finally:
        logging.disable(logging.NOTSET)
    graph = Pipeline("simplify")(load(tmp_path / "fused.onnx"))
    assert {"Attention", "SkipLayerNormalization", "BiasGelu"} <= {n.op for n in graph.nodes}
    # The tools take the mask for ones and zeros.
    data = {n: np.ones_like(v) if v.dtype == np.float32 else v for n, v in random_inputs(graph).items()}
    assert relative_difference(execute(graph, data), execute(plain, data)) <= 1e-5
    for whole, expected in ((False, entry.expected), (True, entry.heads)):
        groups = dependency_groups(graph, heads=whole)
        assert certify(graph, groups, inputs=data) <= TOLERANCE
        assert expected is not None
        assert described([g for g in groups if g.kind == "head" or not whole]) == sorted(expected)
        pruned = Prune(ratio=0.5, metric="params", heads=whole)(graph, Context())
        before, after = execute(graph, data), execute(pruned, data)
        assert {n: v.shape for n, v in after.items()} == {n: v.shape for n, v in before.items()}
