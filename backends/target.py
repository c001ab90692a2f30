"""What a target is: a triple, a processor, and the few numbers that schedules are derived from.

Schedules read vector width, register count and cache sizes from here and from nowhere else, so that one
template serves AVX2, AVX-512, NEON and WASM.
"""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tvm
from tvm.target import codegen as llvm

from compiler.errors import SecateurError

if TYPE_CHECKING:
    from backends.costs import Costs


@dataclass(frozen=True)
class Target:
    """A machine that code is generated for.

    vector_bytes and vector_registers describe the widest useful vector registers (those that schedules may fill),
    l1_bytes and l2_bytes one core's data caches; triple, cpu and features go to LLVM as they are. loads_first: what
    compiles the code further loads all operands of a step before it multiplies them, so that each of them needs a
    register.
    contract: sums of products may be rounded once, where the processor has an instruction for it. package: what kind
    of artifact is made for it (see `backends.packaging`). costs: what selection goes by, instead of the numbers of this
    kind of processor; they name no code, so that equal kernels have equal symbols. compact: no layer's weights may be
    stored larger than they are, and smaller ones are worth some time. multiplies_by_lane: vectors are multiplied by one
    lane of another as fast as by a whole one, so that factors are loaded several at a time. few_in_flight: what
    compiles the code further moves loads far ahead and spills what registers then lack, so schedules keep few vectors
    in flight, also where that takes a few loads and stores more. dtype: the element type that schedules hold and
    multiply numbers in; `computing` gives another one, with the features that it takes.
    """

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    vector_bytes: int
    vector_registers: int
    l1_bytes: int
    l2_bytes: int
    threads: int = 1
    loads_first: bool = False
    contract: bool = False
    package: str = "library"
    costs: Costs | None = field(default=None, repr=False)
    compact: bool = field(default=False, repr=False)
    multiplies_by_lane: bool = field(default=False, repr=False)  # the triple tells it apart
    few_in_flight: bool = field(default=False, repr=False)  # the triple tells it apart
    dtype: str = field(default="float32", repr=False)  # the features tell it apart

    @classmethod
    def native(cls) -> Target:
        """The machine this runs on, as LLVM and the kernel describe it."""
        return _native()

    @property
    def itemsize(self) -> int:
        """Bytes of an element that schedules work on."""
        return np.dtype(self.dtype).itemsize

    def lanes(self, dtype: str | None = None) -> int:
        """Elements of `dtype`, or of the target's own, in one vector register."""
        return max(1, self.vector_bytes // np.dtype(dtype or self.dtype).itemsize)

    def computing(self, dtype: str) -> Target:
        """This target with schedules that compute in float32 or float16.

        Raises SecateurError E_PRECISION for a target without arithmetic on vectors of that type.
        """
        if dtype == self.dtype:
            return self
        if dtype == "float32":
            return replace(self, dtype=dtype, features=tuple(f for f in self.features if f != _HALF))
        if dtype != "float16" or self.package != "c" or not self._arm64:
            raise SecateurError(
                "E_PRECISION",
                f"no arithmetic in {dtype} for target '{self.name}'",
                hint="half precision is for arm64-linux, arm64-android and arm64-apple",
            )
        return replace(self, dtype=dtype, features=(*self.features, _HALF))

    @property
    def by_lane(self) -> int:
        """Elements that are loaded at once to multiply by each of them; 0: one by one."""
        return self.lanes() if self.multiplies_by_lane else 0

    @property
    def _arm64(self) -> bool:
        return self.triple.partition("-")[0] in ("aarch64", "arm64")

    @property
    def max_keeps_nan(self) -> bool:
        """Whether one instruction gives the larger numbers of two vectors, one the smaller, and NaN where one is NaN.

        On x86-64 it gives the second number then; V8 makes up for that with several instructions more.
        """
        return self._arm64

    def to_tvm(self) -> tvm.target.Target:
        """The same target in TVM's words (kind `llvm`)."""
        config: dict[str, object] = {"kind": "llvm", "mtriple": self.triple}
        if self.cpu:
            config["mcpu"] = self.cpu
        if self.features:
            config["mattr"] = list(self.features)
        if self.triple.startswith("wasm"):
            config["vector-width"] = 8 * self.vector_bytes
        if self.contract:
            config["fast-math-contract"] = True
        return tvm.target.Target(config)


PRECISIONS = {"single": "float32", "half": "float16"}
"""What users call the types of numbers that schedules compute in."""
_HALF = "+fullfp16"
"""LLVM's name of Arm's FEAT_FP16: arithmetic on eight half-precision numbers a vector."""

_REGISTRY: dict[str, Callable[[], Target]] = {}


def register_target(name: str, factory: Callable[[], Target]) -> None:
    """Make `target(name)` answer with `factory()`; a later registration of a name replaces an earlier one."""
    _REGISTRY[name] = factory


def target_names() -> list[str]:
    """All names that `target` knows, sorted."""
    return sorted(_REGISTRY)


def target(name: str) -> Target:
    """The registered target `name`.

    Raises SecateurError E_TARGET for a name that nobody registered.
    """
    factory = _REGISTRY.get(name)
    if factory is None:
        raise SecateurError("E_TARGET", f"unknown target '{name}'", hint=f"use one of: {', '.join(target_names())}")
    return factory()


def in_precision(chosen: str | Target, precision: str) -> Target:
    """A target, by name or as it is, with schedules that compute in single or half precision.

    Raises SecateurError E_OPTION_VALUE for another word, E_PRECISION for a target without half precision, E_TARGET.
    """
    found = target(chosen) if isinstance(chosen, str) else chosen
    if precision not in PRECISIONS:
        raise SecateurError("E_OPTION_VALUE", f"no precision '{precision}'", hint=f"use {' or '.join(PRECISIONS)}")
    return found if precision == "single" else found.computing(PRECISIONS[precision])


@functools.cache
def _native() -> Target:
    machine = platform.machine().lower()
    triple = f"{machine}-linux-gnu" if machine in ("x86_64", "aarch64") else llvm.llvm_get_system_triple()
    if machine in ("x86_64", "amd64"):
        cpu, features, vector_bytes, registers = _x86(triple)
    else:
        cpu = llvm.llvm_get_system_cpu()
        cpu = cpu if llvm.llvm_is_valid_cpu(cpu, triple) else "generic"
        features, vector_bytes, registers = ("+neon",), 16, 32
    return Target(
        name="native",
        triple=triple,
        cpu=cpu,
        features=features,
        vector_bytes=vector_bytes,
        vector_registers=registers,
        l1_bytes=_cache_bytes(1, 32 << 10),
        l2_bytes=_cache_bytes(2, 512 << 10),
        threads=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1),
    )


# What LLVM's name of a processor may promise and a hypervisor may hide, per level of the x86-64 psABI.
_V4 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_V3 = {"avx", "avx2", "fma", "bmi1", "bmi2", "f16c", "movbe"}


def _x86(triple: str) -> tuple[str, tuple[str, ...], int, int]:
    """(cpu, features, vector bytes, registers), never beyond what both LLVM and the kernel report."""
    flags = _cpu_flags()
    cpu = llvm.llvm_get_system_cpu()
    known = llvm.llvm_is_valid_cpu(cpu, triple)
    config = {"kind": "llvm", "mtriple": triple, "mcpu": cpu if known else "x86-64"}
    promised = set(llvm.llvm_get_cpu_features(tvm.target.Target(config)))
    if not flags:
        flags = promised
    level = 4 if flags >= (_V3 | _V4) else 3 if flags >= _V3 else 2 if "sse4_2" in flags else 1
    hidden = {feature for feature in _V3 | _V4 if feature in promised} - flags - {"bmi1"}
    if not known or hidden or level < 3:
        cpu = {4: "x86-64-v4", 3: "x86-64-v3", 2: "x86-64-v2", 1: "x86-64"}[level]
    if level == 4:
        return cpu, ("-prefer-256-bit",), 64, 32
    return cpu, (), 32 if level == 3 else 16, 16


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    for line in text.splitlines():
        if line.startswith("flags"):
            return set(line.partition(":")[2].split())
    return set()


def _cache_bytes(level: int, default: int) -> int:
    """Size of core 0's data cache at `level`; half of it where two hardware threads share it is not assumed."""
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            if int((index / "level").read_text()) != level or (index / "type").read_text().strip() == "Instruction":
                continue
            size = (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        scale = {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
        return int(size.rstrip("KM")) * scale
    return default


register_target("native", Target.native)
register_target(
    "x86-64-v3", lambda: Target("x86-64-v3", "x86_64-linux-gnu", "x86-64-v3", (), 32, 16, 32 << 10, 512 << 10)
)
register_target(
    "x86-64-v4",
    lambda: Target("x86-64-v4", "x86_64-linux-gnu", "x86-64-v4", ("-prefer-256-bit",), 64, 32, 32 << 10, 1 << 20),
)


_AFTER_V8 = ("v8.1a", "v8.2a", "crc", "lse", "rdm", "ras", "rcpc", "dotprod", "fullfp16", "aes", "sha2")
_V8_ONLY = tuple(f"-{name}" for name in _AFTER_V8)
"""What Cortex-A55 has and the first 64-bit ARM processors (ARMv8.0) lack."""


def _arm64(name: str, triple: str, l2_bytes: int, registers: int, cpu: str, *features: str) -> Target:
    """A 64-bit ARM with NEON (128-bit vectors), for a C library."""
    features = ("+neon", *features)
    found = Target(name, triple, cpu, features, 16, registers, 32 << 10, l2_bytes, package="c")
    return replace(found, multiplies_by_lane=True, few_in_flight=True)


def _any_arm64(name: str, triple: str, l2_bytes: int) -> Target:
    """Any 64-bit ARM runs the code, but its instructions stand in the order that suits Cortex-A55, which takes them in
    order; larger processors, which do not, lose nothing by that.

    LLVM then repeats loops four times and loads operands ahead, for which a quarter of the registers is left. One
    instruction that loads two vectors takes Cortex-A55 longer than two do, and Neoverse N1 as long.
    """
    return _arm64(name, triple, l2_bytes, 24, "cortex-a55", *_V8_ONLY, "+slow-paired-128")


register_target("arm64-linux", lambda: _any_arm64("arm64-linux", "aarch64-linux-gnu", 512 << 10))
register_target("arm64-android", lambda: _any_arm64("arm64-android", "aarch64-linux-android21", 256 << 10))
register_target("arm64-apple", lambda: _arm64("arm64-apple", "arm64-apple-macosx11.0", 4 << 20, 32, "generic"))
register_target(
    "wasm",
    # V8 on x86-64 keeps one of the 16 registers for itself.
    lambda: Target(
        name="wasm",
        triple="wasm32-unknown-unknown",
        cpu="generic",
        features=("+simd128",),
        vector_bytes=16,
        vector_registers=15,
        l1_bytes=32 << 10,
        l2_bytes=256 << 10,
        loads_first=True,
        package="web",
    ),
)
