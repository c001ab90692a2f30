"""The rule table: how torch computes each operator, one function each, beside its family in `operators/`.

A rule takes the operation and its operands, None where one is omitted, and gives the result, or several in order.
On the way of floating-point data it uses differentiable functions of torch only. What it cannot compute it refuses
by its `check`, when the module is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from compiler.ir import Graph, Node, SecateurError

if TYPE_CHECKING:
    from compiler.exporters.torch.differentiable.program import Run

Function = Callable[..., Any]
"""(operation, *operands) -> a tensor, or a sequence of tensors."""

Check = Callable[[Node], str | None]
"""Why a node cannot be computed; None when it can."""


@dataclass(frozen=True)
class Rule:
    """How an operator is computed.

    host: operands that arrive as Python numbers or lists of them, since shapes, axes and the like are no data.
    state: operands that hold statistics, which training moves and no gradient reaches. check: what it refuses.
    """

    function: Function
    host: frozenset[int] = field(default_factory=frozenset)
    state: frozenset[int] = field(default_factory=frozenset)
    check: Check | None = None


RULES: dict[tuple[str, str], Rule] = {}


def torch_rule(
    *ops: str, domain: str = "", host: tuple[int, ...] = (), state: tuple[int, ...] = (), check: Check | None = None
) -> Callable[[Function], Function]:
    """Register how operators are computed; see `Rule`."""

    def register(function: Function) -> Function:
        for op in ops:
            RULES[domain, op] = Rule(function, frozenset(host), frozenset(state), check)
        return function

    return register


def rule_for(node: Node) -> Rule:
    """The rule of a node; E_NO_TORCH_RULE when there is none or it refuses the node."""
    rule = RULES.get((node.domain, node.op))
    if rule is None:
        raise no_rule(node, f"operator {node.qualified_op} has no rule for torch")
    reason = rule.check(node) if rule.check is not None else None
    if reason is not None:
        raise no_rule(node, f"{node.qualified_op} {reason}, which torch cannot be told to compute")
    return rule


def no_rule(node: Node, reason: str) -> SecateurError:
    """The error for a node that cannot be computed, and why."""
    return SecateurError(
        "E_NO_TORCH_RULE",
        reason,
        where=node.describe(),
        hint=f'replace the operator before export, or add a rule: @torch_rule("{node.op}", domain="{node.domain}") '
        "in compiler.exporters.torch.differentiable.rules (see CONTRIBUTING)",
    )


@dataclass(frozen=True)
class Operation:
    """A node as its rule sees it while the module runs."""

    node: Node
    opset: int
    run: Run

    def attribute(self, name: str, default: Any = None) -> Any:
        """The node's attribute, or `default`."""
        return self.node.attributes.get(name, default)

    @property
    def training(self) -> bool:
        """True where normalisations use the batch and Dropout drops."""
        return self.run.training

    @property
    def device(self) -> torch.device:
        """Where the module's data is."""
        return self.run.floats.device

    def wants(self, index: int) -> bool:
        """True when the node has a result at `index`."""
        return index < len(self.node.outputs)

    def dtype(self, kind: Any) -> torch.dtype:
        """The torch dtype that an ONNX element type or a numpy dtype has in this module, whatever its precision."""
        return self.run.floats.dtype(kind)

    def call(self, body: Graph, *operands: Any) -> list[torch.Tensor]:
        """The results of one of the node's bodies."""
        return self.run.call(body, operands)
