"""The benchmark of a package: what it writes in Node and in browsers is a profile that selection reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from backends import build
from backends.artifact import Artifact
from backends.probes import probes
from backends.profile import Profile
from backends.target import target
from backends.wasm import WebPackage
from compiler.cli import main
from compiler.errors import SecateurError
from compiler.frontends.onnx import load_onnx
from tests.backends.networks import small_cnn
from tests.web.browser import Browser, site
from tests.web.nodes import needs_node, run_node

KERNELS = {probe.name for probe in probes(target("wasm"))}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("bench") / "package"
    return build(load_onnx(small_cnn()), folder, target="wasm", packager=WebPackage(bench=True))


def read(text: str, folder: Path) -> Profile:
    path = folder / "profile.json"
    path.write_text(text)
    return Profile.read(path)


@needs_node
def test_node_writes_a_profile_that_a_model_is_compiled_by(artifact: Artifact, tmp_path: Path) -> None:
    run_node(artifact.path / "bench" / "run.js", tmp_path / "profile.json")
    found = Profile.read(tmp_path / "profile.json")
    assert set(found.seconds) == KERNELS and found.processor.startswith("Node ")
    dense, few = found.seconds["dense product"], found.seconds["single weights, few"]
    work = {probe.name: probe.multiply_adds for probe in probes(target("wasm"))}
    assert work["dense product"] / dense > work["single weights, few"] / few  # by far, on any engine
    made = build(load_onnx(small_cnn()), tmp_path / "out", target="wasm", profile=tmp_path / "profile.json")
    assert made.manifest["profile"]["processor"] == found.processor


def test_a_page_shows_the_profile(page: Browser, artifact: Artifact, tmp_path: Path) -> None:
    with site(artifact.path) as url:
        page.open(f"{url}/bench/")
        page.wait("['done', 'error'].includes(document.body.dataset.state)")
        assert page.run("return document.body.dataset.state") == "done", page.run("return document.body.innerText")
        text = page.run("return document.querySelector('textarea').value")
        assert page.run("return document.querySelector('#save').download") == "profile.json"
        assert page.run("return document.querySelectorAll('tbody tr').length") == len(KERNELS)
        assert page.complaints() == []
    found = read(text, tmp_path)
    assert set(found.seconds) == KERNELS and found.processor.startswith("Mozilla/")
    assert json.loads(text)["code"] in ("relaxed", "simd")


def test_a_lost_file_is_told_on_the_page(page: Browser, artifact: Artifact, tmp_path: Path) -> None:
    copy = tmp_path / "package"
    for file in ("index.js", "model.js", *(f"bench/{name}" for name in ("index.html", "page.js", "bench.js"))):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        (copy / file).write_bytes((artifact.path / file).read_bytes())
    (copy / "bench" / "probes.js").write_bytes((artifact.path / "bench" / "probes.js").read_bytes())
    with site(copy) as url:
        page.open(f"{url}/bench/")
        page.wait("document.body.dataset.state === 'error'")
        assert "the server answered 404" in page.run("return document.querySelector('#status').textContent")


def test_profiles_of_processors_are_not_for_engines(tmp_path: Path) -> None:
    content = {"schema": "secateur-profile", "version": 1, "processor": "Made-up M1"}
    content["target"] = {
        "arch": "aarch64",
        "vector_bytes": 16,
        "vector_registers": 32,
        "l1_bytes": 32768,
        "l2_bytes": 524288,
    }
    content["kernels"] = [{"name": "dense product", "multiply_adds": 1000, "least": 1e-6}]
    with pytest.raises(SecateurError, match="aarch64 processors; target 'wasm' is for wasm32") as caught:
        read(json.dumps(content), tmp_path).costs(target("wasm"))
    assert caught.value.code == "E_PROFILE"


def test_bench_is_for_webassembly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--target", "arm64-linux"]):
        with pytest.raises(SystemExit) as ended:
            main(["compile", "model.onnx", "-o", str(tmp_path / "out"), "--bench", *arguments])
        assert ended.value.code == 2 and "--bench is for WebAssembly" in capsys.readouterr().err
