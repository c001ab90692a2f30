"""Numbers for people."""

from __future__ import annotations


def count(number: float) -> str:
    """1,234,567 as 1.23 M."""
    for limit, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= limit:
            return f"{number / limit:.2f}{suffix}"
    return f"{number:.4g}"


def size(number: float) -> str:
    """Bytes for people."""
    for limit, suffix in ((1e9, " GB"), (1e6, " MB"), (1e3, " kB")):
        if number >= limit:
            return f"{number / limit:.2f}{suffix}"
    return f"{number:.0f} B"
