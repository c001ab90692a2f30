"""`python -m tests.accuracy.study --data DIR [--other DIR]` runs the study and writes docs/accuracy.md.

Trains what is not trained yet, prunes with every method, trains each result for one epoch. All of it is kept in
build/accuracy, so that an interrupted study goes on; `--so-far` writes the page of what an unfinished one has found.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Mapping
from importlib import util
from pathlib import Path

from tests.accuracy.page import write_page
from tests.runs import Facts, Limits, Record, Task, preload, run_all

ROOT = Path(__file__).parents[2]
TRAINING, OURS, PEER, TUNING = (f"tests.accuracy.{name}" for name in ("training", "ours", "peer", "tuning"))
SEEDS = (0, 1, 2)
LIMITS = Limits(seconds=1800, gigabytes=8)
_SOURCES = {
    TRAINING: ("networks", "training"),
    OURS: ("networks", "training", "ours"),
    PEER: ("networks", "training", "peer"),
    TUNING: ("networks", "training", "ours", "peer", "tuning"),
}
_PASSES = ("calibration", "importance", "reconstruction", "structured")


def state(module: str) -> str:
    """A digest of the sources that a task's outcome depends on."""
    files = [ROOT / "tests" / "accuracy" / f"{name}.py" for name in _SOURCES[module]]
    if module in (OURS, TUNING):
        files += [file for name in _PASSES for file in sorted((ROOT / "passes" / name).glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def stages() -> list[list[Task]]:
    """What to run, each part when the one before it is done: training; seed by seed pruning, then tuning at a ratio
    of 2; tuning at the other ratios."""
    from tests.accuracy import ours, peer
    from tests.accuracy.networks import NETWORKS

    states = {module: state(module) for module in _SOURCES}

    def task(module: str, *words: object) -> Task:
        return Task(
            module, "/".join(f"{word:g}" if isinstance(word, float) else str(word) for word in words), states[module]
        )

    methods = [*((OURS, name) for name in ours.METHODS), *((PEER, name) for name in peer.METHODS)]
    parts = [[task(TRAINING, network, seed) for seed in SEEDS for network in NETWORKS]]
    later = []
    for seed in SEEDS:
        parts.append([task(module, network, seed, name) for network in NETWORKS for module, name in methods])
        tuning = [
            (factor, task(TUNING, network, seed, name, factor))
            for factor in ours.RATIOS
            for network in NETWORKS
            for _, name in methods
        ]
        parts.append([t for factor, t in tuning if factor == 2])
        later.append([t for factor, t in tuning if factor != 2])
    return parts + later


def main() -> None:
    """Parse the arguments, run what is missing, write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy.study", description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder of idx files, gzipped or not, of github.com/zalandoresearch/fashion-mnist",
    )
    parser.add_argument("--other", type=Path, help="folder of MNIST's test idx files; without it white noise is used")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time, one core each")
    parser.add_argument("--so-far", action="store_true", help="run nothing, write what was found")
    arguments = parser.parse_args()
    if util.find_spec("torch_pruning") is None:
        sys.exit("torch_pruning cannot be imported: `make accuracy` installs what this needs")
    for folder in filter(None, (arguments.data, arguments.other)):
        if not list(folder.glob("t10k-images*")):
            sys.exit(f"error: no t10k-images*-idx3-ubyte[.gz] in {folder}")
    from tests.accuracy import training

    os.environ[training.DATA] = str(arguments.data)
    if arguments.other:
        os.environ[training.OTHER] = str(arguments.other)
    os.environ["OMP_NUM_THREADS"] = "1"
    record = Record(ROOT / "build" / "accuracy" / "study.jsonl")
    parts = stages()
    start = time.monotonic()

    def told(task: Task, facts: Facts) -> None:
        what = facts.get("error") or facts.get("accuracy") or {k: v["accuracy"] for k, v in facts["found"].items()}
        print(f"{time.monotonic() - start:6.0f} s  {task.module.rsplit('.', 1)[-1]} {task.name}: {what}", flush=True)

    if not arguments.so_far:
        preload(_SOURCES)
        for part in parts:
            ready = [task for task in part if task.module != TUNING or _pruned(task.name)]
            run_all(ready, record, lambda task: LIMITS, workers=arguments.workers, told=told)
    found = {task: record.found[task] for part in parts for task in part if task in record.found}
    write_page(found, "MNIST's images" if arguments.other else "white noise", len(possible(parts, found)))


def possible(parts: list[list[Task]], found: Mapping[Task, Facts]) -> list[Task]:
    """All tasks, but for the tuning of what could not be pruned."""
    failed = {task.name for task, facts in found.items() if "error" in facts}
    return [t for part in parts for t in part if t.module != TUNING or t.name.rpartition("/")[0] not in failed]


def _pruned(name: str) -> bool:
    """True where there is a network to tune."""
    from tests.accuracy.training import pruned_path

    method, _, factor = name.rpartition("/")
    path = pruned_path(method, float(factor))
    return path.with_suffix(".onnx").exists() or path.with_suffix(".pt").exists()


if __name__ == "__main__":
    main()
