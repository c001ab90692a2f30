"""What was measured once and is kept: small JSON objects, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def read_kept(file: Path, kind: Callable[[Any], T]) -> dict[str, T] | None:
    """The object in a file, its values made with `kind`; None where there is none, or another thing."""
    try:
        held = json.loads(file.read_text())
        return {str(key): kind(value) for key, value in held.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def write_kept(file: Path, held: Mapping[str, object]) -> None:
    """Write an object; a cache that cannot be written is no reason to fail."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(held))
        draft.replace(file)
    except OSError:
        pass
