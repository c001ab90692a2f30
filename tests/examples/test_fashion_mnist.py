"""The bundled Fashion-MNIST network: small, accurate, with BatchNorm in the file, and rebuilt at any width."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from examples.fashion_mnist.data import load_split, load_test_images, preprocess  # noqa: E402

FOLDER = ROOT / "examples" / "fashion_mnist"
MODEL = FOLDER / "fashion_cnn.onnx"


def _logits(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": preprocess(images)})[0]


def test_classifies_the_bundled_images() -> None:
    images, labels = load_test_images()
    assert images.shape == (1000, 28, 28) and images.dtype == labels.dtype == np.uint8
    assert (np.bincount(labels, minlength=10) > 50).all()
    assert (_logits(MODEL, images).argmax(1) == labels).mean() >= 0.92


def test_model_file_keeps_batchnorm_and_parameter_names() -> None:
    model = onnx.load(MODEL)
    onnx.checker.check_model(model, full_check=True)
    ops = Counter(node.op_type for node in model.graph.node)
    assert ops == {
        "Conv": 16, "BatchNormalization": 16, "Relu": 12, "Add": 4, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
    }  # fmt: skip
    initializers = {tensor.name for tensor in model.graph.initializer}
    assert {"stem.conv.weight", "block1.shortcut.bn.running_var", "classifier.bias"} <= initializers
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert [i.name for i in model.graph.input] == ["input"] and batch.dim_param == "N"


def test_bundled_files_are_small_and_free_of_paths() -> None:
    for path in (MODEL, FOLDER / "test_images.npz"):
        assert path.stat().st_size <= 2_000_000
    assert b".py" not in MODEL.read_bytes()


def test_preprocess_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"expected uint8 \[N, 28, 28\] images, got float32 \[2, 28, 28\]"):
        preprocess(np.zeros((2, 28, 28), np.float32))


def test_load_split_joins_halves(tmp_path: Path) -> None:
    for half, value in (("a", 1), ("b", 2)):
        images = b"\x00\x00\x08\x03" + np.array([2, 28, 28], ">u4").tobytes() + bytes([value]) * (2 * 28 * 28)
        labels = b"\x00\x00\x08\x01" + np.array([2], ">u4").tobytes() + bytes([value]) * 2
        (tmp_path / f"train-images-{half}-idx3-ubyte").write_bytes(images)
        (tmp_path / f"train-labels-{half}-idx1-ubyte").write_bytes(labels)
    images, labels = load_split(tmp_path, "train")
    assert images[:, 0, 0].tolist() == labels.tolist() == [1, 1, 2, 2]
    with pytest.raises(FileNotFoundError, match="t10k-images"):
        load_split(tmp_path, "t10k")


def test_network_of_any_width_survives_the_round_trip_through_onnx(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from examples.fashion_mnist.model import WIDTHS, Net
    from examples.fashion_mnist.onnx_file import read_state, write_onnx

    torch.manual_seed(0)
    widths = {name: width // 2 - i for i, (name, width) in enumerate(WIDTHS.items())}
    net = Net(widths).eval()
    with torch.no_grad():
        for bn in (m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            bn.running_mean.uniform_(-1, 1)
    write_onnx(net, tmp_path / "narrow.onnx")
    rebuilt = Net.from_state_dict(read_state(tmp_path / "narrow.onnx")).eval()
    assert rebuilt.widths == widths

    images, _ = load_test_images()
    with torch.no_grad():
        expected = net(torch.from_numpy(preprocess(images[:16]))).numpy()
        assert np.array_equal(rebuilt(torch.from_numpy(preprocess(images[:16]))).numpy(), expected)
    assert np.linalg.norm(_logits(tmp_path / "narrow.onnx", images[:16]) - expected) < 1e-4 * np.linalg.norm(expected)


def test_read_state_says_what_a_folded_file_lacks(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from examples.fashion_mnist.onnx_file import read_state

    model = onnx.load(MODEL)
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "stem.bn.weight"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, tmp_path / "folded.onnx")
    with pytest.raises(ValueError, match=r"1 parameters are missing, stem\.bn\.weight the first"):
        read_state(tmp_path / "folded.onnx")
