"""The inner loops of WebAssembly code as V8 compiles them for x86-64: sums stay in registers, nothing is spilled."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from backends import build
from compiler.frontends.onnx import load_onnx
from tests.backends.networks import network
from tests.web.nodes import needs_node, run_node

pytestmark = [
    needs_node,
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86-64 instructions"),
]
FLAGS = ("--no-liftoff", "--no-wasm-lazy-compilation", "--print-wasm-code")
SCRIPT = """
const { load, zeros } = await import(process.argv[1]);
for (const variant of ["simd", "relaxed"]) {
  try {
    const model = await load({ variant });
    await model.run({ x: zeros(model.inputs[0]) });
  } catch (error) {
    if (error.code !== "E_TARGET") throw error;
  }
}
"""


@dataclass(frozen=True)
class Loop:
    """Instructions of a loop that no other lies in."""

    start: int
    end: int
    instructions: tuple[str, ...]

    def count(self, pattern: str) -> int:
        return sum(re.search(pattern, line) is not None for line in self.instructions)

    @property
    def products(self) -> int:
        return self.count(r"^vmulps|^vfmadd")

    @property
    def spills(self) -> int:
        """Vectors that go to the stack or come from it."""
        return self.count(r"^vmov\w+ .*\[r[bs]p")


def loops(listing: str) -> Iterator[Loop]:
    """The innermost loops of each function in what V8 prints."""
    for function in listing.split("--- WebAssembly code ---")[1:]:
        lines = re.findall(r"^0x[0-9a-f]+\s+([0-9a-f]+)\s+[0-9a-f]+\s+(.*)$", function, re.MULTILINE)
        code = [(int(at, 16), text) for at, text in lines]
        found = []
        for at, text in code:
            back = re.match(r"j\w+ .*<\+0x([0-9a-f]+)>", text)
            if back and (start := int(back[1], 16)) <= at:
                found.append(Loop(start, at, tuple(t for a, t in code if start <= a <= at)))
        for loop in found:
            if not any(other is not loop and loop.start <= other.start and other.end <= loop.end for other in found):
                yield loop


def listing(tmp_path: Path, weights: np.ndarray) -> str:
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    size = (1, weights.shape[1], 16, 24)
    model = network([node], {"x": np.zeros(size, np.float32)}, {"w": weights}, ["y"])
    artifact = build(load_onnx(model), tmp_path / "out", target="wasm")
    relaxed = ("--experimental-wasm-relaxed-simd",) if run_node("--version").startswith("v20.") else ()
    text = run_node(
        "--input-type=module", "-e", SCRIPT, (artifact.path / "index.js").as_uri(), flags=(*FLAGS, *relaxed)
    )
    if "Instructions" not in text:
        pytest.skip("this Node does not print instructions")
    return text


def test_a_dense_tile_stays_in_registers(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((64, 64, 1, 1)).astype(np.float32)
    tiles = [loop for loop in loops(listing(tmp_path, weights)) if loop.products >= 8 and loop.count("broadcast") >= 2]
    hot = [loop for loop in tiles if loop.products / len(loop.instructions) > 0.2]
    assert len(hot) >= 1
    assert [loop.spills for loop in hot] == [0] * len(hot)


def test_a_sparse_tile_stays_in_registers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weights = random.standard_normal((64, 64, 1, 1)) * (random.uniform(size=(64, 64, 1, 1)) < 0.1)
    tiles = [loop for loop in loops(listing(tmp_path, weights.astype(np.float32))) if loop.count("vbroadcast") >= 1]
    hot = [loop for loop in tiles if loop.products / len(loop.instructions) > 0.14]
    assert len(hot) >= 1
    assert [loop.spills for loop in hot] == [0] * len(hot)
