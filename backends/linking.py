"""Shared libraries of each platform, linked by zig from objects that need libc and libm alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from backends.platforms import Platform
from backends.zig import zig
from compiler.errors import SecateurError

LIBM = frozenset(
    f"{name}{kind}"
    for name in (
        *("acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil", "copysign", "cos", "cosh"),
        *("erf", "erfc", "exp", "exp2", "expm1", "fabs", "floor", "fma", "fmax", "fmin", "fmod", "hypot", "ldexp"),
        *("log", "log10", "log1p", "log2", "nearbyint", "pow", "remainder", "rint", "round", "sin", "sinh", "sqrt"),
        *("tan", "tanh", "tgamma", "lgamma", "trunc"),
    )
    for kind in ("", "f")
)
LIBC = frozenset(
    {"bzero", "fclose", "ferror", "fgetc", "fopen", "fread", "free", "getauxval", "malloc", "calloc", "memcmp"}
    | {"memcpy", "memmove", "memset", "posix_memalign", "sched_yield", "snprintf", "sysctlbyname", "vsnprintf", "getc"}
    | {"clock_gettime"}
    # A thread's own variables: the dynamic loader's part of the C library.
    | {"__tls_get_addr", "_tlv_bootstrap"}
)


def external(undefined: Iterable[str], platform: Platform) -> dict[str, frozenset[str]]:
    """The symbols that are needed from elsewhere, by library.

    Raises SecateurError E_LINK for a symbol that neither libc nor libm has.
    """
    found: dict[str, set[str]] = {}
    for name in sorted(undefined):
        if name.startswith("pthread_"):
            library = platform.pthread
        elif name in LIBM:
            library = "libm"
        elif name in LIBC:
            library = "libc"
        else:
            raise SecateurError("E_LINK", f"the model needs {name!r}, which neither libc nor libm has")
        found.setdefault(library, set()).add(name)
    return {library: frozenset(names) for library, names in found.items()}


def link_shared(
    folder: Path,
    platform: Platform,
    file: str,
    objects: Sequence[str],
    needs: Mapping[str, Iterable[str]],
    exports: Iterable[str],
    flags: Sequence[str] = (),
) -> None:
    """Link `objects` in `folder` into the shared library `file`, which offers `exports` and nothing else.

    needs: the symbols that they need from elsewhere, by library (see `external`).
    """
    common = ["cc", "-target", platform.zig, "-s", *flags]
    if platform.shared == "dylib":
        zig(folder, *common, "-dynamiclib", f"-Wl,-install_name,@rpath/{file}", "-o", file, *objects)
        return
    (folder / "exports.map").write_text(f"{{ global: {'; '.join(sorted(exports))}; local: *; }};\n")
    common += ["-shared", f"-Wl,-soname,{file}", "-Wl,-Bsymbolic", "-Wl,--build-id=none"]
    common.append("-Wl,--version-script=exports.map")
    if platform.shared == "gnu":
        zig(folder, *common, "-o", file, *objects, "-lm", "-lpthread")
        return
    # Bionic, without a C library at hand: stand-ins of Android's; in pages of 16 KiB as Android 15 wants them.
    stand_ins = [_stand_in(folder, platform, library, names) for library, names in sorted(needs.items())]
    common += ["-nostdlib", "-Wl,-z,defs", "-Wl,-z,max-page-size=16384"]
    zig(folder, *common, "-o", file, *objects, *stand_ins)


def _stand_in(folder: Path, platform: Platform, library: str, functions: Iterable[str]) -> str:
    """A library that offers functions by name alone."""
    file = f"{library}.so"
    (folder / f"{library}-stub.c").write_text("".join(f"void {name}(void) {{}}\n" for name in sorted(functions)))
    flags = ["-shared", "-nostdlib", "-s", "-fno-builtin", "-w", f"-Wl,-soname,{file}"]
    zig(folder, "cc", "-target", platform.zig, *flags, "-o", file, f"{library}-stub.c")
    return file
