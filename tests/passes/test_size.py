"""Large models: nothing big is read before it is needed, and never a whole model at once."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from compiler.frontends import load
from compiler.ir.constant import MappedConstant
from passes import Pipeline, Prune, certify, dependency_groups
from passes.coupling.transform import restrict
from tests.benchmarks.bench_size import residual_chain
from tests.benchmarks.decoder import Decoder

SMALL = Decoder(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, hidden=48, vocabulary=64, positions=16)


def test_grouping_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Decoder(layers=3).write(tmp_path / "decoder.onnx")  # 1.8 billion parameters
    read = MappedConstant.numpy

    def refuse(self: MappedConstant) -> np.ndarray:
        assert self.size <= 1024, "a weight was read"
        return read(self)

    monkeypatch.setattr(MappedConstant, "numpy", refuse)
    tracemalloc.start()
    graph = Pipeline("simplify")(load(tmp_path / "decoder.onnx"))
    groups = dependency_groups(graph)
    restrict(groups, np.ones(groups.unit_count, bool))
    assert tracemalloc.get_traced_memory()[1] < 300 * 2**20
    tracemalloc.stop()
    assert [g.units for g in groups] == [4096, 64, *[1024, 12288] * 3]


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (False, ["32 channel", "4 head-dim pair", *["16 head-dim", "48 hidden unit"] * 2]),
        (True, ["32 channel", *["2 kv-group", "48 hidden unit"] * 2]),
    ],
)
def test_decoder_groups_with_symbolic_batch_and_sequence(heads: bool, expected: list[str], tmp_path: Path) -> None:
    SMALL.write(tmp_path / "decoder.onnx")
    data = tmp_path / "decoder.onnx.data"
    rng = np.random.default_rng(0)
    data.write_bytes((rng.standard_normal(data.stat().st_size // 2) * 0.2).astype(np.float16).tobytes())
    graph = Pipeline("simplify")(load(tmp_path / "decoder.onnx"))
    groups = dependency_groups(graph, heads=heads)
    assert [f"{g.units} {g.kind}" for g in groups] == expected
    assert certify(graph, groups, tolerance=2e-2) <= 2e-2  # half precision
    pruned = Prune(ratio=0.25, metric="params", heads=heads)(graph)
    assert pruned.inputs[0].shape == ("B", "S")
    assert pruned.outputs[0].shape == ("B", "S", 64)


def test_a_thousand_layers() -> None:
    assert len(dependency_groups(residual_chain(1000, width=4))) == 1001
