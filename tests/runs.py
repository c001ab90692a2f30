"""One process per task, with a time and a memory limit: a crash or a hang costs one row of a table, not the run.

A task is a module and a name; the module's `main(name)` prints what it finds out as JSON objects, one a line. Finished
tasks are kept in a file of JSON lines, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import queue
import resource
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

Facts = dict[str, Any]

_ROOT = Path(__file__).parents[1]
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Limits:
    """seconds: of processor time, so that other load on the machine does not count; a process that only waits may
    take ten times as long by the clock. gigabytes: of memory that a process may ask for."""

    seconds: float
    gigabytes: float


@dataclass(frozen=True)
class Task:
    """module: what is run. name: on what. state: a digest of everything that the outcome depends on."""

    module: str
    name: str
    state: str = ""


@dataclass
class Record:
    """The finished tasks, in a file that grows by a line for each."""

    path: Path
    found: dict[Task, Facts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                item = _object(line)
                if item is not None:  # a line that was cut off is a task that is done again
                    self.found[Task(**item["task"])] = item["facts"]

    def add(self, task: Task, facts: Facts) -> None:
        self.found[task] = facts
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:  # a line of its own, even after one that was cut off
            file.write("\n" + json.dumps({"task": vars(task), "facts": facts}) + "\n")


def digest(versions: str, sources: Iterable[str]) -> str:
    """Changes with versions and with the Python files under these paths."""
    found = hashlib.sha256(versions.encode())
    for source in sources:
        path = _ROOT / source
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(file.read_bytes())
    return found.hexdigest()[:16]


def preload(modules: Iterable[str]) -> None:
    """Import these once, before the first task: each process then starts as a copy of one that has them."""
    _CONTEXT.set_forkserver_preload(list(modules))


def run_task(task: Task, limits: Limits, core: int | None = None) -> Facts:
    """What the process printed, merged; `error` says why it ended early, `seconds` how long it took."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        output, errors = Path(folder) / "output", Path(folder) / "errors"
        process = _CONTEXT.Process(target=_child, args=(task, limits, core, str(output), str(errors)))
        process.start()
        process.join(10 * limits.seconds)
        expired = process.is_alive()
        if expired:
            process.kill()
            process.join()
        facts: Facts = {}
        for line in _lines(output):
            facts |= _object(line) or {}
        code = process.exitcode or 0
        if expired or code == -signal.SIGXCPU:
            facts["error"] = f"time limit of {limits.seconds:g} s"
        elif code:
            facts["error"] = _ending(code, _lines(errors))
    return facts | {"seconds": round(time.monotonic() - start, 1)}


def _child(task: Task, limits: Limits, core: int | None, output: str, errors: str) -> None:
    """The new process: confine it, and run the task with its output in files."""
    for stream, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    size, seconds = int(limits.gigabytes * 2**30), math.ceil(limits.seconds)
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    if core is not None:
        os.sched_setaffinity(0, {core})
    warnings.simplefilter("ignore")
    import_module(task.module).main(task.name)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.exists() else []


def run_all(
    tasks: Iterable[Task],
    record: Record,
    limits: Callable[[Task], Limits],
    *,
    workers: int = 2,
    told: Callable[[Task, Facts], None] = lambda task, facts: None,
) -> None:
    """Run each task that the record lacks, `workers` at a time, each worker on a core of its own."""
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    for task in tasks:
        if task not in record.found:
            waiting.put(task)
    lock = threading.Lock()

    def work(core: int) -> None:
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            facts = run_task(task, limits(task), core)
            with lock:
                record.add(task, facts)
                told(task, facts)

    threads = [threading.Thread(target=work, args=(core,)) for core in _cores(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _cores(workers: int) -> Sequence[int]:
    available = sorted(os.sched_getaffinity(0))
    return [available[i % len(available)] for i in range(workers)]


def _object(line: str) -> Facts | None:
    """The JSON object in a line, or None for anything else that libraries print."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _ending(code: int, errors: Sequence[str]) -> str:
    """Why a process failed: the last line of its traceback that names an error, or the signal that ended it."""
    named = [line for line in errors if "Error" in line.partition(":")[0] and not line.startswith(" ")]
    last = (named or errors or [""])[-1].strip()[:300]
    if code < 0:
        return f"ended by {signal.Signals(-code).name}" + (f": {last}" if last else "")
    if "MemoryError" in last or "bad_alloc" in last or "DefaultCPUAllocator" in last:
        return f"memory limit: {last}"
    return last or f"exit status {code}"
