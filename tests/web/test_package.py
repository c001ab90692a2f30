"""The npm package: what is in it, that it is whole, small and reproducible, and what cannot be packaged."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from backends import aot, build, load
from backends.artifact import Artifact
from backends.lowering import lower
from backends.memory import plan
from backends.target import target
from backends.wasm import MOST_BYTES, WebPackage, custom_section, package_name
from compiler.cli import main
from compiler.frontends.onnx import load_onnx
from compiler.ir import SecateurError
from tests.backends.networks import assert_same, network, reference, small_cnn
from tests.web.nodes import description, needs_node

PUBLISHED = {"index.js", "index.d.ts", "model.js", "model.wasm", "model-relaxed.wasm", "weights.bin"}
SIMD, RELAXED_MADD = b"\xfd", b"\xfd\x85\x02"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build(load_onnx(small_cnn()), tmp_path_factory.mktemp("package") / "My Net", target="wasm")


def test_the_folder_is_an_npm_package(artifact: Artifact) -> None:
    package = json.loads((artifact.path / "package.json").read_text())
    assert package["name"] == "network" and package["type"] == "module"
    assert set(package["files"]) == PUBLISHED
    assert all((artifact.path / file).is_file() for file in PUBLISHED)
    assert package["exports"]["."] == {"types": "./index.d.ts", "default": "./index.js"}


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not on PATH")
def test_npm_packs_it(artifact: Artifact) -> None:
    command = ["npm", "pack", "--dry-run", "--json", "--offline"]
    done = subprocess.run(command, cwd=artifact.path, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    packed = report[0] if isinstance(report, list) else next(iter(report.values()))
    assert {file["path"] for file in packed["files"]} == PUBLISHED | {"package.json", "README.md"}


def test_the_manifest_and_the_loader_know_every_file(artifact: Artifact) -> None:
    assert set(artifact.manifest["files"]) == PUBLISHED | {"package.json", "README.md", "model.onnx", "module.py"}
    known = description(artifact.path)
    for entry in (*known["code"].values(), known["weights"]):
        file = artifact.manifest["files"][entry["file"]]
        assert (entry["bytes"], entry["sha256"]) == (file["bytes"], file["sha256"])


def test_the_types_name_the_models_tensors(artifact: Artifact) -> None:
    types = (artifact.path / "index.d.ts").read_text()
    assert '/** float32[1, 3, 32, 32] */\n  "x": Float32Array;' in types
    assert '"y": Float32Array;' in types and "/* inputs */" not in types


def test_each_code_has_its_instructions_and_imports_nothing(artifact: Artifact) -> None:
    plain, relaxed = ((artifact.path / name).read_bytes() for name in ("model.wasm", "model-relaxed.wasm"))
    assert plain.count(RELAXED_MADD) == 0 and relaxed.count(RELAXED_MADD) > 20
    for code in (plain, relaxed):
        assert 2 not in sections(code), "an import section"


def sections(code: bytes) -> list[int]:
    """The ids of a module's sections (WebAssembly core specification 5.5.2)."""
    found, at = [], 8
    while at < len(code):
        found.append(code[at])
        at, size, shift = at + 1, 0, 0
        while True:
            byte, at = code[at], at + 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        at += size
    return found


def test_equal_graphs_give_equal_bytes(artifact: Artifact, tmp_path: Path) -> None:
    again = build(load_onnx(small_cnn()), tmp_path / "elsewhere", target="wasm")
    assert again.manifest["files"] == artifact.manifest["files"]


def test_nothing_of_the_builder_is_inside(artifact: Artifact) -> None:
    for file in artifact.path.iterdir():
        data = file.read_bytes()
        for place in (str(Path.home()), str(Path(aot.__file__).parents[1]), "/tmp/"):
            assert place.encode() not in data, (file.name, place)


@needs_node
def test_weights_inside_the_code(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    packager = WebPackage(embed_weights=True, name="inside")
    artifact = build(load_onnx(small_cnn()), tmp_path / "out", target="wasm", packager=packager)
    assert not (artifact.path / "weights.bin").exists()
    assert json.loads((artifact.path / "package.json").read_text())["name"] == "inside"
    for variant in artifact.manifest["variants"]:
        with load(artifact.path, variant=variant) as executable:
            assert_same(reference(small_cnn(), {"x": x}), executable.run({"x": x}))


@pytest.mark.parametrize(("size", "length"), [(0, 1), (100, 1), (200, 2), (70_000, 3)])
def test_a_custom_section_says_how_long_it_is(size: int, length: int) -> None:
    section = custom_section("ab", b"x" * size)
    assert section[0] == 0 and len(section) == 1 + length + 3 + size and sections(b"\0asm\1\0\0\0" + section) == [0]


@pytest.mark.parametrize(
    ("model", "name"),
    [("MobileNet V2", "mobilenet-v2"), ("_x/@y", "x-y"), ("ÄÖ", "model"), ("", "model"), ("a.b_c", "a.b_c")],
)
def test_names_that_npm_takes(model: str, name: str) -> None:
    assert package_name(model) == name


def test_what_32_bits_cannot_address_is_refused() -> None:
    program = lower(load_onnx(small_cnn()), target("wasm"), parallel=False)
    memory = plan(program)
    object.__setattr__(memory, "arena_bytes", MOST_BYTES)
    with pytest.raises(SecateurError, match=r"needs 4\.3 GB of memory") as caught:
        WebPackage().package(program, memory, target("wasm"))
    assert caught.value.code == "E_TOO_LARGE"


def test_without_zig_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.wasm.has_zig", lambda: False)
    with pytest.raises(SecateurError, match="ziglang is missing") as caught:
        build(load_onnx(small_cnn()), tmp_path / "out", target="wasm")
    assert caught.value.code == "E_NO_LINKER" and list(tmp_path.iterdir()) == []


def test_the_web_package_is_for_webassembly_alone(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="'native' is not WebAssembly"):
        build(load_onnx(small_cnn()), tmp_path / "out", packager=WebPackage())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--demo"], "--demo is for WebAssembly"),
        (["--embed-weights"], "--embed-weights is for WebAssembly"),
        (["--target", "wasm", "--class-names", "c.txt"], "--class-names is for the page of --demo"),
        (["--target", "wasm", "--demo", "--normalize", "1"], "is not MEAN/STD"),
        (["--target", "wasm", "--demo", "--normalize", "0/0"], "is not MEAN/STD"),
        (["--target", "wasm", "--demo", "--normalize", "0,1/1"], "is not MEAN/STD"),
        (["--target", "wasm", "--demo", "--class-names", "/nowhere"], "class names cannot be read"),
        (["--target", "wasm", "--demo", "--samples", "/nowhere"], "samples are no .npz"),
    ],
)
def test_options_that_do_not_fit_are_told(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compile", "model.onnx", "-o", str(tmp_path / "out"), *arguments])
    assert ended.value.code == 2 and message in capsys.readouterr().err


@needs_node
def test_other_element_types(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    feeds = {
        "i64": random.integers(-5, 5, (3, 4)),
        "i32": random.integers(-5, 5, (3, 4)).astype(np.int32),
        "u8": random.integers(0, 255, (3, 4)).astype(np.uint8),
        "b": random.integers(0, 2, (3, 4)).astype(bool),
        "f64": random.standard_normal((3, 4)),
    }
    one = {k: np.ones((), v.dtype) for k, v in feeds.items() if k != "b"}
    nodes = [helper.make_node("Sub", [k, f"one_{k}"], [f"y_{k}"]) for k in one]
    nodes.append(helper.make_node("Not", ["b"], ["y_b"]))
    model = network(nodes, feeds, {f"one_{k}": v for k, v in one.items()}, [f"y_{k}" for k in feeds])
    artifact = build(load_onnx(model), tmp_path / "out", target="wasm")
    expected = {f"y_{k}": feeds[k] - one[k] for k in one} | {"y_b": ~feeds["b"]}
    with load(artifact.path) as executable:
        actual = executable.run(feeds)
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype
        np.testing.assert_array_equal(actual[name], value)


@needs_node
def test_functions_of_libm_are_linked(tmp_path: Path) -> None:
    """The first time on a machine, zig builds a C library for this."""
    x = np.random.default_rng(0).uniform(0.1, 0.9, (2, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Sin", ["x"], ["a"]),
        helper.make_node("Atan", ["a"], ["b"]),
        helper.make_node("Pow", ["b", "x"], ["c"]),
        helper.make_node("Acosh", ["o"], ["d"]),
        helper.make_node("Add", ["c", "d"], ["y"]),
        helper.make_node("Add", ["x", "one"], ["o"]),
    ]
    nodes = [nodes[5], *nodes[:5]]
    model = network(nodes, {"x": x}, {"one": np.ones((), np.float32)}, ["y"])
    artifact = build(load_onnx(model), tmp_path / "out", target="wasm")
    assert 2 not in sections((artifact.path / "model.wasm").read_bytes())
    with load(artifact.path) as executable:
        assert_same(reference(model, {"x": x}), executable.run({"x": x}))
