"""Inner loops of NEON code: no vector goes to the stack, and by a model of a processor they are near its peak."""

from __future__ import annotations

import pytest

from tests.benchmarks.bench_arm import pointwise, product_loop, window
from tests.benchmarks.loops import PEAK, cycles, tool

pytestmark = pytest.mark.skipif(
    tool("llvm-mca") is None or tool("llvm-objdump") is None,
    reason="llvm-mca and llvm-objdump of LLVM 17 or newer are missing (Debian: llvm-19)",
)


@pytest.mark.parametrize(
    ("spec", "block", "schedule", "share"),
    [
        (pointwise(256, 14), 0, "pointwise_conv2d", 0.9),
        (window(64, 56, stride=2), 0, "panels_conv2d", 0.9),
        (pointwise(256, 14), 1, "sparse_conv2d csr", 0.55),
        (pointwise(256, 14), 2, "sparse_conv2d 2x1", 0.9),
        (pointwise(512, 14), 4, "sparse_conv2d 4x1", 0.9),
    ],
    ids=["dense", "panels", "csr", "2x1", "4x1"],
)
def test_inner_loops_keep_to_registers_and_near_the_peak(spec: object, block: int, schedule: str, share: float) -> None:
    label, loop = product_loop(spec, block)
    assert label.startswith(schedule)
    assert loop.spills == 0, "\n".join(loop.instructions)
    assert loop.fmla / cycles(loop, "neoverse-n1") / PEAK["neoverse-n1"] >= share, "\n".join(loop.instructions)
