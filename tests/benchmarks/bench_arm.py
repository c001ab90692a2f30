"""ARM without a board: inner loops in models of processors, networks under qemu-user; writes docs/arm-performance.md.

MODELS=MobileNetV1,…: a few networks; `--loops`: the inner loops alone; `--accuracy`: that of half precision alone, on
so many pictures.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm

from backends import build
from backends.artifact import Artifact
from backends.runtime.program import runner
from backends.schedules.codegen import object_code
from backends.schedules.specs import ConvSpec
from backends.selection import choose_conv
from backends.target import Target, target
from backends.zig import zig
from compiler import load as load_model
from compiler.driver import relative_difference
from compiler.ir import Graph
from compiler.ir.execute import execute, random_inputs
from passes import Context, Pipeline
from tests.benchmarks.half_accuracy import FOLDER, PICTURES, answers, trained
from tests.benchmarks.loops import PEAK, Loop, cycles, innermost_loops, tool
from tests.benchmarks.models import NETWORKS
from tests.benchmarks.variants import VARIANTS

ARM = target("arm64-linux")
HALF = ARM.computing("float16")
IN_HALF = ("dense", "90 % sparse")
"""Variants that are counted in half precision too, which qemu computes in software: 30 million products a second."""
PAGE = Path(__file__).parents[2] / "docs" / "arm-performance.md"
TOLERANCE = 1e-4
DEPTHWISE = (
    (3, 32, 112, 1),
    (3, 64, 112, 2),
    (3, 128, 56, 1),
    (3, 128, 56, 2),
    (3, 256, 28, 1),
    (3, 256, 28, 2),
    (3, 512, 14, 1),
    (3, 512, 14, 2),
    (3, 1024, 7, 1),
    (5, 240, 28, 1),
    (5, 480, 14, 1),
    (5, 672, 14, 2),
    (5, 1152, 7, 1),
)
"""Kernel, channels, size and stride of the depthwise layers of MobileNetV1 and EfficientNet-B0."""
_FEW = 4
"""Multiply-adds of the least loop that counts as a product's inner loop."""


def pointwise(channels: int, size: int) -> ConvSpec:
    """A 1x1 convolution of as many inputs as outputs."""
    return ConvSpec(batch=1, in_channels=channels, out_channels=channels, height=size, width=size, kernel=(1, 1))


def window(channels: int, size: int, groups: int = 1, stride: int = 1, kernel: int = 3) -> ConvSpec:
    """A 3x3 convolution, or another of an odd size."""
    pads = (kernel // 2,) * 4
    return ConvSpec(1, channels, size, size, channels, (kernel,) * 2, (stride,) * 2, pads, (1, 1), groups)


def cases() -> Iterator[tuple[str, ConvSpec, int]]:
    """What it is, the layer, and rows per block of its zeros (0: none)."""
    for channels, size in ((512, 14), (256, 28)):
        yield f"dense 1x1, {channels} channels, {size}x{size}", pointwise(channels, size), 0
        for block in (1, 2, 4):
            label = f"90 % sparse 1x1, blocks of {block}, {channels} channels, {size}x{size}"
            yield label, pointwise(channels, size), block
    yield "dense 3x3 of stride 2, 64 channels, 56x56", window(64, 56, stride=2), 0
    yield "dense 3x3, 128 channels, 28x28", window(128, 28), 0
    for kernel, channels, size, stride in DEPTHWISE:
        steps = " of stride 2" if stride == 2 else ""
        label = f"depthwise {kernel}x{kernel}{steps}, {channels} channels, {size}x{size}"
        yield label, window(channels, size, channels, stride, kernel), 0


def weights_of(spec: ConvSpec, block: int) -> np.ndarray:
    """Random weights, nine tenths of them zero in blocks of so many output channels."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((spec.out_channels, spec.in_channels // spec.groups, *spec.kernel))
    if block:
        kept = random.random((spec.out_channels // block, *weights.shape[1:])) < 0.1
        weights *= np.repeat(kept, block, axis=0)
    return weights.astype(np.float32)


def product_loop(spec: ConvSpec, block: int, dtype: str = "float32") -> tuple[str, Loop]:
    """What the selection chose, and the loop in which its multiply-adds are densest."""
    machine = ARM.computing(dtype)
    chosen = choose_conv(spec, weights_of(spec, block), machine).chosen
    kernel = chosen.make(machine, True)
    found = innermost_loops(object_code(tvm.IRModule({kernel.symbol: kernel.func}), machine))
    loops = [loop for loop in found if loop.fmla >= _FEW]
    return chosen.label, max(loops, key=lambda loop: (loop.fmla / len(loop.instructions), loop.fmla))


def loop_rows(dtype: str = "float32") -> Iterator[list[str]]:
    """A row per case: chosen schedule, multiply-adds, instructions, spills, and each processor's figures."""
    for label, spec, block in cases():
        chosen, loop = product_loop(spec, block, dtype)
        row = [label, chosen, str(loop.fmla), str(len(loop.instructions)), str(loop.spills)]
        for cpu, peak in PEAK.items():
            each = cycles(loop, cpu) / loop.fmla
            row += [f"{each:.2f}", f"{1 / each / peak:.0%}"]
        yield row


def networks(chosen: set[str]) -> Iterator[tuple[str, str, Graph]]:
    """Name, variant, graph: the bundled model and the benchmark's networks."""
    made = {"bundled": lambda: load_model(FOLDER / "fashion_cnn.onnx", shapes={"input": (1, 1, 28, 28)})}
    for name in ("MobileNetV1", "MobileNetV2", "ResNet-18"):
        made[name] = lambda name=name: load_model(NETWORKS[name].make())
    for name, make in made.items():
        if chosen and name not in chosen:
            continue
        graph = Pipeline("simplify").run(make(), Context())
        for variant, label in (("0", "dense"), ("half", "50 % pruned"), ("90", "90 % sparse"), ("90-4x1", "90 % 4x1")):
            yield name, label, VARIANTS[variant].run(graph, Context())


@dataclass(frozen=True)
class Counted:
    """An artifact's one run: difference from ONNX Runtime, instructions; bytes of its code, and with its weights."""

    difference: float
    instructions: int
    code: int
    nbytes: int


def counted(graph: Graph, machine: Target, folder: Path) -> Counted:
    """Build a graph of one input and one output for a machine, and run it once under the plugin in `folder`.

    Its instructions are those that the program executes beyond one that stops where its input turns out to be empty.
    """
    artifact = build(graph, folder / "artifact", target=machine, overwrite=True, keep_model=False)
    data = random_inputs(graph, 1)
    (name, expected), *_ = execute(graph, data).items()
    given, made, empty = (folder / name for name in ("in.bin", "out.bin", "empty.bin"))
    given.write_bytes(next(iter(data.values())).tobytes())
    empty.touch()
    counts = [_executed(artifact, folder / "count.so", i, made) for i in (empty, given)]
    actual = np.fromfile(made, expected.dtype).reshape(expected.shape)
    difference = relative_difference({name: actual}, {name: expected})
    code, weights = artifact.manifest["code_bytes"], artifact.manifest["weights_bytes"]
    return Counted(difference, counts[1] - counts[0], code, code + weights)


def _executed(artifact: Artifact, plugin: Path, given: Path, made: Path) -> int:
    """Instructions that an artifact's program executes, from its start to its end."""
    command = runner(artifact.manifest)
    assert command
    words = [*command, "-plugin", str(plugin), str(artifact.path / artifact.manifest["program"])]
    words += ["-w", str(artifact.path / "weights.bin"), "-i", str(given), "-o", str(made)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = re.search(r"instructions (\d+)", done.stderr)
    if found is None or (done.returncode != 0) != (given.stat().st_size == 0):
        raise SystemExit(f"{artifact.path}: status {done.returncode}, {done.stderr}")
    return int(found[1])


def network_rows(chosen: set[str]) -> Iterator[tuple[list[str], list[str] | None]]:
    """Two rows per network and variant: of float32, and of half precision beside it where it is counted.

    difference from ONNX Runtime, instructions, dense ones over them (float32 ones over half's), and bytes.
    """
    dense: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(Path(__file__).parent / "counting.c", folder)
        zig(folder, "cc", "-target", "x86_64-linux-gnu.2.17", "-O2", "-fPIC", "-shared", "counting.c", "-o", "count.so")
        for network, variant, graph in networks(chosen):
            single = counted(graph, ARM, folder)
            if single.difference > TOLERANCE:
                raise SystemExit(f"{network}, {variant}: differs from ONNX Runtime by {single.difference:.1e}")
            gain = dense.setdefault(network, single.instructions) / single.instructions
            row = [network, variant, f"{single.difference:.1e}", f"{single.instructions / 1e6:.1f}", f"{gain:.2f}"]
            half = half_row(single, counted(graph, HALF, folder)) if variant in IN_HALF else None
            yield [*row, f"{single.code / 1e3:.0f}"], [network, variant, *half] if half else None


def half_row(single: Counted, half: Counted) -> list[str]:
    """Difference from ONNX Runtime, instructions and bytes, the latter two beside float32's."""
    row = [f"{half.difference:.1e}", f"{half.instructions / 1e6:.1f}", f"{single.instructions / half.instructions:.2f}"]
    return [*row, f"{half.nbytes / 1e6:.2f}", f"{half.nbytes / single.nbytes:.0%}"]


def accuracy_rows(count: int) -> Iterator[list[str]]:
    """A row per trained network: what float32 and half precision answer for so many labelled pictures."""
    with tempfile.TemporaryDirectory() as folder:
        for label, graph in trained():
            artifact = build(graph, Path(folder) / "artifact", target=HALF, overwrite=True, keep_model=False)
            found = answers(graph, artifact.path, count)
            row = [label, *(f"{share:.1%}" for share in found.accuracies), f"{found.changed} of {len(found.labels)}"]
            yield [*row, f"{found.probability:.4f}", f"{found.difference:.1e}"]


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Markdown; columns after the first are right-aligned where they are numbers."""
    rule = [":--" if i < 2 else "--:" for i in range(len(heads))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, rule, *rows]) + "\n"


LOOPS = """\
## Inner loops (modelled)

From the objects that `--target arm64-linux` gives, disassembled, through llvm-mca's models of Neoverse N1 (the same
pipelines as Cortex-A76) and of Cortex-A55. A cycle is the model's: every load hits the first-level cache. The peak is
two 128-bit multiply-adds a cycle on Neoverse N1 and one on Cortex-A55 (Arm's optimisation guides). Spills are vectors
that the loop moves to or from the stack.

In each kernel this is the loop where multiply-adds are densest: of Winograd's method the products, not the transforms
of tiles. Those go through a buffer of lines where a tile has more points than registers, down its columns and then
along its rows, so that what becomes points keeps to registers; on the way out a tenth of the instructions are spills
where a row takes four vectors (56x56). Blocks of one channel load a vector for each multiply-add, which no tile can
hide. LLVM's model of Cortex-A55 would start two multiply-adds a cycle; where it does, the peak is what counts.

The code is arranged for Cortex-A55, which takes instructions in order (LLVM unrolls loops four times and loads operands
between multiply-adds), with the instructions of ARMv8.0 alone; Neoverse N1 loses nothing by that. Three things follow:
tiles fill 24 of 32 registers, because operands are loaded ahead; weights are loaded as vectors, of which a multiply-add
takes one lane; a step of a sparse product finds out where the next one reads.

Depthwise layers over planes of up to 4 KB are computed from top to bottom, one line of pixels after the other, two
vectors of columns at a time: only the sums of the rows that the line belongs to are in flight, each pixel is loaded
once, and the next line while this one is multiplied. With stride 2 or 25 taps LLVM would load many lines ahead and
run out of registers; a prefetch, across which it moves no load, holds it back. Two outputs of a row of 14, and of
stride 2 what the loop does to sort out odd and even columns, keep them from the peak; multiply-adds of half a vector
are not counted.

"""
NETWORK = """
## Whole networks (counted and compared)

Executed instructions of one run under qemu-user, and the largest relative difference from ONNX Runtime on the same
graph. Instructions are counted, not timed: they say what zeros save the processor, not how long it takes. Random
weights, 224x224 pictures, one thread.

"""


HALF_LOOPS = """
## Half precision: inner loops (modelled)

The same layers with `--precision half`: eight numbers a vector, `fmla .8h`. Both processors start as many of them a
cycle as of float32's four, so that the peak is twice as many multiply-adds.

"""
HALF_NETWORKS = """
## Half precision: whole networks (counted and compared)

The same runs with `--precision half`. Bytes are those of weights and code. Random weights add up to more than a trained
network's, whose answers are below: [what to expect](arm.md#what-half-precision-costs).

"""
ACCURACY = """
## Half precision: accuracy of a trained network

The bundled network, the one of half its size that was trained on for an epoch, and one with nine tenths of its weights
zero (mended in closed form on 320 of the pictures, without their labels). Labelled test pictures, classified by ONNX
Runtime in float32 and by the artifact in half precision under qemu-user. `make bench-arm ACCURACY=1000`: this alone.

"""


def accuracy_section(count: int) -> str:
    """The table of the trained networks, for so many pictures."""
    heads = ["network", "float32", "half", "other class", "largest difference of a probability", "difference of logits"]
    return ACCURACY + table(heads, list(accuracy_rows(count)))


def loops_section(dtype: str = "float32") -> str:
    """The table of inner loops in one precision."""
    heads = ["layer", "schedule", "fmla", "instructions", "spills"]
    heads += [f"{cpu} {what}" for cpu in PEAK for what in ("cycles/fmla", "of peak")]
    return table(heads, list(loop_rows(dtype)))


def networks_section(chosen: set[str]) -> str:
    """The tables of whole networks, each row printed when it is there."""
    single, half = [], []
    for row, beside in network_rows(chosen):
        print(" | ".join(row), *([] if beside is None else [f"\n  half: {' | '.join(beside)}"]), flush=True)
        single.append(row)
        half += [] if beside is None else [beside]
    heads = ["network", "variant", "difference", "million instructions"]
    halves = [*heads, "float32 over it", "MB", "of float32's"]
    return NETWORK + table([*heads, "dense over it", "code kB"], single) + HALF_NETWORKS + table(halves, half)


def main() -> None:
    """Print the tables, and write the page where all was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="")
    parser.add_argument("--loops", action="store_true")
    parser.add_argument("--accuracy", type=int)
    options = parser.parse_args()
    chosen = {name for name in options.models.split(",") if name}
    if tool("llvm-mca") is None or tool("llvm-objdump") is None:
        raise SystemExit("llvm-mca and llvm-objdump of LLVM 17 or newer are needed (Debian: apt-get install llvm-19)")
    if shutil.which("qemu-aarch64") is None and not options.loops:
        raise SystemExit("qemu-aarch64 is needed for the networks (Debian: apt-get install qemu-user)")
    if options.accuracy:
        print(accuracy_section(options.accuracy))
        return
    page = "# ARM, without a board\n\n`make bench-arm` writes this page.\n\n" + LOOPS + loops_section()
    loops = HALF_LOOPS + loops_section("float16")
    print(page + loops)
    if options.loops:
        return
    page += networks_section(chosen) + loops
    if not chosen:
        PAGE.write_text(page + accuracy_section(PICTURES))
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
