"""ARM without a board: inner loops in models of processors, networks under qemu-user; writes docs/arm-performance.md.

MODELS=MobileNetV1,…: a few networks; `--loops`: the inner loops alone.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tvm

from backends import build, load
from backends.artifact import Artifact
from backends.runtime.program import ProgramExecutable, runner
from backends.schedules.codegen import object_code
from backends.schedules.specs import ConvSpec
from backends.selection import choose_conv
from backends.target import target
from backends.zig import zig
from compiler import load as load_model
from compiler.driver import relative_difference
from compiler.ir import Graph
from compiler.ir.execute import execute, random_inputs
from passes import Context, Pipeline
from tests.benchmarks.loops import PEAK, Loop, cycles, innermost_loops, tool
from tests.benchmarks.models import NETWORKS
from tests.benchmarks.variants import VARIANTS

ARM = target("arm64-linux")
PAGE = Path(__file__).parents[2] / "docs" / "arm-performance.md"
BUNDLED = Path(__file__).parents[2] / "examples" / "fashion_mnist" / "fashion_cnn.onnx"
TOLERANCE = 1e-4
_FEW = 4
"""Multiply-adds of the least loop that counts as a product's inner loop."""


def pointwise(channels: int, size: int) -> ConvSpec:
    """A 1x1 convolution of as many inputs as outputs."""
    return ConvSpec(batch=1, in_channels=channels, out_channels=channels, height=size, width=size, kernel=(1, 1))


def window(channels: int, size: int, groups: int = 1, stride: int = 1) -> ConvSpec:
    """A 3x3 convolution."""
    return ConvSpec(1, channels, size, size, channels, (3, 3), (stride, stride), (1, 1, 1, 1), (1, 1), groups)


def cases() -> Iterator[tuple[str, ConvSpec, int]]:
    """What it is, the layer, and rows per block of its zeros (0: none)."""
    for channels, size in ((512, 14), (256, 28)):
        yield f"dense 1x1, {channels} channels, {size}x{size}", pointwise(channels, size), 0
        for block in (1, 2, 4):
            label = f"90 % sparse 1x1, blocks of {block}, {channels} channels, {size}x{size}"
            yield label, pointwise(channels, size), block
    yield "dense 3x3 of stride 2, 64 channels, 56x56", window(64, 56, stride=2), 0
    yield "dense 3x3, 128 channels, 28x28", window(128, 28), 0
    yield "depthwise 3x3, 512 channels, 14x14", window(512, 14, groups=512), 0


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


def loop_rows() -> Iterator[list[str]]:
    """A row per case: chosen schedule, multiply-adds, instructions, spills, and each processor's figures."""
    for label, spec, block in cases():
        chosen, loop = product_loop(spec, block)
        row = [label, chosen, str(loop.fmla), str(len(loop.instructions)), str(loop.spills)]
        for cpu, peak in PEAK.items():
            each = cycles(loop, cpu) / loop.fmla
            row += [f"{each:.2f}", f"{1 / each / peak:.0%}"]
        yield row


def networks(chosen: set[str]) -> Iterator[tuple[str, str, Graph]]:
    """Name, variant, graph: the bundled model and the benchmark's networks."""
    made = {"bundled": lambda: load_model(BUNDLED, shapes={"input": (1, 1, 28, 28)})}
    for name in ("MobileNetV1", "MobileNetV2", "ResNet-18"):
        made[name] = lambda name=name: load_model(NETWORKS[name].make())
    for name, make in made.items():
        if chosen and name not in chosen:
            continue
        graph = Pipeline("simplify").run(make(), Context())
        for variant, label in (("0", "dense"), ("half", "50 % pruned"), ("90", "90 % sparse"), ("90-4x1", "90 % 4x1")):
            yield name, label, VARIANTS[variant].run(graph, Context())


def instructions(artifact: Artifact, plugin: Path) -> int:
    """Instructions of one run: what two runs execute more than one."""
    command = runner(artifact.manifest)
    assert command
    counts = []
    for runs in (1, 2):
        words = [*command, "-plugin", str(plugin), str(artifact.path / artifact.manifest["program"])]
        words += ["-w", str(artifact.path / "weights.bin"), "-n", str(runs)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found = re.search(r"instructions (\d+)", done.stderr)
        assert found is not None, done.stderr
        counts.append(int(found[1]))
    return counts[1] - counts[0]


def network_rows(chosen: set[str]) -> Iterator[list[str]]:
    """A row per network and variant: difference from ONNX Runtime, instructions, and dense ones over them."""
    dense: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(Path(__file__).parent / "counting.c", folder)
        zig(folder, "cc", "-target", "x86_64-linux-gnu.2.17", "-O2", "-fPIC", "-shared", "counting.c", "-o", "count.so")
        for number, (network, variant, graph) in enumerate(networks(chosen)):
            artifact = build(graph, folder / str(number), target=ARM)
            data = random_inputs(graph, 1)
            with load(artifact.path) as executable:
                assert isinstance(executable, ProgramExecutable)
                difference = relative_difference(executable.run(data), execute(graph, data))
            if difference > TOLERANCE:
                raise SystemExit(f"{network}, {variant}: differs from ONNX Runtime by {difference:.1e}")
            count = instructions(artifact, folder / "count.so")
            dense.setdefault(network, count)
            code = artifact.manifest["code_bytes"] / 1e3
            gain = f"{dense[network] / count:.2f}"
            yield [network, variant, f"{difference:.1e}", f"{count / 1e6:.1f}", gain, f"{code:.0f}"]
            shutil.rmtree(artifact.path)


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
of tiles, which do spill, as windows of depthwise layers over planes of 14x14 do. Blocks of one channel load a vector
for each multiply-add, which no tile can hide. LLVM's model of Cortex-A55 would start two multiply-adds a cycle; where
it does, the peak is what counts.

The code is arranged for Cortex-A55, which takes instructions in order (LLVM unrolls loops four times and loads operands
between multiply-adds), with the instructions of ARMv8.0 alone; Neoverse N1 loses nothing by that. Three things follow:
tiles fill 24 of 32 registers, because operands are loaded ahead; weights are loaded as vectors, of which a multiply-add
takes one lane; a step of a sparse product finds out where the next one reads.

Windows of depthwise layers: a branch of its own for each vector of a row removes the spills that are left, but takes
half as long again on Cortex-A55 (14x14), which then waits at the beginning and end of each; so they stay together.

"""
NETWORK = """
## Whole networks (counted and compared)

Executed instructions of one run under qemu-user, and the largest relative difference from ONNX Runtime on the same
graph. Instructions are counted, not timed: they say what zeros save the processor, not how long it takes. Random
weights, 224x224 pictures, one thread.

"""


def main() -> None:
    """Print the tables, and write the page where all was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="")
    parser.add_argument("--loops", action="store_true")
    options = parser.parse_args()
    chosen = {name for name in options.models.split(",") if name}
    if tool("llvm-mca") is None or tool("llvm-objdump") is None:
        raise SystemExit("llvm-mca and llvm-objdump of LLVM 17 or newer are needed (Debian: apt-get install llvm-19)")
    heads = ["layer", "schedule", "fmla", "instructions", "spills"]
    heads += [f"{cpu} {what}" for cpu in PEAK for what in ("cycles/fmla", "of peak")]
    page = "# ARM, without a board\n\n`make bench-arm` writes this page.\n\n" + LOOPS + table(heads, list(loop_rows()))
    print(page)
    if options.loops:
        return
    if shutil.which("qemu-aarch64") is None:
        raise SystemExit("qemu-aarch64 is needed for the networks (Debian: apt-get install qemu-user)")
    rows = []
    for row in network_rows(chosen):
        print(" | ".join(row), flush=True)
        rows.append(row)
    heads = ["network", "variant", "difference", "million instructions", "dense over it", "code kB"]
    page += NETWORK + table(heads, rows)
    if not chosen:
        PAGE.write_text(page)
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
