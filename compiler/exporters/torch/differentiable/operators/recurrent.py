"""LSTM, GRU and RNN, step by step: every direction, layout, activation, initial state and length of sequence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from compiler.exporters.torch.differentiable.rules import Operation, torch_rule
from compiler.ir import Node

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]

_ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "affine": lambda x, alpha, beta: alpha * x + beta,
    "elu": lambda x, alpha, beta: functional.elu(x, alpha),
    "hardsigmoid": lambda x, alpha, beta: torch.clamp(alpha * x + beta, 0, 1),
    "leakyrelu": lambda x, alpha, beta: functional.leaky_relu(x, alpha),
    "relu": lambda x, alpha, beta: torch.relu(x),
    "scaledtanh": lambda x, alpha, beta: alpha * torch.tanh(beta * x),
    "sigmoid": lambda x, alpha, beta: torch.sigmoid(x),
    "softplus": lambda x, alpha, beta: functional.softplus(x),
    "softsign": lambda x, alpha, beta: functional.softsign(x),
    "tanh": lambda x, alpha, beta: torch.tanh(x),
    "thresholdedrelu": lambda x, alpha, beta: torch.where(x > alpha, x, torch.zeros_like(x)),
}

_COEFFICIENTS = {
    "affine": (1.0, 0.0),
    "elu": (1.0, 0.0),
    "hardsigmoid": (0.2, 0.5),
    "leakyrelu": (0.01, 0.0),
    "scaledtanh": (1.0, 1.0),
    "thresholdedrelu": (1.0, 0.0),
}

_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}

_TAKES = {"affine": (True, True), "hardsigmoid": (True, True), "scaledtanh": (True, True), "elu": (True, False)}
_TAKES |= {"leakyrelu": (True, False), "thresholdedrelu": (True, False)}


def _known_activations(node: Node) -> str | None:
    names = node.attribute("activations") or []
    unknown = [n for n in names if n.lower() not in _ACTIVATIONS]
    return f"with the activation {unknown[0]}" if unknown else None


def _activations(op: Operation, directions: int) -> list[list[Activation]]:
    """The activations of each direction; coefficients are listed for those only that take any."""
    defaults = _DEFAULTS[op.node.op]
    names = [n.lower() for n in op.attribute("activations") or defaults * directions]
    alphas, betas = list(op.attribute("activation_alpha") or []), list(op.attribute("activation_beta") or [])
    found: list[Activation] = []
    for name in names:
        alpha, beta = _COEFFICIENTS.get(name, (1.0, 0.0))
        takes = _TAKES.get(name, (False, False))
        alpha = alphas.pop(0) if takes[0] and alphas else alpha
        beta = betas.pop(0) if takes[1] and betas else beta
        found.append(partial(_ACTIVATIONS[name], alpha=alpha, beta=beta))
    return [found[d * len(defaults) : (d + 1) * len(defaults)] for d in range(directions)]


@dataclass(frozen=True)
class _Layer:
    """One direction of a layer. w: [gates * hidden, input], r: [gates * hidden, hidden], biases: [gates * hidden]."""

    op: Operation
    w: Tensor
    r: Tensor
    wb: Tensor
    rb: Tensor
    peephole: Tensor | None
    activations: list[Activation]

    def clip(self, x: Tensor) -> Tensor:
        bound = self.op.attribute("clip")
        return x if bound is None else x.clamp(-bound, bound)

    def step(self, x: Tensor, state: State) -> State:
        """The next state from `x`, which is projected by `w` already."""
        return {"LSTM": self._lstm, "GRU": self._gru, "RNN": self._rnn}[self.op.node.op](x, state)

    def _rnn(self, x: Tensor, state: State) -> State:
        (h,) = state
        return (self.activations[0](self.clip(x + h @ self.r.T + self.wb + self.rb)),)

    def _gru(self, x: Tensor, state: State) -> State:
        """Gates in the order update, reset, hidden."""
        (h,) = state
        f, g = self.activations
        xz, xr, xh = (x + self.wb).chunk(3, -1)
        rz, rr, rh = self.r.chunk(3)
        bz, br, bh = self.rb.chunk(3)
        z = f(self.clip(xz + h @ rz.T + bz))
        r = f(self.clip(xr + h @ rr.T + br))
        if self.op.attribute("linear_before_reset", 0):
            n = g(self.clip(xh + r * (h @ rh.T + bh)))
        else:
            n = g(self.clip(xh + (r * h) @ rh.T + bh))
        return ((1 - z) * n + z * h,)

    def _lstm(self, x: Tensor, state: State) -> State:
        """Gates in the order input, output, forget, cell; peepholes in the order input, output, forget."""
        h, c = state
        f, g, k = self.activations
        xi, xo, xf, xc = (x + h @ self.r.T + self.wb + self.rb).chunk(4, -1)
        pi, po, pf = (0, 0, 0) if self.peephole is None else self.peephole.chunk(3)
        i = f(self.clip(xi + pi * c))
        forget = 1 - i if self.op.attribute("input_forget", 0) else f(self.clip(xf + pf * c))
        c = forget * c + i * g(self.clip(xc))
        o = f(self.clip(xo + po * c))
        return o * k(c), c

    def run(self, x: Tensor, state: State, lengths: list[int] | None, backwards: bool) -> tuple[Tensor, State]:
        """Outputs [steps, batch, hidden] and the last state of sequences [steps, batch, input]."""
        steps = x.shape[0]
        projected = x @ self.w.T
        outputs: list[Tensor | None] = [None] * steps
        for t in reversed(range(steps)) if backwards else range(steps):
            after = self.step(projected[t], state)
            if lengths is None:
                state, outputs[t] = after, after[0]
                continue
            alive = torch.tensor([t < n for n in lengths], device=x.device).unsqueeze(1)
            state = tuple(torch.where(alive, a, b) for a, b in zip(after, state, strict=True))
            outputs[t] = torch.where(alive, after[0], torch.zeros_like(after[0]))
        known = [y for y in outputs if y is not None]
        return torch.stack(known) if known else x.new_zeros((0, x.shape[1], self.r.shape[1])), state


def _layer(
    op: Operation,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: list[int] | None,
    initial: list[Tensor | None],
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """All directions: outputs [steps, directions, batch, hidden] and last states [directions, batch, hidden].

    With layout 1 the batch comes first everywhere.
    """
    batch_first = bool(op.attribute("layout", 0))
    if batch_first:
        x = x.transpose(0, 1)
        initial = [None if s is None else s.transpose(0, 1) for s in initial]
    directions, hidden = w.shape[0], r.shape[2]
    whole = None if lengths is None or all(n == x.shape[0] for n in lengths) else lengths
    outputs, finals = [], []
    for d, activations in enumerate(_activations(op, directions)):
        wb, rb = (x.new_zeros(2, w.shape[1])) if b is None else b[d].reshape(2, -1)
        peephole = None if peepholes is None else peepholes[d]
        layer = _Layer(op, w[d], r[d], wb, rb, peephole, activations)
        state = tuple(x.new_zeros((x.shape[1], hidden)) if s is None else s[d] for s in initial)
        output, final = layer.run(x, state, whole, d == 1 or op.attribute("direction", "forward") == "reverse")
        outputs.append(output)
        finals.append(final)
    y = torch.stack(outputs, 1)
    last = [torch.stack([f[i] for f in finals]) for i in range(len(initial))]
    if batch_first:
        y, last = y.permute(2, 0, 1, 3), [s.transpose(0, 1) for s in last]
    return y, *last


@torch_rule("LSTM", host=(4,), check=_known_activations)
def _lstm(
    op: Operation,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: list[int] | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    peepholes: Tensor | None = None,
) -> tuple[Tensor, ...]:
    return _layer(op, x, w, r, b, lengths, [initial_h, initial_c], peepholes)


@torch_rule("GRU", "RNN", host=(4,), check=_known_activations)
def _gru_or_rnn(
    op: Operation,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: list[int] | None = None,
    initial_h: Tensor | None = None,
) -> tuple[Tensor, ...]:
    return _layer(op, x, w, r, b, lengths, [initial_h])
