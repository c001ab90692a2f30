"""Matrix products."""

from __future__ import annotations

import torch
from torch import Tensor

from compiler.exporters.torch.differentiable.rules import Operation, torch_rule


@torch_rule("Gemm")
def gemm(op: Operation, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha * a b + beta * c, and what is built on it."""
    alpha, beta = op.attribute("alpha", 1.0), op.attribute("beta", 1.0)
    a = a.T if op.attribute("transA", 0) else a
    b = b.T if op.attribute("transB", 0) else b
    product = a @ b
    product = product if alpha == 1 else (alpha * product).to(a.dtype)
    if c is None or beta == 0:
        return product
    return product + (c if beta == 1 else (beta * c).to(c.dtype))


@torch_rule("MatMul")
def _matmul(op: Operation, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@torch_rule("Einsum")
def _einsum(op: Operation, *operands: Tensor) -> Tensor:
    return torch.einsum(op.attribute("equation"), *operands)


@torch_rule("Det")
def _det(op: Operation, x: Tensor) -> Tensor:
    return torch.linalg.det(x)
