"""The lowering table: one rule per operator, registered by decorator beside the operator's family."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from compiler.errors import SecateurError
from compiler.ir.graph import Node

if TYPE_CHECKING:
    from backends.lowering.context import Lowering

Rule = Callable[[Node, "Lowering"], None]
"""Lower one node: bind a buffer to each of its outputs, emitting kernel calls or making views."""

RULES: dict[tuple[str, str], Rule] = {}

INTERNAL = "secateur.fused"
"""Domain of the operators that `fusion` makes out of several standard ones."""


def lowering(*ops: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register the lowering rule of operators."""

    def register(rule: Rule) -> Rule:
        for op in ops:
            RULES[domain, op] = rule
        return rule

    return register


def rule_for(node: Node) -> Rule:
    """The rule of a node; SecateurError E_NO_LOWERING when there is none."""
    rule = RULES.get((node.domain, node.op))
    if rule is None:
        raise no_lowering(node, f"operator {node.qualified_op} has no native lowering")
    return rule


def no_lowering(node: Node, reason: str) -> SecateurError:
    """The error for a node that cannot be compiled, and why."""
    return SecateurError(
        "E_NO_LOWERING",
        reason,
        where=f"{node.describe()}, domain {node.domain or 'ai.onnx'!r}",
        hint="replace the operator before export, or add a rule with @lowering in backends/lowering "
        "(see CONTRIBUTING); the pruned model.onnx still runs in ONNX Runtime",
    )
