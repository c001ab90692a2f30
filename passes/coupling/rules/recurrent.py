"""LSTM, GRU and RNN: a hidden unit is one position of every gate block, of the recurrence and of the states."""

from __future__ import annotations

import numpy as np

from compiler.ir import Node, Value
from passes.coupling.extents import Kept, extent_rule
from passes.coupling.kinds import HIDDEN_UNIT
from passes.coupling.solver import Coupling, Labels, coupling_rule

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""How many blocks of hidden units W and R hold; the bias holds them twice."""

_PEEPHOLES = 3
_STATES = (5, 6)
_MOVING = (
    *("Cast", "Concat", "Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose"),
    "Unsqueeze",
)


@coupling_rule(*GATES)
def recurrent(c: Coupling, node: Node) -> None:
    """X[T, B, I], W[D, gH, I], R[D, gH, H], B[D, 2gH], P[D, 3H], states [D, B, H], Y[T, D, B, H].

    The units of two directions are units of their own, conditional on the axis of directions: whatever
    joins the directions afterwards decides whether they stay so. `layout=1` puts the batch first.
    """
    x, w, r = node.inputs[0], node.inputs[1], node.inputs[2]
    assert x is not None and w is not None and r is not None
    if r.static_shape is None:
        c.refuse(node, f"{node.op} with weights of unknown shape")
        return
    batch_first = bool(node.attribute("layout", 0))
    time, batch = (1, 0) if batch_first else (0, 1)
    c.pin_axis(x, time, node, f"{node.op} reads this axis in order")
    c.decondition(x, time)
    samples, features = c.plain(x, batch), c.plain(x, 2)
    directions, _, hidden = r.static_shape
    units = c.partition.fresh((directions, hidden))
    c.mark(units, 1, HIDDEN_UNIT)
    c.set_plain(w, 2, features, node)
    c.define(r, 2, units.reshape(directions, 1, hidden), node)
    gates = GATES[node.op]
    for value, blocks in ((w, gates), (r, gates), (node.input(3), 2 * gates), (node.input(7), _PEEPHOLES)):
        if value is not None:
            c.define(value, 0, None, node)
            tiled = np.tile(units, (1, blocks))
            c.define(value, 1, tiled.reshape(tiled.shape + (1,) * ((value.rank or 2) - 2)), node)
    lengths = node.input(4)
    if lengths is not None:
        c.set_plain(lengths, 0, samples, node)
    state = [1, directions, hidden] if batch_first else [directions, 1, hidden]
    for value in (node.input(i) for i in _STATES):
        if value is None or (value.is_constant and _is_zero(value)):
            continue
        if _is_zero(value):
            c.pin_value(value, node, "zero states are left out")
        else:
            c.define(value, 1 - batch, None, node)
            c.set_plain(value, batch, samples, node)
            c.define(value, 2, units.reshape(state), node)
    y, *states = node.outputs
    in_y = (0, [1, 1, directions, hidden]) if batch_first else (2, [1, directions, 1, hidden])
    for value, (axis, shape) in ((y, in_y), *((v, (batch, state)) for v in states)):
        rank = len(shape)
        layout: list[Labels | None] = [None] * rank
        layout[axis] = None if samples is None else samples.reshape([-1 if a == axis else 1 for a in range(rank)])
        layout[-1] = units.reshape(shape)
        c.set(value, layout)


def _is_zero(value: Value) -> bool:
    """True for a state that is always zero, which is what an omitted state is; its shape then couples nothing."""
    node = value.producer
    if value.data is not None:
        return not np.any(value.numpy())
    if node is None or node.domain:
        return False
    if node.op == "ConstantOfShape":
        fill = node.attribute("value")
        return fill is None or not np.any(fill)
    read = node.inputs if node.op == "Concat" else node.inputs[:1]
    return node.op in _MOVING and all(v is not None and _is_zero(v) for v in read)


@extent_rule(*GATES)
def recurrent_extents(new: Node, old: Node, kept: Kept) -> None:
    """`hidden_size` follows; zero states, whose shape may spell the old width, are left out."""
    r = old.inputs[2]
    assert r is not None and r.shape is not None
    new.attributes["hidden_size"] = kept.count(r, 2)
    for index in _STATES:
        state = old.input(index)
        if state is not None and _is_zero(state):
            new.inputs[index] = None
