"""The first rows of arrays in files, without reading the others: .npy, .npz, folders of .npy.

The formats are those of numpy.lib.format.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from compiler.ir import SecateurError

Found = dict[str, tuple[np.ndarray, int]]
"""Arrays of the first rows by name, and how many rows there are."""

_ERRORS = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


def read_arrays(path: Path, limit: int) -> Found:
    """The arrays of an .npz, of a folder of NAME.npy files, or of one .npy (without a name).

    Raises E_CALIBRATION for whatever else the path is.
    """
    if not path.exists():
        raise _unreadable(path, "it does not exist")
    if path.is_dir():
        return {file.stem: _from_npy(file, limit) for file in sorted(path.glob("*.npy"))}
    try:
        with path.open("rb") as stream:
            start = stream.read(6)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    if start.startswith(b"\x93NUMPY"):
        return {"": _from_npy(path, limit)}
    if not start.startswith(b"PK"):
        raise _unreadable(path, "it is no .npz")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith(".npy")]
            return {n.removesuffix(".npy"): _member(archive, n, path, limit) for n in names}
    except zipfile.BadZipFile as error:
        raise _unreadable(path, str(error)) from None


def _member(archive: zipfile.ZipFile, name: str, path: Path, limit: int) -> tuple[np.ndarray, int]:
    try:
        with archive.open(name) as stream:
            return _rows(stream, limit)
    except _ERRORS as error:
        raise _unreadable(path, f"{name.removesuffix('.npy')!r} is damaged, or holds no numbers ({error})") from None


def _from_npy(path: Path, limit: int) -> tuple[np.ndarray, int]:
    try:
        with path.open("rb") as stream:
            return _rows(stream, limit)
    except _ERRORS as error:
        raise _unreadable(path, f"it is damaged, or holds no numbers ({error})") from None


def _rows(stream: IO[bytes], limit: int) -> tuple[np.ndarray, int]:
    """The first rows of an array in numpy's format."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version[0]}.{version[1]} of the format")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, columns_first, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("Python objects")
    length = shape[0] if shape else 0
    rows = (length if columns_first else min(limit, length), *shape[1:]) if shape else ()
    size = math.prod(rows) * dtype.itemsize
    data = stream.read(size)
    if len(data) < size:
        raise EOFError("it ends too early")
    order = "F" if columns_first else "C"
    return np.frombuffer(data, dtype).reshape(rows, order=order)[: limit if shape else None], length  # type: ignore[call-overload]


def _unreadable(path: Path, why: str) -> SecateurError:
    return SecateurError(
        "E_CALIBRATION",
        f"the calibration data cannot be read: {why}",
        where=str(path),
        hint="give an .npz file of arrays named after the inputs, a folder of NAME.npy files, or 'none' for noise",
    )
