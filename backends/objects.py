"""Object files, read: which symbols they define and need, and renaming one of them.

ELF (System V ABI, 64-bit, little-endian) and Mach-O (64-bit, little-endian).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

_ELF, _MACH_O = b"\x7fELF\x02\x01", b"\xcf\xfa\xed\xfe"
_SHT_SYMTAB, _SHN_UNDEF, _STB_LOCAL = 2, 0, 0
_LC_SYMTAB, _N_STAB, _N_TYPE, _N_EXT = 2, 0xE0, 0x0E, 0x01


@dataclass(frozen=True)
class Symbols:
    """Names, as C spells them, that an object file offers to others and that it needs from others."""

    defined: frozenset[str]
    undefined: frozenset[str]


def symbols(code: bytes) -> Symbols:
    """The symbols of an object file; ValueError for a format other than the two."""
    if code.startswith(_ELF):
        return _elf_symbols(code)
    if code.startswith(_MACH_O):
        return _mach_o_symbols(code)
    raise ValueError("neither a 64-bit ELF file nor a 64-bit Mach-O file")


def needed(objects: Iterable[bytes]) -> frozenset[str]:
    """What a set of object files needs from elsewhere."""
    found = [symbols(code) for code in objects]
    return frozenset().union(*(f.undefined for f in found)) - frozenset().union(*(f.defined for f in found))


def renamed(code: bytes, old: str, new: str) -> bytes:
    """The object file with symbol `old` called `new`, of the same length: only the string table changes.

    The new name takes the old one's place byte by byte, wherever it stands whole.
    """
    if len(old) != len(new):
        raise ValueError(f"{old!r} and {new!r} differ in length")
    return code.replace(old.encode() + b"\0", new.encode() + b"\0")


def _name(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()


def _elf_symbols(code: bytes) -> Symbols:
    (offset,) = struct.unpack_from("<Q", code, 0x28)
    size, count = struct.unpack_from("<HH", code, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", code, offset + i * size) for i in range(count)]
    defined: set[str] = set()
    undefined: set[str] = set()
    for section in sections:
        if section[1] != _SHT_SYMTAB:
            continue
        names = code[sections[section[6]][4] :]
        for at in range(section[4], section[4] + section[5], 24):
            name, info, _, index = struct.unpack_from("<IBBH", code, at)
            if name and info >> 4 != _STB_LOCAL:
                (undefined if index == _SHN_UNDEF else defined).add(_name(names, name))
    return Symbols(frozenset(defined), frozenset(undefined))


def _mach_o_symbols(code: bytes) -> Symbols:
    (commands,) = struct.unpack_from("<I", code, 16)
    defined: set[str] = set()
    undefined: set[str] = set()
    at = 32
    for _ in range(commands):
        kind, size = struct.unpack_from("<II", code, at)
        if kind == _LC_SYMTAB:
            first, count, strings, _ = struct.unpack_from("<IIII", code, at + 8)
            for entry in range(first, first + 16 * count, 16):
                name, flags = struct.unpack_from("<IB", code, entry)
                if flags & _N_EXT and not flags & _N_STAB:
                    (defined if flags & _N_TYPE else undefined).add(_name(code, strings + name).removeprefix("_"))
        at += size
    return Symbols(frozenset(defined), frozenset(undefined))
