"""What gradients are taken of: a loss between an output of the network and labels."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.ir import Graph, SecateurError, Value

if TYPE_CHECKING:
    import torch

LOSSES = ("cross_entropy", "mse")
"""Against class numbers (of logits, or of probabilities after Softmax), or against targets of the output's shape."""

IGNORED = -100
"""The class number of a label that does not count, as in torch."""

Function = Callable[[Any, "torch.Tensor"], "torch.Tensor"]
"""(output, labels) -> scalar; it gets all outputs as {name: tensor} where there are several and none is named."""


class Loss:
    """The mean loss of a batch.

    kind: one of LOSSES or a function. output: the name of the output that it reads; it may be left out where there is
    one, and for a function. Raises E_OPTION_VALUE for an unknown loss, E_LOSS_OUTPUT where it is not clear which output
    is meant.
    """

    def __init__(self, graph: Graph, kind: str | Function = "cross_entropy", output: str | None = None) -> None:
        check_loss(kind)
        names = [v.name for v in graph.outputs]
        if output is not None and output not in names:
            raise _no_output(f"the network has no output {output!r}", names)
        if output is None and len(names) > 1 and isinstance(kind, str):
            raise _no_output(f"the network has {len(names)} outputs, and the loss reads one", names)
        self._kind = kind
        self._names = names
        self._read = graph.outputs[0 if output is None else names.index(output)]
        self._all = output is None and len(names) > 1

    def __call__(self, results: Any, labels: np.ndarray) -> torch.Tensor:
        """results: what the network's module returns. Raises E_LABELS, and E_LOSS where a function gives no scalar."""
        import torch

        found = results if isinstance(results, tuple) else (results,)
        outputs = dict(zip(self._names, found, strict=True))
        output = outputs[self._read.name]
        if self._kind == "mse":
            return _mse(output, labels, self._read)
        if self._kind == "cross_entropy":
            return _cross_entropy(output, labels, self._read)
        assert callable(self._kind)
        loss = self._kind(outputs if self._all else output, _tensor(labels))
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
            got = f"a tensor {_spelt(loss.shape)}" if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
            got += " without a gradient" if isinstance(loss, torch.Tensor) and not loss.requires_grad else ""
            raise SecateurError(
                "E_LOSS",
                f"the loss gave {got}, not a scalar that depends on the output",
                where="loss=…",
                hint="return the mean over the batch, computed in torch from the tensors given",
            )
        return loss.reshape(())


def check_loss(kind: object) -> None:
    """Raise E_OPTION_VALUE unless it is a loss."""
    if callable(kind) or kind in LOSSES:
        return
    close = difflib.get_close_matches(str(kind), LOSSES, 1)
    raise SecateurError(
        "E_OPTION_VALUE",
        f"loss cannot be {kind!r}",
        where="loss=…",
        hint=f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(LOSSES)}; in Python, a function too",
    )


def _mse(output: torch.Tensor, labels: np.ndarray, value: Value) -> torch.Tensor:
    import torch

    if labels.shape != tuple(output.shape):
        raise _wrong(f"{_spelt(output.shape)}, as output {value.name!r} is, and are {_spelt(labels.shape)}", "mse")
    return torch.nn.functional.mse_loss(output, _tensor(labels).to(output.dtype))


def _cross_entropy(output: torch.Tensor, labels: np.ndarray, value: Value) -> torch.Tensor:
    import torch

    if labels.dtype.kind not in "iu":
        raise _wrong(f"integers, and are of {labels.dtype}", "cross_entropy")
    axis = _class_axis(output, labels, value)
    classes, counted = output.shape[axis], labels[labels != IGNORED]
    if counted.size and not 0 <= counted.min() <= counted.max() < classes:
        worst = counted.min() if counted.min() < 0 else counted.max()
        raise _wrong(f"class numbers from 0 to {classes - 1}, and {worst} is among them", "cross_entropy")
    scores, wanted = output.movedim(axis, 1), _tensor(labels).long()
    last = value.producer.op if value.producer is not None else ""
    if last == "Softmax":
        scores = scores.clamp_min(torch.finfo(scores.dtype).tiny).log()
    if last in ("Softmax", "LogSoftmax"):
        return torch.nn.functional.nll_loss(scores, wanted, ignore_index=IGNORED)
    return torch.nn.functional.cross_entropy(scores, wanted, ignore_index=IGNORED)


def _class_axis(output: torch.Tensor, labels: np.ndarray, value: Value) -> int:
    """Where an output has its classes: on axis 1 or the last, whichever leaves the labels' shape."""
    rank, shape = output.dim(), tuple(output.shape)
    fitting = [a for a in dict.fromkeys((1, rank - 1)) if 0 < a < rank and shape[:a] + shape[a + 1 :] == labels.shape]
    if not fitting:
        wanted = " or ".join(dict.fromkeys(_spelt(shape[:a] + shape[a + 1 :]) for a in (1, rank - 1)))
        raise _wrong(
            f"{wanted}, as output {value.name!r} is {_spelt(shape)}, and are {_spelt(labels.shape)}", "cross_entropy"
        )
    producer = value.producer
    if producer is not None and producer.op in ("Softmax", "LogSoftmax"):
        own = int(producer.attribute("axis", -1)) % rank
        return own if own in fitting else fitting[0]
    return fitting[0]


def _tensor(labels: np.ndarray) -> torch.Tensor:
    import torch

    wide = labels.astype(np.int64) if labels.dtype.kind == "u" else labels
    return torch.from_numpy(np.array(wide))


def _spelt(shape: Any) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _wrong(what: str, loss: str) -> SecateurError:
    return SecateurError(
        "E_LABELS",
        f"labels for {loss} must be {what}",
        where="labels=…",
        hint="cross_entropy takes one class number for each scored position, mse targets of the output's shape",
    )


def _no_output(message: str, names: list[str]) -> SecateurError:
    return SecateurError("E_LOSS_OUTPUT", message, where="loss_output=…", hint=f"one of: {', '.join(names)}")
