"""A graph as a list of steps over numbered slots, and one run of it.

Shapes travel as integer tensors in host memory, whatever device the data is on, and become Python numbers where an
operator needs them; operands of one operation that lie on different devices are brought to the data's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from compiler.exporters.torch.differentiable.dtypes import Floats
from compiler.exporters.torch.differentiable.rules import Operation, Rule, rule_for
from compiler.ir import Graph, Node, Value, subgraphs


@dataclass(frozen=True)
class Step:
    """One node: the slots of its operands (None where omitted) and results, and those whose last reader it is."""

    node: Node
    rule: Rule
    operands: tuple[int | None, ...]
    results: tuple[int, ...]
    last: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """The steps of a graph or of a body, in order."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    steps: tuple[Step, ...]


@dataclass
class Compiler:
    """Gives slots to values, and programs to graphs and bodies; raises E_NO_TORCH_RULE."""

    slots: dict[Value, int] = field(default_factory=dict)
    bodies: dict[int, Program] = field(default_factory=dict)

    def slot(self, value: Value) -> int:
        """The place of a value while the program runs."""
        return self.slots.setdefault(value, len(self.slots))

    def compile(self, graph: Graph) -> Program:
        """The program of a graph; those of the bodies are kept by their identity."""
        last = _last_reads(graph)
        steps = []
        for index, node in enumerate(graph.nodes):
            for body in subgraphs(node):
                self.bodies[id(body)] = self.compile(body)
            steps.append(
                Step(
                    node,
                    rule_for(node),
                    tuple(None if v is None else self.slot(v) for v in node.inputs),
                    tuple(self.slot(v) for v in node.outputs),
                    tuple(self.slot(v) for v in last[index]),
                )
            )
        return Program(
            tuple(self.slot(v) for v in graph.inputs), tuple(self.slot(v) for v in graph.outputs), tuple(steps)
        )


def _last_reads(graph: Graph) -> list[list[Value]]:
    """For each node, the results of this graph that nothing reads after it."""
    last: dict[Value, int] = {}
    for index, node in enumerate(graph.nodes):
        read = [v for v in node.inputs if v is not None]
        for value in (*read, *(v for b in subgraphs(node) for v in b.outer_values()), *node.outputs):
            last[value] = index
    made = {v for n in graph.nodes for v in n.outputs}
    found: list[list[Value]] = [[] for _ in graph.nodes]
    for value, index in last.items():
        if value in made and value not in graph.outputs:
            found[index].append(value)
    return found


@dataclass
class Run:
    """One call of the module. values: what each slot holds. keep: results are not let go after their last reader."""

    bodies: Mapping[int, Program]
    floats: Floats
    opset: int
    training: bool
    values: dict[int, Any]
    keep: bool = False

    def execute(self, program: Program) -> list[Any]:
        """Run the steps; returns the outputs."""
        for step in program.steps:
            operation = Operation(step.node, self.opset, self)
            results = step.rule.function(operation, *self._operands(step))
            if isinstance(results, torch.Tensor) or not isinstance(results, tuple | list):
                results = (results,)
            for slot, result in zip(step.results, results, strict=False):
                self.values[slot] = result
            if not self.keep:
                for slot in step.last:
                    self.values.pop(slot, None)
        return [self.values[slot] for slot in program.outputs]

    def call(self, body: Graph, operands: Sequence[Any]) -> list[Any]:
        """Run a body, which reads the values around it by their slots."""
        program = self.bodies[id(body)]
        self.values.update(zip(program.inputs, operands, strict=True))
        return self.execute(program)

    def _operands(self, step: Step) -> list[Any]:
        found: list[Any] = [None if slot is None else self.values[slot] for slot in step.operands]
        host = step.rule.host
        for index in host:
            if index < len(found) and found[index] is not None:
                found[index] = found[index].tolist()
        data = [t for i, t in enumerate(found) if i not in host and isinstance(t, torch.Tensor)]
        if len({t.device for t in data}) > 1:
            device = next(t.device for t in data if t.device.type != "cpu")
            found = [t.to(device) if isinstance(t, torch.Tensor) else t for t in found]
        return found
