"""The JavaScript loader in Node: right answers, and a code and a message for whatever is wrong (loader.test.mjs)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from backends import build
from compiler.frontends.onnx import load_onnx
from tests.backends.networks import reference, small_cnn
from tests.web.nodes import HERE, needs_node, run_node

pytestmark = needs_node


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("web")
    x = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    y = reference(small_cnn(), {"x": x})["y"]
    (folder / "case.json").write_text(json.dumps({"x": x.reshape(-1).tolist(), "y": y.reshape(-1).tolist()}))
    return build(load_onnx(small_cnn()), folder / "package", target="wasm").path


@pytest.mark.parametrize("relaxed", [False, True], ids=["simd", "relaxed"])
def test_the_loader(package: Path, relaxed: bool) -> None:
    flags = ("--disallow-code-generation-from-strings", "--test-reporter=tap")
    version = int(run_node("-p", "process.versions.node.split('.')[0]"))
    if version < 21 and relaxed:
        flags += ("--experimental-wasm-relaxed-simd",)
    elif relaxed:
        pytest.skip("this Node always has relaxed SIMD")
    report = run_node(HERE / "loader.test.mjs", flags=flags, environment={"SECATEUR_PACKAGE": str(package)})
    assert "# fail 0" in report and int(report.split("# pass ")[1].split()[0]) > 30
