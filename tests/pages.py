"""Pages of docs/ made of sections, each of which is written by a tool of its own, or by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Page:
    """order: of the sections that are known; others follow as they come."""

    path: Path
    title: str
    order: tuple[str, ...]

    def write(self, section: str, text: str) -> None:
        """Replace or add the section; the other sections stay."""
        written = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        found = {}
        for part in written.split("\n## ")[1:]:
            heading, _, body = part.partition("\n")
            found[heading] = body
        found[section] = f"\n{text}"
        order = [*(s for s in self.order if s in found), *(s for s in found if s not in self.order)]
        self.path.parent.mkdir(exist_ok=True)
        body = "\n".join(f"## {s}\n{found[s].rstrip()}\n" for s in order)
        self.path.write_text(f"# {self.title}\n\n{body}", encoding="utf-8")


COVERAGE = Page(_DOCS / "coverage.md", "Coverage", ("Zoo", "torchvision"))
PERFORMANCE = Page(
    _DOCS / "performance.md",
    "Performance",
    (
        "How it was measured",
        "Where it must land",
        "Dense",
        "Sparse",
        "Beside DeepSparse",
        "Where the time goes",
        "Compiling, size, memory",
    ),
)
WEB = Page(
    _DOCS / "web.md",
    "On the web",
    (
        "Compile",
        "Run it",
        "With a bundler",
        "Workers and memory",
        "Threads",
        "Security",
        "A page that shows it",
        "Measuring on the device",
        "What can go wrong",
        "What was measured",
        "What is missing",
    ),
)
