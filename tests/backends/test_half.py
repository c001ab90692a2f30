"""Half precision: what computes in it, how near it comes to float32, and processors that lack it."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from backends import build, load
from backends.lowering import lower
from backends.schedules import ConvSpec, conv2d
from backends.schedules.dense_cost import dense_methods
from backends.target import Target, target
from compiler.cli import main
from compiler.driver import HALF_TOLERANCE, Outcome, compile_outcome
from compiler.errors import SecateurError
from compiler.ir import CheckFailed
from compiler.ir.execute import execute, random_inputs
from tests.backends.schedules_harness import Library
from tests.backends.test_winograd import STEM, compare, grid
from tests.benchmarks.half_accuracy import answers
from tests.networks import network, network_proto

BUNDLED = Path(__file__).parents[2] / "examples" / "fashion_mnist" / "fashion_cnn.onnx"
HALF = target("arm64-linux").computing("float16")
#: Half precision in schedules that run here.
NATIVE = dataclasses.replace(Target.native(), vector_bytes=16, vector_registers=32, dtype="float16")
OPERATORS = """(float[1,8,24,24] x, float[16,8,3,3] a, float[16] b, float[16,1,5,5] d, float[16,16,1,1] p,
    float[16,6,2,2] t, float[10,16] w, float[10] wb, float[24,16] k, float[24] s, float[24] sb, float[24,48] f,
    float[48] fb, float[48,24] o, float[4,2,3,3,3] c3)
    => (float[1,22,12,12] up, float[1,10] classes, float[1,36,24] tokens, float[1,4,4,24,24] volume) {
  c = Conv <kernel_shape = [3,3], pads = [1,1,1,1], strides = [2,2]> (x, a, b)
  r = Relu (c)
  dw = Conv <kernel_shape = [5,5], pads = [2,2,2,2], group = 16> (r, d)
  h = HardSwish (dw)
  q = Conv <kernel_shape = [1,1]> (h, p)
  added = Add (q, r)
  gate = Sigmoid (added)
  silu = Mul (added, gate)
  m = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1], strides = [2,2]> (silu)
  ct = ConvTranspose <kernel_shape = [2,2], strides = [2,2]> (m, t)
  up = Concat <axis = 1> (ct, silu)
  v = AveragePool <kernel_shape = [2,2], strides = [2,2]> (m)
  g = GlobalAveragePool (v)
  flat = Flatten (g)
  logits = Gemm <transB = 1> (flat, w, wb)
  classes = Softmax (logits)
  shape = Constant <value = int64[3] {1, 16, 36}> ()
  pixels = Reshape (m, shape)
  keys = MatMul (k, pixels)
  queries = Transpose <perm = [0,2,1]> (keys)
  scores = MatMul (queries, keys)
  scale = Constant <value = float {0.2}> ()
  scaled = Mul (scores, scale)
  shares = Softmax (scaled)
  seen = MatMul (shares, queries)
  normal = LayerNormalization (seen, s, sb)
  wide = MatMul (normal, f)
  biased = Add (wide, fb)
  gelu = Gelu (biased)
  narrow = MatMul (gelu, o)
  tokens = Add (narrow, seen)
  deep = Constant <value = int64[5] {1, 2, 4, 24, 24}> ()
  block = Reshape (x, deep)
  c5 = Conv <kernel_shape = [3,3,3], pads = [1,1,1,1,1,1]> (block, c3)
  volume = Tanh (c5)
}"""


def emulator() -> str:
    """What runs the code; the test is skipped where it is missing."""
    found = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    return found or pytest.skip("qemu-user is not installed: code for ARM is not run")


def test_operators_of_all_kinds_agree_with_float32(tmp_path: Path) -> None:
    graph = network(OPERATORS)
    artifact = build(graph, tmp_path / "out", target=HALF)
    emulator()
    data = random_inputs(graph, 1)
    with load(artifact.path) as executable:
        actual = executable.run(data)
    for name, expected in execute(graph, data).items():
        assert actual[name].dtype == np.float32
        error = np.linalg.norm(actual[name] - expected) / np.linalg.norm(expected)
        assert 1e-5 < error < 4e-3, name


def computed(text: str, on: Target = HALF) -> dict[str, str]:
    """The type of each node's result."""
    program = lower(network(text), on)
    return {name: str(step.args[step.writes[0]].dtype) for step in program.steps for name in step.nodes}


def test_products_compute_in_half_and_what_loses_digits_in_float32() -> None:
    found = computed(OPERATORS)
    for name in ("c", "q", "m", "ct", "g", "keys", "scores", "narrow", "c5"):
        assert found[name] == "float16", name
    for name in ("classes", "shares", "normal"):
        assert found[name] == "float32", name


@pytest.mark.parametrize(
    ("constant", "kept"), [("70000.0", "float32"), ("60000.0", "float16"), ("1e-9", "float32"), ("0.0", "float16")]
)
def test_a_constant_that_half_cannot_hold_keeps_its_node_in_float32(constant: str, kept: str) -> None:
    text = f"""(float[1,4,9,9] x, float[4,4,1,1] w) => (float[1,4,9,9] y) {{
      c = Conv (x, w)
      b = Constant <value = float {{{constant}}}> ()
      n = Max (c, b)
      y = Neg (n)
    }}"""
    program = lower(network(text), HALF)
    script = next(program.kernels[step.symbol].script() for step in program.steps if "y" in step.nodes)
    assert ("T.float32(" in script) == (kept == "float32")
    assert computed(text)["c"] == "float16"


def test_long_sums_are_added_up_in_blocks() -> None:
    """A sum of 4096 products keeps three digits, where plain half precision would lose one."""
    spec = ConvSpec(1, 4096, 5, 5, 16, (1, 1))
    kernel, random = conv2d(spec, NATIVE), np.random.default_rng(0)
    x, w = (random.standard_normal(shape).astype(np.float16) for shape in ((4096, 25), (16, 4096)))
    packed = kernel.pack(w.astype(np.float32).reshape(16, 4096, 1, 1))
    actual = Library([kernel.func], NATIVE).call(kernel, {"x": x} | packed, (16, 25)).astype(np.float64)
    expected = w.astype(np.float64) @ x.astype(np.float64)
    assert np.linalg.norm(actual - expected) < 2.5e-3 * np.linalg.norm(expected)


WIDE = ConvSpec(1, 256, 14, 14, 64, (3, 3), pads=(1, 1, 1, 1))


def winograd_error(spec: ConvSpec, method: str, pixels: np.ndarray, w: np.ndarray) -> float:
    """Norm of the difference from the sum in double precision, relative to it."""
    x, kernel = pixels.astype(np.float16), conv2d(spec, NATIVE, method=method)
    exact = F.conv2d(torch.tensor(x).double(), torch.tensor(w).double(), None, spec.strides, spec.pads[:2]).numpy()
    actual = Library([kernel.func], NATIVE).call(kernel, {"x": x} | kernel.pack(w), exact.shape)
    return float(np.linalg.norm(actual - exact) / np.linalg.norm(exact))


@pytest.mark.parametrize(
    ("spec", "method", "largest"),
    [
        (WIDE, "direct", 2e-3),
        (WIDE, "winograd2", 2.5e-3),
        (STEM, "winograd3", 3.5e-3),
        (ConvSpec(1, 64, 28, 28, 32, (5, 5), pads=(2, 2, 2, 2)), "winograd2", 5e-3),
    ],
)
def test_winograds_method_in_half_stays_near_the_sum_as_written(spec: ConvSpec, method: str, largest: float) -> None:
    """Of pixels after a Relu."""
    random = np.random.default_rng(0)
    x = np.maximum(random.standard_normal((1, spec.in_channels, spec.height, spec.width)), 0)
    w = random.standard_normal((spec.out_channels, spec.in_channels, *spec.kernel)).astype(np.float32)
    assert 1e-4 < winograd_error(spec, method, x, w / np.sqrt(w[0].size)) <= largest
    assert method == "direct" or next(iter(dense_methods(spec, HALF))) == method
    assert len(dense_methods(spec, HALF)) == 2


def test_points_of_winograds_method_do_not_overflow_half_precision() -> None:
    """A point of a 3x3 tile adds up four pixels: all of one sign in some of these 256 tiles."""
    spec = ConvSpec(1, 1, 34, 34, 1, (3, 3))
    x = 16000.0 * np.random.default_rng(0).choice([-1, 1], (1, 1, 34, 34))
    assert winograd_error(spec, "winograd2", x, np.full((1, 1, 3, 3), 1 / 32, np.float32)) < 2e-3


def test_tiles_of_odd_shapes_agree_in_half() -> None:
    compare(grid()[::2], "winograd2", NATIVE)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The bundled model in half precision, nine tenths of it zeros."""
    return compile_outcome(
        BUNDLED,
        target="arm64-linux",
        precision="half",
        passes="simplify,sparsify(sparsity=0.9)",
        output=tmp_path_factory.mktemp("half") / "out",
        shapes={"input": (1, 1, 28, 28)},
    )


def test_the_bundled_model_is_verified_and_its_weights_are_half_as_large(bundled: Outcome) -> None:
    floats = {}
    for on in (target("arm64-linux"), HALF):
        constants = [b for b in lower(bundled.graph, on).roots() if b.role == "constant" and b.dtype.kind == "f"]
        assert {str(b.dtype) for b in constants} == {on.dtype}
        floats[on.dtype] = sum(b.nbytes for b in constants)
    assert floats["float16"] < 0.55 * floats["float32"]
    assert bundled.artifact is not None and bundled.artifact.manifest["target"]["dtype"] == "float16"
    emulator()
    check = bundled.checks[-1]
    assert "half precision" in check.compared and check.tolerance == HALF_TOLERANCE
    assert 1e-5 < check.difference < 5e-3


def test_labelled_pictures_get_the_same_answers(bundled: Outcome) -> None:
    emulator()
    found = answers(bundled.graph, bundled.path, 10)
    assert len(found.labels) == len(found.half) == 10 and found.changed == 0
    assert found.accuracies[0] == found.accuracies[1]
    assert 1e-5 < found.probability < 0.01 and 1e-5 < found.difference < 5e-3


def test_a_processor_without_half_precision_is_told_so(bundled: Outcome) -> None:
    words = [str(bundled.path / "model-run"), "-w", str(bundled.path / "weights.bin")]
    old, new = (
        subprocess.run([emulator(), "-cpu", cpu, *words], capture_output=True, text=True, check=False)
        for cpu in ("cortex-a53", "neoverse-n1")
    )
    assert old.returncode == 1
    assert old.stderr.endswith("this processor lacks half-precision arithmetic (Armv8.2 FEAT_FP16)\n")
    assert new.returncode == 0, new.stderr


def test_apple_libraries_ask_the_system_for_half_precision(tmp_path: Path) -> None:
    graph = network("(float[1,4,9,9] x, float[4,4,1,1] w) => (float[1,4,9,9] y) { y = Conv (x, w) }")
    artifact = build(graph, tmp_path / "out", target=target("arm64-apple").computing("float16"))
    assert "sysctlbyname" in artifact.manifest["symbols"]["libc"]


def test_numbers_beyond_half_precision_are_found_out(tmp_path: Path) -> None:
    text = """(float[1,8,9,9] x, float[8,8,1,1] w) => (float[1,8,9,9] y) {
      large = Constant <value = float {30000.0}> ()
      small = Constant <value = float {0.0001}> ()
      c = Conv (x, w)
      l = Mul (c, large)
      d = Relu (l)
      y = Mul (d, small)
    }"""
    emulator()
    with pytest.raises(CheckFailed, match="no numbers beyond 65504") as caught:
        compile_outcome(network_proto(text), target="arm64-linux", precision="half", output=tmp_path / "out")
    assert caught.value.code == "E_VERIFY" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"precision": "half"}, "E_PRECISION"),
        ({"precision": "half", "target": "wasm"}, "E_PRECISION"),
        ({"precision": "half", "target": "x86-64-v3"}, "E_PRECISION"),
        ({"precision": "half", "target": "arm64-linux", "tune": 1.0}, "E_PRECISION"),
        ({"precision": "double", "target": "arm64-linux"}, "E_OPTION_VALUE"),
    ],
)
def test_what_cannot_be_had_in_half_is_refused(tmp_path: Path, options: dict[str, object], code: str) -> None:
    with pytest.raises(SecateurError) as caught:
        compile_outcome(BUNDLED, output=tmp_path / "out", shapes={"input": (1, 1, 28, 28)}, **options)
    assert caught.value.code == code and caught.value.hint


def test_the_command_tells_of_half_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compile", str(BUNDLED), "-o", str(tmp_path / "out"), "--shape", "input=1x1x28x28", "--precision", "half"]
    assert run(words) == 2
    assert "half precision is for arm64-linux, arm64-android and arm64-apple" in capsys.readouterr().err
    assert run(["compile", "--help"]) == 0
    assert "float16 arithmetic and weights" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_inspect_tells_of_half_precision(bundled: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(bundled.path)]) == 0
    assert ": arm64-linux, half precision" in " ".join(capsys.readouterr().out.split())


def run(words: list[str]) -> int:
    """The status that a command ends with."""
    with pytest.raises(SystemExit) as caught:
        sys.exit(main(words))
    return int(str(caught.value.code or 0))
