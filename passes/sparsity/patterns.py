"""Where zeros may stand: anywhere, N of M, or in blocks; and how each is written.

Weights are seen as [outputs, inputs, taps]: the output channels, the input channels, and the positions of a
convolution's kernel (one for matrices).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from compiler.ir import SecateurError


@dataclass(frozen=True)
class Blocks:
    """Blocks of `outputs` x `inputs` at one tap are zero or not as one; 1x1 is unstructured.

    Blocks are counted from channel 0 of each group of a convolution; the last ones are smaller where the channels are
    no multiple.
    """

    outputs: int = 1
    inputs: int = 1

    @property
    def unstructured(self) -> bool:
        """True where every weight stands for itself."""
        return self.outputs == self.inputs == 1

    def __str__(self) -> str:
        return "unstructured" if self.unstructured else f"{self.outputs}x{self.inputs}"


@dataclass(frozen=True)
class NM:
    """At most `n` nonzeros in each `m` consecutive inputs (or outputs) of one output (input) at one tap.

    Runs are counted from channel 0 of each group of a convolution; the last one is shorter where the channels are no
    multiple of m, and keeps at most n too.
    """

    n: int
    m: int
    along: str = "in"

    @property
    def sparsity(self) -> float:
        """The share of zeros that the pattern asks for."""
        return 1 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" + ("@out" if self.along == "out" else "")


Pattern = Blocks | NM

_HINT = "write unstructured, N:M (2:4, along inputs; 2:4@out, along outputs) or RxC (4x1: blocks of 4 output channels)"


def parse_pattern(text: str | Pattern) -> Pattern:
    """The pattern of a text: `unstructured`, `N:M`, `N:M@in`, `N:M@out` or `RxC`. E_SPARSITY_PATTERN if it is none."""
    if isinstance(text, Blocks | NM):
        return text
    if text == "unstructured":
        return Blocks()
    if found := re.fullmatch(r"(\d+):(\d+)(?:@(in|out))?", text):
        n, m = int(found[1]), int(found[2])
        if n < 1:
            raise _wrong(text, "would leave nothing", "N of N:M is at least 1")
        if n >= m:
            raise _wrong(text, "leaves every weight", "N of N:M is less than M, as in 2:4")
        return NM(n, m, found[3] or "in")
    if found := re.fullmatch(r"(\d+)x(\d+)", text):
        outputs, inputs = int(found[1]), int(found[2])
        if outputs < 1 or inputs < 1:
            raise _wrong(text, "has blocks of no weights", "R and C of RxC are at least 1, as in 4x1")
        return Blocks(outputs, inputs)
    raise _wrong(text, "is no pattern", _HINT)


def _wrong(text: str, problem: str, hint: str) -> SecateurError:
    return SecateurError("E_SPARSITY_PATTERN", f"{text!r} {problem}", where="sparsify(pattern=…)", hint=hint)
