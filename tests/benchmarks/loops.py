"""Inner loops of compiled objects: found in the disassembly, and put through llvm-mca's models of processors.

llvm-mca simulates the pipelines of a processor from LLVM's scheduling model of it. It assumes that every load hits the
first-level cache and that every branch is predicted: what it says is a bound by instructions, not a measurement.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Whole-vector (128-bit) multiply-adds that start in a cycle, by LLVM's name of the processor (Arm's software
#: optimisation guides: two 128-bit pipes on Neoverse N1 and Cortex-A76, two 64-bit pipes on Cortex-A55).
PEAK = {"neoverse-n1": 2.0, "cortex-a55": 1.0}
_ITERATIONS = 200


@dataclass(frozen=True)
class Loop:
    """An innermost loop: its instructions in order, the backward branch last."""

    symbol: str
    instructions: tuple[str, ...]

    @property
    def fmla(self) -> int:
        """Whole-vector multiply-adds of one iteration."""
        return sum(bool(re.match(r"fml[as]\s+v\d+\.(4s|8h)", i)) for i in self.instructions)

    @property
    def spills(self) -> int:
        """Vectors that are loaded from the stack or stored there."""
        return sum(bool(re.match(r"(ldr|str|ldp|stp|ldur|stur)\s+[qd]\d+.*\[sp\b", i)) for i in self.instructions)


def tool(name: str) -> str | None:
    """An LLVM tool that knows Neoverse N1's pipelines (17 or newer); Debian's have the version in their names."""
    found = [shutil.which(f"{name}-{version}") for version in range(30, 16, -1)]
    return next((path for path in found if path is not None), None)


def disassemble(code: bytes, features: str = "+all") -> dict[str, list[tuple[int, str]]]:
    """Address and text of each instruction, by function; of instructions that take other features, `<unknown>`."""
    objdump = tool("llvm-objdump")
    assert objdump is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "code.o"
        path.write_bytes(code)
        command = [objdump, "-d", "--no-show-raw-insn", f"--mattr={features}", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[tuple[int, str]]] = {}
    body: list[tuple[int, str]] = []
    for line in text.splitlines():
        if head := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            body = found.setdefault(head[1], [])
        elif instruction := re.match(r"\s*([0-9a-f]+):\s+(\S.*)$", line):
            body.append((int(instruction[1], 16), instruction[2].partition("//")[0].replace("\t", " ").strip()))
    return found


def innermost_loops(code: bytes) -> Iterator[Loop]:
    """Loops without another loop inside."""
    for symbol, body in disassemble(code).items():
        place = {address: index for index, (address, _) in enumerate(body)}
        spans = []
        for index, (_, text) in enumerate(body):
            target = re.match(r"(?:b\.\w+|b|cbn?z \w+,|tbn?z \w+, #\S+,) (?:0x)?([0-9a-f]+)\b", text)
            start = place.get(int(target[1], 16)) if target else None
            if start is not None and start <= index:
                spans.append((start, index))
        for start, end in spans:
            if not any((s, e) != (start, end) and start <= s and e <= end for s, e in spans):
                yield Loop(symbol, tuple(text for _, text in body[start : end + 1]))


def cycles(loop: Loop, cpu: str) -> float:
    """Cycles of one iteration by llvm-mca's model of `cpu`, where no more multiply-adds start than at the peak."""
    mca = tool("llvm-mca")
    assert mca is not None
    lines = [re.sub(r"(0x)?[0-9a-f]+ <.*>$", ".Lstart", text) for text in loop.instructions]
    source = ".Lstart:\n" + "\n".join(lines) + "\n"
    command = [mca, "-mtriple=aarch64-linux-gnu", f"-mcpu={cpu}", f"-iterations={_ITERATIONS}", "-"]
    text = subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout
    total = re.search(r"Total Cycles:\s+(\d+)", text)
    assert total is not None, text
    return max(int(total[1]) / _ITERATIONS, loop.fmla / PEAK[cpu])
