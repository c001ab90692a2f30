"""The artifact: whole or absent, the same bytes for the same graph, refused when it was changed, right when it runs."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from backends import aot, build, load, native
from backends import artifact as artifact_module
from backends.artifact import Artifact
from backends.benchmark import benchmark
from compiler.frontends.onnx import load_onnx
from compiler.ir import SecateurError
from tests.backends.networks import assert_same, network, reference, small_cnn

FILES = {"manifest.json", "model.so", "model.onnx", "weights.bin", "module.py"}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build(load_onnx(small_cnn()), tmp_path_factory.mktemp("artifact") / "cnn")


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)


def copy_of(artifact: Artifact, folder: Path) -> Path:
    copy = folder / "copy"
    copy.mkdir()
    for file in artifact.path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_it_computes_what_onnx_runtime_computes(artifact: Artifact, x: np.ndarray) -> None:
    with load(artifact.path) as executable:
        assert_same(reference(small_cnn(), {"x": x}), executable.run({"x": x}))


def test_the_model_inside_is_the_model(artifact: Artifact, x: np.ndarray) -> None:
    assert_same(reference(small_cnn(), {"x": x}), reference(onnx.load(artifact.path / "model.onnx"), {"x": x}))


def test_the_manifest_tells_what_is_inside(artifact: Artifact) -> None:
    assert {f.name for f in artifact.path.iterdir()} == FILES
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    assert manifest == artifact.manifest
    assert manifest["inputs"] == [{"name": "x", "dtype": "float32", "shape": [1, 3, 32, 32]}]
    assert set(manifest["files"]) == FILES - {"manifest.json"}
    assert [layer["op"] for layer in manifest["layers"]] == [
        "Conv", "Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "Gemm", "Softmax",
    ]  # fmt: skip
    assert "T.prim_func" in (artifact.path / "module.py").read_text()


def test_equal_graphs_give_equal_bytes(artifact: Artifact, tmp_path: Path) -> None:
    again = build(load_onnx(small_cnn()), tmp_path / "elsewhere")
    for name in FILES:
        assert (again.path / name).read_bytes() == (artifact.path / name).read_bytes(), name


def test_no_paths_of_the_builder_are_inside(artifact: Artifact) -> None:
    for name in ("model.so", "module.py", "manifest.json"):
        data = (artifact.path / name).read_bytes()
        for place in (str(Path.home()), str(Path(aot.__file__).parents[1]), "/tmp/"):
            assert place.encode() not in data, (name, place)


@pytest.mark.parametrize("stage", ["lower", "compile", "write"])
def test_a_failure_leaves_nothing_behind(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    place = {"lower": "lower", "compile": "shared_library", "write": "save_onnx"}[stage]
    monkeypatch.setattr(artifact_module if stage == "write" else native, place, fail)
    if stage == "write":
        with pytest.raises(SecateurError, match="No space left") as caught:
            build(load_onnx(small_cnn()), tmp_path / "out")
        assert caught.value.code == "E_OUTPUT"
    else:
        with pytest.raises(OSError, match="No space left"):
            build(load_onnx(small_cnn()), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_is_kept_unless_told_otherwise(artifact: Artifact, tmp_path: Path) -> None:
    copy = copy_of(artifact, tmp_path)
    before = (copy / "manifest.json").read_bytes()
    with pytest.raises(SecateurError, match="exists already") as caught:
        build(load_onnx(small_cnn()), copy)
    assert caught.value.code == "E_OUTPUT_EXISTS"
    assert (copy / "manifest.json").read_bytes() == before


def test_overwriting_never_removes_what_is_not_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(SecateurError, match="not a compiled artifact"):
        build(load_onnx(small_cnn()), tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_an_artifact_built_anew_in_the_same_place_is_loaded_anew(tmp_path: Path, x: np.ndarray) -> None:
    path = tmp_path / "out"
    for seed in (0, 1):
        build(load_onnx(small_cnn(seed)), path, overwrite=seed > 0)
        assert_same(reference(small_cnn(seed), {"x": x}), load(path).run({"x": x}))
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_unwritable_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SecateurError) as caught:
        build(load_onnx(small_cnn()), tmp_path / "file" / "out")
    assert caught.value.code == "E_OUTPUT"


@pytest.mark.parametrize("name", sorted(FILES - {"manifest.json"}))
def test_a_changed_file_is_refused(artifact: Artifact, tmp_path: Path, name: str) -> None:
    copy = copy_of(artifact, tmp_path)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(SecateurError, match=name) as caught:
        load(copy)
    assert caught.value.code == "E_ARTIFACT"


def test_a_missing_file_is_refused(artifact: Artifact, tmp_path: Path) -> None:
    copy = copy_of(artifact, tmp_path)
    (copy / "weights.bin").unlink()
    with pytest.raises(SecateurError, match=r"weights\.bin is missing"):
        load(copy)


@pytest.mark.parametrize(
    ("key", "value", "code"),
    [
        ("format_version", 99, "E_FORMAT"),
        ("target", {"triple": "sparc-linux-gnu", "vector_bytes": 16}, "E_TARGET"),
    ],
)
def test_another_version_or_machine_is_refused(
    artifact: Artifact, tmp_path: Path, key: str, value: object, code: str
) -> None:
    copy = copy_of(artifact, tmp_path)
    (copy / "manifest.json").write_text(json.dumps(artifact.manifest | {key: value}))
    with pytest.raises(SecateurError) as caught:
        load(copy)
    assert caught.value.code == code


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="not a compiled artifact"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input 'x' is missing"),
        ({"x": np.zeros((1, 3, 32, 32), np.float32), "z": np.zeros(1)}, "unknown input 'z'"),
        ({"x": np.zeros((1, 3, 32, 32))}, "has element type float64, not float32"),
        ({"x": np.zeros((2, 3, 32, 32), np.float32)}, r"has shape \[2, 3, 32, 32\], not \[1, 3, 32, 32\]"),
        ({"x": [[1.0]]}, "is a list, not a numpy array"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(artifact: Artifact, feeds: dict, message: str) -> None:
    with load(artifact.path) as executable, pytest.raises(SecateurError, match=message) as caught:
        executable.run(feeds)
    assert caught.value.code == "E_INPUT"


def test_strided_and_unaligned_inputs_are_fine(artifact: Artifact, x: np.ndarray) -> None:
    raw = np.zeros(x.nbytes + 4, np.uint8)
    unaligned = raw[4:].view(np.float32).reshape(x.shape)
    unaligned[:] = x
    strided = np.asfortranarray(x)
    with load(artifact.path) as executable:
        expected = executable.run({"x": x})["y"]
        np.testing.assert_array_equal(executable.run({"x": unaligned})["y"], expected)
        np.testing.assert_array_equal(executable.run({"x": strided})["y"], expected)


def test_threads_change_nothing(artifact: Artifact, x: np.ndarray) -> None:
    with load(artifact.path) as one, load(artifact.path, threads=2) as two, load(artifact.path, threads=5) as many:
        expected = one.run({"x": x})["y"]
        for _ in range(20):
            np.testing.assert_array_equal(two.run({"x": x})["y"], expected)
            np.testing.assert_array_equal(many.run({"x": x})["y"], expected)


@pytest.mark.parametrize("threads", [1, 3])
def test_one_executable_serves_many_callers(artifact: Artifact, threads: int) -> None:
    random = np.random.default_rng(2)
    inputs = [random.standard_normal((1, 3, 32, 32)).astype(np.float32) for _ in range(6)]
    with load(artifact.path, threads) as executable:
        expected = [executable.run({"x": x})["y"] for x in inputs]
        wrong: list[int] = []

        def serve(index: int) -> None:
            for _ in range(20):
                if not np.array_equal(executable.run({"x": inputs[index]})["y"], expected[index]):
                    wrong.append(index)

        callers = [threading.Thread(target=serve, args=(i,)) for i in range(len(inputs))]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    assert not wrong


def test_no_thread_stays_after_closing(artifact: Artifact, x: np.ndarray) -> None:
    tasks = Path("/proc/self/task")
    before = len(list(tasks.iterdir()))
    executable = load(artifact.path, threads=4)
    executable.run({"x": x})
    assert len(list(tasks.iterdir())) == before + 3
    executable.close()
    executable.close()
    assert len(list(tasks.iterdir())) == before
    with pytest.raises(SecateurError, match="closed"):
        executable.run({"x": x})


def test_running_needs_neither_tvm_nor_onnx(artifact: Artifact) -> None:
    script = (
        "import sys, numpy as np\nfrom backends import load\n"
        f"y = load({str(artifact.path)!r}).run({{'x': np.zeros((1, 3, 32, 32), np.float32)}})['y']\n"
        "assert y.shape == (1, 10)\n"
        "assert not {'tvm', 'onnx', 'onnxruntime'} & set(sys.modules), sorted(sys.modules)\n"
    )
    root = Path(aot.__file__).parents[1]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)


def test_a_symbolic_dimension_is_named(tmp_path: Path) -> None:
    model = small_cnn()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    with pytest.raises(SecateurError, match=r"dimension 0 of input 'x'.*'batch'") as caught:
        build(load_onnx(model), tmp_path / "out")
    assert caught.value.code == "E_SYMBOLIC_DIM"
    assert caught.value.hint == "bind it: --shape x=1x3x32x32"


def test_an_operator_without_lowering_is_named(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Det", ["x"], ["y"], name="volume")
    model = network([node], {"x": np.zeros((2, 3, 3), np.float32)}, {}, ["y"])
    with pytest.raises(SecateurError, match="operator Det has no native lowering") as caught:
        build(load_onnx(model), tmp_path / "out")
    assert caught.value.code == "E_NO_LOWERING"
    assert "volume" in caught.value.where and "ai.onnx" in caught.value.where
    assert list(tmp_path.iterdir()) == []


def test_without_a_linker_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot, "has_zig", lambda: False)
    monkeypatch.setattr(aot.shutil, "which", lambda name: None)
    with pytest.raises(SecateurError, match="no linker") as caught:
        build(load_onnx(small_cnn()), tmp_path / "out")
    assert caught.value.code == "E_NO_LINKER" and "ziglang" in caught.value.hint


def test_layers_can_be_timed_one_by_one(artifact: Artifact, x: np.ndarray) -> None:
    with load(artifact.path) as executable:
        times = executable.profile({"x": x}, repeats=3)
    assert len(times) == len(artifact.manifest["layers"]) and min(times) >= 0
    assert times[0] > 0, "a convolution takes longer than a call"


def test_the_benchmark_compares_with_its_peer(artifact: Artifact) -> None:
    result = benchmark(artifact.path, artifact.path / "model.onnx", seconds=0.05)
    assert result.peer is not None and result.ratio is not None and result.difference is not None
    assert result.difference < 1e-4 and result.ours.median > 0 and result.ratio > 0
