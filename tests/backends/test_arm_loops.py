"""Inner loops of NEON code: no vector goes to the stack, and by a model of a processor they are near its peak."""

from __future__ import annotations

import dataclasses

import pytest
import tvm

from backends.schedules.codegen import object_code
from backends.schedules.epilogue import Epilogue
from backends.schedules.winograd import winograd
from backends.selection import choose_conv
from backends.target import target
from tests.benchmarks.bench_arm import ARM, pointwise, product_loop, weights_of, window
from tests.benchmarks.loops import PEAK, cycles, disassemble, innermost_loops, tool

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


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "share"),
    [
        (7, 3, 1, 0.7),
        (14, 3, 1, 0.5),
        (14, 3, 2, 0.4),
        (28, 3, 1, 0.7),
        (28, 3, 2, 0.33),
        (56, 3, 1, 0.7),
        (56, 3, 2, 0.6),
        (7, 5, 1, 0.75),
        (14, 5, 1, 0.8),
        (14, 5, 2, 0.55),
        (28, 5, 1, 0.8),
    ],
)
def test_depthwise_windows_keep_to_registers(size: int, kernel: int, stride: int, share: float) -> None:
    """Their multiply-adds come with loads, and halves of vectors, so that the share of the peak is less."""
    label, loop = product_loop(window(96, size, groups=96, stride=stride, kernel=kernel), 0)
    assert label.startswith("depthwise_conv2d")
    assert loop.spills == 0, "\n".join(loop.instructions)
    for cpu, peak in PEAK.items():
        assert loop.fmla / cycles(loop, cpu) / peak >= share, cpu


@pytest.mark.parametrize(("size", "most"), [(28, 0), (56, 110)])
def test_tiles_of_more_points_than_registers_are_transformed_by_lines(size: int, most: int) -> None:
    """What becomes points keeps to registers; of outputs with four vectors in a row, a tenth of the moves do not."""
    kernel = winograd(window(64, size), ARM, True, 4)
    found = innermost_loops(object_code(tvm.IRModule({kernel.symbol: kernel.func}), ARM))
    loops = [loop for loop in found if len(loop.instructions) > 60]  # shorter ones stage pixels on the stack
    assert sum(loop.fmla >= 16 for loop in loops) >= 3
    assert sum(loop.spills for loop in loops) <= most
    assert sum(loop.spills > 0 for loop in loops) <= 1


def test_what_limits_a_result_is_one_instruction() -> None:
    """Comparing, choosing and keeping NaN took four for both limits."""
    spec = dataclasses.replace(pointwise(64, 14), epilogue=Epilogue(activation="clip", alpha=0.0, beta=6.0))
    kernel = choose_conv(spec, weights_of(spec, 0), ARM).chosen.make(ARM, True)
    code = object_code(tvm.IRModule({kernel.symbol: kernel.func}), ARM)
    found = [text for body in disassemble(code).values() for _, text in body]
    assert any(text.startswith("fmax v") for text in found)
    assert any(text.startswith("fmin v") for text in found)
    assert not any(text.startswith(("fcm", "bif", "bit", "bsl")) for text in found)


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
        (window(64, 28), 0, "winograd_conv2d dense 2x2"),
        (window(64, 28, stride=2), 0, "panels_conv2d"),
        (pointwise(256, 28), 2, "sparse_conv2d 2x1"),
        (pointwise(256, 28), 4, "sparse_conv2d 4x1"),
    ],
    ids=["dense", "winograd", "panels", "2x1", "4x1"],
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
