"""The harness of the torchvision coverage, on tasks that need no torchvision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.pages import COVERAGE
from tests.runs import Limits, Record, Task, run_all, run_task

LIMITS = Limits(seconds=20, gigabytes=4)

FAKE = """
import json, os, signal, time

def tell(**facts):
    print(json.dumps(facts), flush=True)

def main(name):
    if name == "fine":
        tell(a=1)
        print("noise, not JSON", 3, sep="\\n")
        tell(b=[2], c="three")
    elif name == "raises":
        tell(step="first")
        raise ValueError("no such thing")
    elif name == "hangs":
        while True:
            pass
    elif name == "waits":
        time.sleep(60)
    elif name == "greedy":
        bytearray(8 << 30)
    elif name == "killed":
        os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module `fake_task`, which each new process finds."""
    (tmp_path / "fake_task.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fine", {"a": 1, "b": [2], "c": "three"}),
        ("raises", {"step": "first", "error": "ValueError: no such thing"}),
        ("greedy", {"error": "memory limit: MemoryError"}),
        ("killed", {"error": "ended by SIGSEGV"}),
    ],
)
def test_what_a_process_prints_and_how_it_ends(name: str, expected: dict) -> None:
    facts = run_task(Task("fake_task", name), LIMITS)
    assert facts.pop("seconds") < 200
    assert facts == expected


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(("name", "limit"), [("hangs", 1), ("waits", 0.1)])
def test_time_limits(name: str, limit: float) -> None:
    facts = run_task(Task("fake_task", name), Limits(limit, 4))
    assert facts["error"] == f"time limit of {limit:g} s"
    assert facts["seconds"] < 30


def test_a_run_goes_on_where_it_stopped(fakes: Path) -> None:
    tasks = [Task("fake_task", name) for name in ("fine", "raises")]
    path = fakes / "record.jsonl"
    done: list[str] = []
    run_all(tasks[:1], Record(path), lambda task: LIMITS, told=lambda task, facts: done.append(task.name))
    path.write_text(path.read_text() + '{"task": {"module": "fake')  # cut off while it was written
    run_all(tasks, Record(path), lambda task: LIMITS, told=lambda task, facts: done.append(task.name))
    assert done == ["fine", "raises"]
    changed = Task("fake_task", "fine", state="other sources")
    run_all([changed], Record(path), lambda task: LIMITS, told=lambda task, facts: done.append(task.name))
    assert done == ["fine", "raises", "fine"]
    assert set(Record(path).found) == {*tasks, changed}


def test_sections_of_the_page_do_not_touch_each_other(tmp_path: Path) -> None:
    page = replace(COVERAGE, path=tmp_path / "docs" / "coverage.md")
    page.write("torchvision", "a\n\n### b\n\nc\n")
    page.write("Zoo", "d\n")
    page.write("torchvision", "e\n")
    assert page.path.read_text() == "# Coverage\n\n## Zoo\n\nd\n\n## torchvision\n\ne\n"
