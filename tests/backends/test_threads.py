"""Threads: every kernel with work to share shares it, every task of a loop runs once, and none decides a result."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import tvm
from tvm import tirx

from backends import build, load
from backends.aot import POOL, RUNTIME, Linker, _wait
from backends.benchmark import random_inputs
from backends.lowering import lower
from backends.schedules.codegen import object_code
from backends.schedules.emit import Emitter
from backends.target import target
from compiler.frontends.onnx import load_onnx
from tests.models import light_model

#: Multiply-accumulates from which a second thread pays for waking.
SHARED_FROM = 200_000

STRESS = """
#include <stdatomic.h>
#include "parallel.h"

extern int (*__TVMBackendParallelLaunch)(int (*)(int, void *, void *), void *, int);
typedef struct { void *sync; int32_t tasks; } environment;

static int count(int task, void *environment_, void *data) {
  int32_t tasks = ((environment *)environment_)->tasks;
  if (task < 0 || task >= tasks) return -1;
  atomic_fetch_add(&((atomic_int *)data)[task], 1);
  return 0;
}

/* Runs of a few loops each, of different sizes, on changing data; the number of tasks that did not run just once. */
int32_t stress(int32_t threads, int32_t runs) {
  enum { MOST = 97, LOOPS = 8 };
  static atomic_int hits[LOOPS][MOST];
  secateur_pool *pool = secateur_pool_create(threads);
  int32_t wrong = 0;
  for (int32_t run = 0; run < runs; ++run) {
    for (int i = 0; i < LOOPS * MOST; ++i) atomic_store(&hits[0][i], 0);
    secateur_pool_enter(pool);
    for (int i = 0; i < LOOPS; ++i)
      wrong += __TVMBackendParallelLaunch(count, hits[i], 1 + (run * 31 + i * 7) % MOST) != 0;
    secateur_pool_enter(0);
    for (int i = 0; i < LOOPS; ++i)
      for (int task = 0; task < MOST; ++task)
        wrong += atomic_load(&hits[i][task]) != (task < 1 + (run * 31 + i * 7) % MOST);
  }
  secateur_pool_destroy(pool);
  return wrong;
}
"""


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("pool")
    (folder / "stress.c").write_text(STRESS)
    return _library(folder, "stress.c")


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_every_task_runs_once(stress: ctypes.CDLL, threads: int) -> None:
    assert stress.stress(threads, 2000) == 0


def test_a_pool_of_too_many_threads_is_refused(stress: ctypes.CDLL) -> None:
    stress.secateur_pool_create.restype = ctypes.c_void_p
    assert stress.secateur_pool_create(1 << 20) is None
    assert stress.secateur_pool_create(0) is None


@pytest.mark.parametrize("name", ["shufflenet", "squeezenet"])
def test_every_large_kernel_is_shared(name: str) -> None:
    program = lower(load_onnx(light_model(name)), target("native"))
    large = [step for step in program.steps if step.macs >= SHARED_FROM]
    assert len(large) > 20
    assert [s.symbol for s in large if not _parallel_loops(program.kernels[s.symbol])] == []


def test_results_do_not_depend_on_threads(tmp_path: Path) -> None:
    build(load_onnx(light_model("squeezenet")), tmp_path / "a")
    with load(tmp_path / "a") as one, load(tmp_path / "a", threads=2) as two, load(tmp_path / "a", threads=3) as three:
        feeds = random_inputs(one)
        expected = one.run(feeds)
        for _ in range(5):
            for executable in (two, three):
                for key, value in executable.run(feeds).items():
                    np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_parallel_loop_visits_every_index_once(threads: int, tmp_path: Path) -> None:
    extents = (2, 9, 63, 64, 65, 1000)
    library = _link({f"visit{extent}": _visitor(f"visit{extent}", extent) for extent in extents}, tmp_path)
    library.secateur_pool_create.restype = library.secateur_pool_enter.restype = ctypes.c_void_p
    pool = ctypes.c_void_p(library.secateur_pool_create(threads))
    library.secateur_pool_enter(pool)
    for extent in extents:
        visits = np.zeros(extent, np.float32)
        assert library[f"visit{extent}"](ctypes.c_void_p(visits.ctypes.data)) == 0
        np.testing.assert_array_equal(visits, 1)
    library.secateur_pool_enter(None)
    library.secateur_pool_destroy(pool)


def _visitor(symbol: str, extent: int) -> tirx.PrimFunc:
    e = Emitter(symbol, parallel=True)
    y = e.param("y", extent)
    with e.loop(extent, parallel=True) as i:
        y.store(i, y.load(i) + tirx.FloatImm("float32", 1.0))
    func = e.finish()
    assert len(_parallel_loops(func)) == 1
    return func


def _link(kernels: dict[str, tirx.PrimFunc], folder: Path) -> ctypes.CDLL:
    """A library of kernels and the thread pool."""
    (folder / "kernels.o").write_bytes(object_code(tvm.IRModule(kernels), target("native")))
    return _library(folder, "kernels.o")


def _library(folder: Path, *sources: str) -> ctypes.CDLL:
    for name in POOL:
        (folder / name).write_bytes((RUNTIME / name).read_bytes())
    linker = Linker(target("native"))
    _wait(linker._start(folder, ["-shared", "-o", "test.so", "parallel.c", *sources, "-lm", "-lpthread"]))
    return ctypes.CDLL(str(folder / "test.so"))


def _parallel_loops(func: tirx.PrimFunc) -> list[tirx.For]:
    loops, waiting = [], [func.body]
    while waiting:
        stmt = waiting.pop()
        if isinstance(stmt, tirx.For) and stmt.kind == tirx.ForKind.PARALLEL:
            loops.append(stmt)
        children = (getattr(stmt, field, None) for field in ("body", "then_case", "else_case"))
        waiting += [child for child in children if child is not None]
        waiting += list(getattr(stmt, "seq", ()))
    return loops
