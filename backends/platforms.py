"""Where C libraries of compiled models go: what zig calls a platform, and what can be linked for it.

Android: zig carries no headers of bionic; the C code is compiled with musl's, whose types of pthreads have the sizes
that bionic's have on 64-bit machines (40 bytes a mutex, 48 a condition), and is linked with stand-ins of libc.so and
libm.so that name nothing but the symbols needed. iOS: zig carries Darwin's headers but no libraries, so that static
libraries alone are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backends.target import Target
from backends.zig import headers
from compiler.errors import SecateurError


@dataclass(frozen=True)
class Platform:
    """One system that objects are made for.

    folder: where its files go in the artifact, with a slash, or nothing. triple: for LLVM. zig: for zig. darwin: Mach-O
    archives. shared: how a shared library is linked. program: zig's name of the system that a static program is linked
    for, if one is. pthread: the library that the threads' functions are in.
    """

    folder: str
    triple: str
    zig: str
    shared: Literal["gnu", "bionic", "dylib"] | None
    program: str | None = None
    darwin: bool = False
    flags: tuple[str, ...] = ()
    pthread: str = "libc"


def platforms(target: Target) -> tuple[Platform, ...]:
    """The systems that a target's artifact serves; SecateurError E_TARGET for one that no C library is made for."""
    triple = target.triple
    arch = triple.partition("-")[0]
    if triple in ("aarch64-linux-gnu", "x86_64-linux-gnu"):
        program = f"{arch}-linux-musl"
        return (Platform("", triple, f"{triple}.2.17", "gnu", program, pthread="libpthread"),)
    if triple.startswith("aarch64-linux-android"):
        musl = "aarch64-linux-musl"
        return (Platform("", triple, musl, "bionic", musl, flags=("-DSECATEUR_THREAD_KEY",)),)
    if triple.startswith("arm64-apple-macosx"):
        version = triple.removeprefix("arm64-apple-macosx")
        darwin = ("-isystem", str(headers("any-darwin-any")))
        return (
            Platform("", triple, f"aarch64-macos.{version}", "dylib", darwin=True),
            Platform("ios/", "arm64-apple-ios13.0", "aarch64-ios.13.0", None, darwin=True, flags=darwin),
            Platform(
                "ios-simulator/",
                "arm64-apple-ios14.0-simulator",
                "aarch64-ios.14.0-simulator",
                None,
                darwin=True,
                flags=darwin,
            ),
        )
    raise SecateurError(
        "E_TARGET",
        f"no C library can be made for target {target.name!r} ({triple})",
        hint="use --target arm64-linux, arm64-android, arm64-apple, or x86-64-v3 or x86-64-v4 with --package c",
    )
