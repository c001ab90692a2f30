"""Inner loops of NEON code: no vector goes to the stack, and by a model of a processor they are near its peak."""

from __future__ import annotations

import pytest
import tvm

from backends.schedules.codegen import object_code
from backends.selection import choose_conv
from backends.target import target
from tests.benchmarks.bench_arm import pointwise, product_loop, weights_of, window
from tests.benchmarks.loops import PEAK, cycles, disassemble, tool

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
        (pointwise(256, 28), 2, "sparse_conv2d 2x1", 0.9),
        (pointwise(512, 14), 4, "sparse_conv2d 4x1", 0.9),
    ],
    ids=["dense", "panels", "csr", "2x1", "2x1, 28x28", "4x1"],
)
def test_inner_loops_keep_to_registers_and_near_the_peak(spec: object, block: int, schedule: str, share: float) -> None:
    label, loop = product_loop(spec, block)
    assert label.startswith(schedule)
    assert loop.spills == 0, "\n".join(loop.instructions)
    for cpu, peak in PEAK.items():
        assert loop.fmla / cycles(loop, cpu) / peak >= share, f"{cpu}\n" + "\n".join(loop.instructions)


def test_code_for_all_has_no_instruction_that_the_first_processors_lack() -> None:
    """It is arranged for Cortex-A55, which has more than ARMv8.0."""
    for name in ("arm64-linux", "arm64-android"):
        machine = target(name)
        kernel = choose_conv(window(64, 28), weights_of(window(64, 28), 0), machine).chosen.make(machine, True)
        code = object_code(tvm.IRModule({kernel.symbol: kernel.func}), machine)
        bodies = disassemble(code, "+v8a,+neon").values()
        assert any("fmla" in text for body in bodies for _, text in body)
        assert not [text for body in bodies for _, text in body if "unknown" in text]
        assert machine.cpu == "cortex-a55"


@pytest.mark.parametrize(
    ("spec", "block", "schedule"),
    [
        (pointwise(256, 14), 0, "pointwise_conv2d"),
        (window(64, 28), 0, "panels_conv2d"),
        (pointwise(256, 28), 2, "sparse_conv2d 2x1"),
        (pointwise(256, 28), 4, "sparse_conv2d 4x1"),
    ],
    ids=["dense", "panels", "2x1", "4x1"],
)
def test_half_precision_multiplies_eight_numbers_at_once_and_as_near_the_peak(
    spec: object, block: int, schedule: str
) -> None:
    label, loop = product_loop(spec, block, "float16")
    assert label.startswith(schedule)
    assert not any(".4s" in text for text in loop.instructions)
    assert loop.spills == 0, "\n".join(loop.instructions)
    for cpu, peak in PEAK.items():
        assert loop.fmla / cycles(loop, cpu) / peak >= 0.85, f"{cpu}\n" + "\n".join(loop.instructions)
