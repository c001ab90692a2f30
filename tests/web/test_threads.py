"""Threads of WebAssembly: what is packaged, Node (threads.test.mjs), and headless Chromium, isolated and not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from backends import build, load
from backends.lowering import lower
from backends.memory import plan
from backends.native import Artifact
from backends.runtime import serving
from backends.target import target
from backends.wasm import WebPackage
from backends.webpage import Page
from compiler.cli import main
from compiler.driver import compile as compile_model
from compiler.frontends.onnx import load_onnx
from compiler.ir import SecateurError
from passes import Context
from tests.backends.networks import assert_same, network, reference, small_cnn
from tests.web.browser import Browser, site
from tests.web.chromium import Chromium
from tests.web.nodes import HERE, description, needs_chromium, needs_node, run_node
from tests.web.test_package import PUBLISHED, sections

ADDED = {"model-threads.wasm", "model-relaxed-threads.wasm", "threads.js", "worker.js"}
FINISHED = "['done', 'error'].includes(document.body.dataset.state)"
RUN = """
const { load } = await import(args[0]);
const model = await load({ threads: args[1] });
try {
  const started = performance.now();
  for (;;) {
    const { y } = await model.run({ x: Float32Array.from(args[2]) });
    if (!args[3] || performance.now() - started > 20000) return { y: [...y], threads: model.threads };
  }
} catch (error) {
  return { code: error.code, message: error.message };
} finally {
  model.dispose();
}
"""


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def artifact(x: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("threads")
    y = reference(small_cnn(), {"x": x})["y"]
    (folder / "case.json").write_text(json.dumps({"x": x.reshape(-1).tolist(), "y": y.reshape(-1).tolist()}))
    packager = WebPackage(threads=True, page=Page(milliseconds=20))
    return build(load_onnx(small_cnn()), folder / "package", target="wasm", packager=packager)


def test_code_for_threads_is_added(artifact: Artifact) -> None:
    package = json.loads((artifact.path / "package.json").read_text())
    assert set(package["files"]) == PUBLISHED | ADDED
    assert all((artifact.path / file).is_file() for file in PUBLISHED | ADDED)
    known = description(artifact.path)
    assert {entry["file"] for entry in known["threads"]["code"].values()} == {f for f in ADDED if f.endswith(".wasm")}
    for entry in known["threads"]["code"].values():
        file = artifact.manifest["files"][entry["file"]]
        assert (entry["bytes"], entry["sha256"]) == (file["bytes"], file["sha256"])
    assert artifact.manifest["threads"]["code_bytes"] > artifact.manifest["code_bytes"]
    assert 2 in sections((artifact.path / "model-threads.wasm").read_bytes()), "it imports its memory"


def test_the_code_for_one_thread_is_as_without(artifact: Artifact, tmp_path: Path) -> None:
    plain = build(load_onnx(small_cnn()), tmp_path / "plain", target="wasm")
    assert not ADDED & set(plain.manifest["files"]) and "threads" not in plain.manifest
    with pytest.raises(SecateurError, match="at most 1 thread, not 2") as caught:
        load(plain.path, threads=2)
    assert caught.value.code == "E_THREADS" and "--threads" in str(caught.value.hint)
    for file in ("model.wasm", "model-relaxed.wasm", "index.js"):
        assert plain.manifest["files"][file] == artifact.manifest["files"][file]
    assert "threads.js" not in (plain.path / "model.js").read_text(), "bundlers would look for it"


def test_both_programs_run_on_one_blob_of_weights() -> None:
    """A convolution by panels packs its weights otherwise where threads share the panels."""
    random = np.random.default_rng(0)
    weights = {
        "w": random.standard_normal((256, 128, 1, 1)).astype(np.float32),
        "v": random.standard_normal((128, 256, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], strides=[2, 2]),
        helper.make_node("Conv", ["h", "v"], ["y"]),
    ]
    graph = load_onnx(network(nodes, {"x": np.zeros((1, 128, 28, 28), np.float32)}, weights, ["y"]))
    one, many = (lower(graph, target("wasm"), parallel=parallel) for parallel in (False, True))
    first = plan(one)
    both = plan(many, beside=first)
    blob = both.weights()
    assert blob.startswith(first.weights())
    assert len(first.weights()) < len(blob) < 2 * len(first.weights()), "one is common, one is not"
    for program, memory in ((one, first), (many, both)):
        for buffer in (b for b in program.roots() if b.role == "constant"):
            assert buffer.data is not None
            at = memory.offsets[buffer]
            assert blob[at : at + buffer.nbytes] == np.ascontiguousarray(buffer.data).tobytes()


@needs_node
def test_threads_in_node(artifact: Artifact) -> None:
    flags = ("--expose-gc", "--disallow-code-generation-from-strings", "--test-reporter=tap")
    report = run_node(HERE / "threads.test.mjs", flags=flags, environment={"SECATEUR_PACKAGE": str(artifact.path)})
    assert "# fail 0" in report and int(report.split("# pass ")[1].split()[0]) > 20


@needs_node
def test_python_runs_it_on_threads(artifact: Artifact, x: np.ndarray) -> None:
    expected = reference(small_cnn(), {"x": x})
    for variant in artifact.manifest["variants"]:
        with load(artifact.path, threads=3, variant=variant) as executable:
            assert_same(expected, executable.run({"x": x}))
    for threads in (0, 65):
        with pytest.raises(SecateurError, match=f"at most 64 threads, not {threads}") as caught:
            load(artifact.path, threads=threads)
        assert caught.value.code == "E_THREADS"


@needs_node
def test_weights_inside_and_functions_of_libm(tmp_path: Path) -> None:
    """compile verifies each code on one thread and on two."""
    x = np.random.default_rng(0).uniform(0.1, 0.9, (64, 500)).astype(np.float32)
    nodes = [helper.make_node("Sin", ["x"], ["a"]), helper.make_node("Pow", ["a", "x"], ["y"])]
    model = network(nodes, {"x": x}, {}, ["y"])
    context = Context()
    artifact = compile_model(
        model,
        output=tmp_path / "out",
        target="wasm",
        packager=WebPackage(threads=True, embed_weights=True),
        context=context,
    )
    assert "weights.bin" not in artifact.manifest["files"]
    with load(artifact.path, threads=2) as executable:
        assert_same(reference(model, {"x": x}), executable.run({"x": x}))


def test_threads_are_for_webassembly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--target", "arm64-linux"]):
        with pytest.raises(SystemExit) as ended:
            main(["compile", "model.onnx", "-o", str(tmp_path / "out"), "--threads", *arguments])
        assert ended.value.code == 2 and "--threads is for WebAssembly" in capsys.readouterr().err


def test_the_page_tells_how_many_threads_run(page: Browser, artifact: Artifact) -> None:
    with site(artifact.path) as url:
        page.open(f"{url}/")
        page.wait(FINISHED)
        assert page.run("return document.body.dataset.state") == "done"
        count = min(4, page.run("return navigator.hardwareConcurrency"))
        facts = page.run("return document.querySelector('[data-model=model] .facts').textContent")
        assert facts.endswith(f", {count} threads" if count > 1 else ", 1 thread")
        assert page.complaints() == []


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_pages_own_thread_shares_its_loops(page: Browser, artifact: Artifact, x: np.ndarray, threads: int) -> None:
    with site(artifact.path) as url:
        page.open(f"{url}/")
        found = page.run(RUN, f"{url}/index.js", threads, x.reshape(-1).tolist(), False)
    assert found["threads"] == threads
    assert_same(reference(small_cnn(), {"x": x}), {"y": np.array([found["y"]], np.float32)})


@needs_chromium
def test_a_thread_that_traps_ends_the_wait_of_a_page(
    chromium: Chromium, artifact: Artifact, x: np.ndarray, tmp_path: Path
) -> None:
    """A worker without a stack traps in the first task that it takes."""
    package = tmp_path / "package"
    shutil.copytree(artifact.path, package)
    script = (package / "worker.js").read_text()
    broken = script.replace(
        "exports.__stack_pointer.value = stack;\n    tell", "exports.__stack_pointer.value = 0; tell"
    )
    assert broken != script
    (package / "worker.js").write_text(broken)
    with site(package) as url:
        chromium.open(f"{url}/")
        found = chromium.run(RUN, f"{url}/index.js", 2, x.reshape(-1).tolist(), True)
    assert found["code"] == "E_RUN" and "a thread was lost: memory access out of bounds" in found["message"]


@needs_chromium
def test_a_page_that_is_not_isolated_runs_on_one_thread(
    chromium: Chromium, artifact: Artifact, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "HEADERS", {})
    with site(artifact.path) as url:
        chromium.open(f"{url}/")
        chromium.wait(FINISHED)
        assert chromium.run("return crossOriginIsolated") is False
        facts = chromium.run("return document.querySelector('[data-model=model] .facts').textContent")
        assert facts.endswith(", 1 thread, since the page is not isolated")
        found = chromium.run(RUN, f"{url}/index.js", 4, x.reshape(-1).tolist(), False)
    assert found["threads"] == 1
    assert_same(reference(small_cnn(), {"x": x}), {"y": np.array([found["y"]], np.float32)})
