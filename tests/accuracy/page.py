"""docs/accuracy.md, from what a study found."""
from __future__ import annotations
from collections.abc import Mapping
from tests.runs import Facts, Task
def write_page(found: Mapping[Task, Facts]) -> None:
    print(len(found))
