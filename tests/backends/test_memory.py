"""The static memory plan: what lives at the same time never shares space."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.lowering import lower
from backends.lowering.program import Buffer, Program, Step
from backends.memory import ALIGNMENT, Interval, aligned, place, plan
from backends.target import target
from compiler.frontends.onnx import load_onnx
from tests.backends.networks import small_cnn

intervals = st.builds(
    lambda nbytes, first, length: Interval(nbytes, first, first + length),
    st.integers(0, 5000),
    st.integers(0, 30),
    st.integers(0, 10),
)


@given(st.lists(intervals, max_size=40))
def test_blocks_that_live_together_do_not_overlap(blocks: list[Interval]) -> None:
    offsets, total = place(blocks)
    for i, a in enumerate(blocks):
        assert offsets[i] % ALIGNMENT == 0
        assert offsets[i] + a.nbytes <= total
        for j in range(i):
            b = blocks[j]
            together = a.first <= b.last and b.first <= a.last
            apart = offsets[i] >= offsets[j] + b.nbytes or offsets[j] >= offsets[i] + a.nbytes
            assert not together or apart


@given(st.lists(intervals, max_size=40))
def test_the_arena_is_no_larger_than_all_blocks_and_no_smaller_than_the_fullest_step(blocks: list[Interval]) -> None:
    _, total = place(blocks)
    live = [sum(aligned(b.nbytes) for b in blocks if b.first <= t <= b.last) for t in range(45)]
    assert max(live) <= total <= sum(aligned(b.nbytes) for b in blocks)


def chain(count: int) -> Program:
    """Element-wise steps one after the other, each of which may work in place."""
    buffers = [Buffer(f"b{i}", np.dtype("float32"), (1000,)) for i in range(count)]
    buffers[0].role, buffers[0].index = "input", 0
    buffers[-1].role, buffers[-1].index = "output", 0
    steps = [Step("k", [a, b], (1,), in_place=(0,)) for a, b in itertools.pairwise(buffers)]
    return Program("chain", [buffers[0]], [buffers[-1]], steps)


def test_a_chain_in_place_needs_one_buffer() -> None:
    assert plan(chain(10)).arena_bytes == aligned(4000)


def test_an_operand_that_is_read_later_is_not_overwritten() -> None:
    program = chain(4)
    program.steps[2].args = [program.steps[1].args[1], program.steps[0].args[1], program.steps[2].args[1]]
    program.steps[2].writes = (2,)
    memory = plan(program)
    first, second = program.steps[0].args[1], program.steps[1].args[1]
    assert memory.offsets[first] != memory.offsets[second]


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 100))
def test_buffers_of_a_network_that_live_together_do_not_overlap(seed: int) -> None:
    program = lower(load_onnx(small_cnn(seed)), target("native"))
    memory = plan(program)
    life: dict[Buffer, list[int]] = {}
    for index, step in enumerate(program.steps):
        for buffer in step.args:
            root, _ = buffer.root()
            if root.role == "temporary":
                life.setdefault(root, []).append(index)
    for a in life:
        for b in life:
            if a is b or min(life[a]) > max(life[b]) or min(life[b]) > max(life[a]):
                continue
            first, second = memory.offsets[a], memory.offsets[b]
            shared = first < second + b.nbytes and second < first + a.nbytes
            handed_over = max(life[a]) == min(life[b]) or max(life[b]) == min(life[a])
            assert not shared or handed_over, (a.name, b.name)


def test_equal_constants_are_kept_once() -> None:
    model = small_cnn()
    for weight in model.graph.initializer:
        if weight.name == "w2":
            weight.raw_data = np.ones((8, 8, 3, 3), np.float32).tobytes()
    memory = plan(lower(load_onnx(model), target("native")))
    assert len({b.data.tobytes() for b in memory.constants if b.data is not None}) == len(memory.constants)
    assert len(memory.weights()) == memory.weights_bytes
