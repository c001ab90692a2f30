"""Gradients of a loss on calibration samples, in every weight: the graph becomes a torch module of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from compiler.exporters import to_module
from compiler.ir import Graph, SecateurError, Value
from passes.calibration.losses import Function, Loss, check_loss
from passes.calibration.samples import Samples, no_labels

if TYPE_CHECKING:
    import torch

_PROBES = 8
"""Random directions for the diagonal of the Hessian."""

Weights = dict[Value, np.ndarray]


class Gradients:
    """First and second derivatives of the mean loss over labelled samples, each found when first asked for.

    loss, output: see `passes.calibration.losses.Loss`. Every result is one float64 array a weight, of its shape. Raises
    E_NO_TORCH without torch, and E_NO_LABELS where the samples have none.
    """

    def __init__(
        self,
        graph: Graph,
        samples: Samples | None,
        loss: str | Function = "cross_entropy",
        seed: int = 0,
        *,
        output: str | None = None,
        progress: Callable[[str, int, int], None] = lambda label, done, total: None,
    ) -> None:
        check_loss(loss)
        self._graph = graph
        self._samples = samples
        self._kind = loss
        self._output = output
        self._seed = seed
        self._progress = progress

    @cached_property
    def first(self) -> Weights:
        """dL/dw."""
        import torch

        total: dict[Value, torch.Tensor] = {}
        for loss, share in self._losses():
            found = torch.autograd.grad(loss, self._tensors, allow_unused=True)
            _accumulate(total, zip(self._weights, found, strict=True), share)
        return self._arrays(total)

    @cached_property
    def squares(self) -> Weights:
        """The mean over samples of (dl/dw)^2, which is the diagonal of the empirical Fisher information."""
        import torch

        total: dict[Value, torch.Tensor] = {}
        for loss, share in self._losses(single=True):
            found = torch.autograd.grad(loss, self._tensors, allow_unused=True)
            squares = [None if g is None else g.square() for g in found]
            _accumulate(total, zip(self._weights, squares, strict=True), share)
        return self._arrays(total)

    @cached_property
    def hessian_gradient(self) -> Weights:
        """H g: the Hessian times the gradient."""
        return self._hessian_product(lambda value: self.first[value])

    @cached_property
    def hessian_diagonal(self) -> Weights:
        """The diagonal of the Hessian, by Hutchinson's estimate with random signs (Bekas et al., 2007)."""
        rng = np.random.default_rng(self._seed)
        total: Weights = {}
        for _ in range(_PROBES):
            signs = {
                v: rng.integers(0, 2, p.shape) * 2.0 - 1 for v, p in zip(self._weights, self._tensors, strict=True)
            }
            for value, product in self._hessian_product(signs.__getitem__).items():
                total[value] = total.get(value, 0) + signs[value] * product / _PROBES
        return total

    def synaptic_flow(self) -> Weights:
        """w dR/dw for R = the sum of all outputs on inputs of ones, with every parameter's absolute value.

        Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic flow" (NeurIPS 2020,
        arXiv:2006.05467), eq. 2, in double precision.
        """
        import torch

        module = to_module(self._graph, verify=False).double()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.abs_()
        ones = {
            v.name: torch.ones([d if isinstance(d, int) else 1 for d in v.shape or ()], dtype=torch.float64)
            if v.dtype is not None and v.dtype.kind == "f"
            else torch.zeros([d if isinstance(d, int) else 1 for d in v.shape or ()], dtype=torch.int64)
            for v in self._graph.inputs
        }
        results = module(**ones)
        outputs = results if isinstance(results, tuple) else (results,)
        flow = torch.stack([y.sum() for y in outputs if y.is_floating_point()]).sum()
        weights = _trained(self._graph, module)
        found = torch.autograd.grad(flow, list(weights.values()), allow_unused=True)
        return {
            v: np.zeros(tuple(w.shape)) if g is None else (w * g).detach().numpy()
            for (v, w), g in zip(weights.items(), found, strict=True)
        }

    @cached_property
    def _module(self) -> Any:
        return to_module(self._graph)

    @cached_property
    def _parameters(self) -> dict[Value, torch.Tensor]:
        return _trained(self._graph, self._module)

    @property
    def _weights(self) -> list[Value]:
        return list(self._parameters)

    @property
    def _tensors(self) -> list[torch.Tensor]:
        return list(self._parameters.values())

    def _losses(self, *, single: bool = False) -> Iterator[tuple[torch.Tensor, float]]:
        """(mean loss of a batch, its share of all samples); single: a batch a sample, where the model allows that."""
        import torch

        if self._samples is None or self._samples.labels is None:
            raise no_labels("a criterion that needs a loss needs labelled calibration data")
        loss_of = Loss(self._graph, self._kind, self._output)
        count = len(self._samples)
        free = all(v.shape and isinstance(v.shape[0], str) for v in self._graph.inputs)
        for done, (feeds, labels) in enumerate(zip(self._samples.batches, self._samples.labels, strict=True)):
            self._progress("calibrating", done, len(self._samples.batches))
            size = len(labels)
            for start in range(0, size, 1 if single and free else size):
                stop = start + (1 if single and free else size)
                tensors = {name: torch.from_numpy(np.ascontiguousarray(a[start:stop])) for name, a in feeds.items()}
                loss = loss_of(self._module(**tensors), labels[start:stop])
                if not torch.isfinite(loss):
                    raise SecateurError(
                        "E_LOSS",
                        f"the loss is {loss.item():g} on samples {done * size + start} and after",
                        where="loss=…",
                        hint="look at the labels and the scale of the inputs there",
                    )
                yield loss, (stop - start) / count

    def _hessian_product(self, vector: Callable[[Value], np.ndarray]) -> Weights:
        import torch

        total: dict[Value, torch.Tensor] = {}
        tensors = self._tensors
        vectors = [
            torch.from_numpy(np.asarray(vector(v))).to(t.dtype) for v, t in zip(self._weights, tensors, strict=True)
        ]
        for loss, share in self._losses():
            gradients = torch.autograd.grad(loss, tensors, create_graph=True, allow_unused=True)
            along = sum((g * v).sum() for g, v in zip(gradients, vectors, strict=True) if g is not None)
            if not isinstance(along, torch.Tensor) or not along.requires_grad:
                continue
            found = torch.autograd.grad(along, tensors, allow_unused=True)
            _accumulate(total, zip(self._weights, found, strict=True), share)
        return self._arrays(total)

    def _arrays(self, total: dict[Value, torch.Tensor]) -> Weights:
        """As numpy; zero where no gradient arrives."""
        return {
            v: total[v].double().numpy() if v in total else np.zeros(tuple(t.shape))
            for v, t in self._parameters.items()
        }


def _accumulate(total: dict[Value, torch.Tensor], found: Any, share: float) -> None:
    for value, gradient in found:
        if gradient is not None:
            part = gradient.detach().double() * share
            total[value] = total[value] + part if value in total else part


def _trained(graph: Graph, module: Any) -> dict[Value, torch.Tensor]:
    """The parameters of a module by the constants that they were."""
    own = {id(p) for p in module.parameters()}
    names = set(module.state_names)
    found = {v: module.constant(v.name) for v in graph.all_constants() if v.name in names}
    return {v: tensor for v, tensor in found.items() if id(tensor) in own}
