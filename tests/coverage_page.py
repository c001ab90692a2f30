"""docs/coverage.md: a page of sections, each of which is written by a tool of its own."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
_TITLE = "# Coverage\n"
_SECTIONS = ("Zoo", "torchvision")
"""Their order on the page."""


def write_section(title: str, text: str, page: Path = PAGE) -> None:
    """Replace or add the section called `title`; the other sections stay."""
    written = page.read_text(encoding="utf-8") if page.exists() else ""
    found = {}
    for part in written.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        found[heading] = body
    found[title] = f"\n{text}"
    order = [*(s for s in _SECTIONS if s in found), *(s for s in found if s not in _SECTIONS)]
    page.parent.mkdir(exist_ok=True)
    body = "\n".join(f"## {s}\n{found[s].rstrip()}\n" for s in order)
    page.write_text(f"{_TITLE}\n{body}", encoding="utf-8")
