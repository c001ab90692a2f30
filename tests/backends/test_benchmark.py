"""Taking turns: each side's calls, in rounds, with fake sides whose calls take as long as they say."""

from __future__ import annotations

import pytest

from backends import benchmark as module
from backends.benchmark import Timed, alternate, timed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(module.time, "sleep", sleep)
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    return now


def side(clock: list[float], name: str, seconds: float, seen: list[str]) -> Timed:
    def call() -> None:
        seen.append(name)
        clock[0] += seconds

    return timed(call)


def test_sides_take_turns(clock: list[float]) -> None:
    seen: list[str] = []
    sides = [side(clock, name, seconds, seen) for name, seconds in (("a", 0.01), ("b", 0.03), ("c", 0.2))]
    timings = alternate(sides, seconds=0, rounds=4)
    assert "".join(seen) == "aaabbbccc" + 4 * ("aaaaaa" + "bbbb" + "c")  # each turn of short calls begins with one more
    assert [t.calls for t in timings] == [4 * 5, 4 * 3, 4]
    assert [t.median for t in timings] == pytest.approx([0.01, 0.03, 0.2]) and timings[0].spread == pytest.approx(0)


def test_it_goes_on_for_the_seconds_given(clock: list[float]) -> None:
    (timing,) = alternate([side(clock, "a", 0.08, [])], seconds=1.8, rounds=2)
    assert timing.calls == 10  # a round takes a pause and two calls, 0.18 s


def test_the_median_is_of_calls_that_count(clock: list[float]) -> None:
    """A turn's first call, which finds the caches cold, is left out."""
    calls = iter([9.0, 0.02, 0.02, *(x for _ in range(2) for x in (5.0, 0.02, 0.02, 0.04, 0.02, 0.02))])

    def call() -> None:
        clock[0] += next(calls)

    (timing,) = alternate([timed(call)], seconds=0, rounds=2)
    assert timing.median == pytest.approx(0.02) and timing.calls == 10 and timing.least == pytest.approx(0.02)
