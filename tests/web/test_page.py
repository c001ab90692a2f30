"""The page in headless Chromium: what it shows is what ONNX Runtime computes, under the strictest policy."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from backends import build
from backends.wasm import WebPackage
from backends.webpage import Page
from compiler.driver import compile as compile_model
from compiler.frontends.onnx import load_onnx
from compiler.ir import SecateurError
from compiler.ir.execute import execute
from examples.fashion_mnist.data import CLASSES, MEAN, STD, load_test_images, preprocess
from tests.backends.networks import network, reference, small_cnn
from tests.web.browser import Browser, site
from tests.web.chromium import Chromium
from tests.web.nodes import needs_chromium

MODEL = Path(__file__).parents[2] / "examples" / "fashion_mnist" / "fashion_cnn.onnx"
FINISHED = "['done', 'error'].includes(document.body.dataset.state)"
TOP = "return document.querySelector(`[data-model=${args[0]}] .bar`).dataset"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images, labels = load_test_images()
    names = tuple(f"{i}: {CLASSES[label]}" for i, label in enumerate(labels[:6]))
    page = Page(CLASSES, {"input": preprocess(images[:6])}, names, (MEAN,), (STD,), milliseconds=50)
    folder = tmp_path_factory.mktemp("page") / "out"
    passes = "simplify,sparsify(sparsity=0.8)"
    options = {"target": "wasm", "passes": passes, "verify": False, "shapes": {"input": (1, 1, 28, 28)}}
    compile_model(MODEL, output=folder, packager=WebPackage(page=page), **options)
    return folder


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def test_a_classifier_beside_its_dense_original(page: Browser, classifier: Path) -> None:
    images, _ = load_test_images()
    inputs = preprocess(images[:6])
    dense = load_onnx(MODEL, shapes={"input": (1, 1, 28, 28)})
    models = {"smaller": onnx.load(classifier / "model.onnx"), "dense": None}
    with site(classifier) as url:
        page.open(f"{url}/")
        page.wait(FINISHED)
        assert page.run("return document.body.dataset.state") == "done"
        for index in (0, 3, 5):
            page.run(
                "const s = document.querySelector('#sample'); s.value = args[0]; s.dispatchEvent(new Event('change'));"
                "document.body.dataset.state = 'asked'",
                str(index),
            )
            page.wait(FINISHED)
            x = inputs[index : index + 1]
            for name, model in models.items():
                logits = execute(dense, {"input": x}) if model is None else reference(model, {"input": x})
                expected = softmax(logits["logits"].reshape(-1))
                shown = page.run(TOP, name)
                assert int(shown["index"]) == int(expected.argmax()), (name, index)
                assert float(shown["share"]) == pytest.approx(expected.max(), rel=1e-4)
        text = page.run("return document.querySelector('[data-model=smaller] .bars').innerText")
        assert any(name in text for name in CLASSES) and "%" in text
        milliseconds = page.run("return [...document.querySelectorAll('.latency')].map((e) => +e.dataset.milliseconds)")
        assert len(milliseconds) == 2 and all(0 < m < 1000 for m in milliseconds)
        assert "times as fast as the dense model" in page.run("return document.querySelector('#status').textContent")
        assert page.run("return crossOriginIsolated") is True
        assert page.complaints() == []


@needs_chromium
def test_what_is_shown_can_be_seen(chromium: Chromium, classifier: Path) -> None:
    with site(classifier) as url:
        chromium.open(f"{url}/")
        chromium.wait(FINISHED)
        pixels = decode_png(chromium.screenshot())
        boxes = chromium.run(
            "return ['canvas', '.fill'].map((s) => { const b = document.querySelector(s).getBoundingClientRect();"
            " return [b.left, b.top, b.right, b.bottom].map(Math.round); })"
        )
    left, top, right, bottom = boxes[0]
    picture = pixels[top:bottom, left:right, 0].astype(float)
    images, _ = load_test_images()
    step = np.linspace(0, picture.shape[0] - 1, 28).round().astype(int)
    assert np.corrcoef(picture[np.ix_(step, step)].reshape(-1), images[0].reshape(-1).astype(float))[0, 1] > 0.9
    left, top, right, bottom = boxes[1]
    bar = pixels[(top + bottom) // 2, (left + right) // 2, :3].astype(int)
    assert bar[1] > bar[0] and bar[1] > bar[2], "the longest bar is green"


@needs_chromium
def test_the_page_stays_alive_while_a_model_runs(chromium: Chromium, classifier: Path) -> None:
    with site(classifier) as url:
        chromium.open(f"{url}/")
        chromium.wait(FINISHED)
        longest = chromium.run(
            "document.querySelector('#noise').click(); document.body.dataset.state = 'asked';"
            "let last = performance.now(), longest = 0;"
            "while (document.body.dataset.state !== 'done') {"
            " await new Promise((r) => setTimeout(r, 1)); const now = performance.now();"
            " longest = Math.max(longest, now - last); last = now; } return longest"
        )
        assert longest < 1000


@needs_chromium
def test_the_users_own_picture(chromium: Chromium, classifier: Path, tmp_path: Path) -> None:
    images, _ = load_test_images()
    (tmp_path / "shirt.png").write_bytes(encode_png(images[1]))
    (tmp_path / "text.png").write_bytes(b"not a picture")
    expected = execute(load_onnx(MODEL, shapes={"input": (1, 1, 28, 28)}), {"input": preprocess(images[1:2])})["logits"]
    with site(classifier) as url:
        chromium.open(f"{url}/")
        chromium.wait(FINISHED)
        chromium.run("document.body.dataset.state = 'asked'")
        chromium.choose_file("#file", tmp_path / "shirt.png")
        chromium.wait(FINISHED)
        shown = chromium.run(TOP, "dense")
        assert int(shown["index"]) == int(expected.argmax())
        assert float(shown["share"]) == pytest.approx(softmax(expected.reshape(-1)).max(), rel=1e-2)
        chromium.run("document.body.dataset.state = 'asked'")
        chromium.choose_file("#file", tmp_path / "text.png")
        chromium.wait(FINISHED)
        assert "text.png is not a picture" in chromium.run("return document.querySelector('[role=alert]').textContent")


@needs_chromium
def test_from_picture_to_picture(chromium: Chromium, tmp_path: Path) -> None:
    weights = np.zeros((4, 1, 3, 3), np.float32)
    weights[:, :, 1, 1] = 0.5
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["c"], ["y"], blocksize=2),
    ]
    model = network(nodes, {"x": np.zeros((1, 1, 16, 16), np.float32)}, {"w": weights}, ["y"])
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(1, 1, 16, 16)
    packager = WebPackage(page=Page(samples={"x": ramp}, milliseconds=20))
    artifact = build(load_onnx(model), tmp_path / "out", target="wasm", packager=packager)
    with site(artifact.path) as url:
        chromium.open(f"{url}/")
        chromium.wait(FINISHED)
        found = chromium.run(
            "const c = document.querySelector('[data-model=model] canvas');"
            "return [c.width, c.height, ...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
        )
    assert found[:2] == [32, 32]
    shown = np.array(found[2:]).reshape(32, 32, 4)[:, :, 0]
    expected = 255 * reference(model, {"x": ramp})["y"].reshape(32, 32)
    assert np.abs(shown - expected).max() <= 1


@needs_chromium
def test_numbers_where_there_is_nothing_to_draw(chromium: Chromium, tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    node = helper.make_node("Gather", ["t", "i"], ["y"])
    model = network([node], {"i": np.zeros((2, 2), np.int64)}, {"t": table}, ["y"])
    index = np.array([[[4, 1], [0, 3]]])
    packager = WebPackage(page=Page(samples={"i": index}, milliseconds=20))
    artifact = build(load_onnx(model), tmp_path / "out", target="wasm", packager=packager)
    with site(artifact.path) as url:
        chromium.open(f"{url}/")
        chromium.wait(FINISHED)
        rows = chromium.run("return [...document.querySelectorAll('.outputs tr')].map((r) => r.innerText.split('\\t'))")
    assert [row[0] for row in rows][:4] == ["[0, 0, 0]", "[0, 0, 1]", "[0, 0, 2]", "[0, 1, 0]"]
    assert [float(row[1]) for row in rows] == pytest.approx(table[index[0]].reshape(-1), rel=1e-5)


@needs_chromium
def test_altered_weights_are_told_on_the_page(chromium: Chromium, tmp_path: Path) -> None:
    artifact = build(load_onnx(small_cnn()), tmp_path / "out", target="wasm", packager=WebPackage(page=Page()))
    weights = artifact.path / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    with site(artifact.path) as url:
        chromium.open(f"{url}/")
        chromium.wait(FINISHED)
        alert = chromium.run("return document.querySelector('[role=alert]').textContent")
    assert alert.startswith("E_ARTIFACT: weights.bin is not the file")


def test_samples_of_another_shape_are_refused(tmp_path: Path) -> None:
    for samples, message in (
        ({"z": np.zeros((2, 3, 32, 32), np.float32)}, "hold no input 'x'"),
        ({"x": np.zeros((2, 3, 32, 31), np.float32)}, r"not float32\[n, 3, 32, 32\]"),
        ({"x": np.zeros((2, 3, 32, 32))}, "are float64"),
        ({"x": np.zeros((0, 3, 32, 32), np.float32)}, "are float32"),
    ):
        packager = WebPackage(page=Page(samples=samples))
        with pytest.raises(SecateurError, match=message) as caught:
            build(load_onnx(small_cnn()), tmp_path / "out", target="wasm", packager=packager)
        assert caught.value.code == "E_SAMPLES"


def encode_png(image: np.ndarray) -> bytes:
    """A grey picture [height, width] of bytes as PNG."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = image.shape
    lines = b"".join(b"\0" + row.tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def decode_png(data: bytes) -> np.ndarray:
    """A PNG of 8-bit colours [height, width, 3 or 4] (PNG specification, section 9: filters)."""
    at, compressed = 8, b""
    width = height = channels = 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height, _, colour = struct.unpack(">IIBB", body[:10])
            channels = {2: 3, 6: 4}[colour]
        if kind == b"IDAT":
            compressed += body
        at += 12 + size
    raw = np.frombuffer(zlib.decompress(compressed), np.uint8).reshape(height, 1 + width * channels)
    rows = np.zeros((height + 1, width + 1, channels), np.int64)
    for y in range(height):
        line, up = raw[y, 1:].reshape(width, channels).astype(np.int64), rows[y]
        kind = raw[y, 0]
        if kind in (0, 2):
            rows[y + 1, 1:] = (line + (up[1:] if kind == 2 else 0)) & 255
            continue
        for x in range(width):
            left, above, corner = rows[y + 1, x], up[x + 1], up[x]
            guess = left if kind == 1 else (left + above) >> 1 if kind == 3 else paeth(left, above, corner)
            rows[y + 1, x + 1] = (line[x] + guess) & 255
    return rows[1:, 1:].astype(np.uint8)


def paeth(left: np.ndarray, above: np.ndarray, corner: np.ndarray) -> np.ndarray:
    to = left + above - corner
    a, b, c = abs(to - left), abs(to - above), abs(to - corner)
    return np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))
