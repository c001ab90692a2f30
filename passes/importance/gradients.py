"""What criteria over gradients share: one array a weight, found from the evidence before any is scored."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from compiler.ir import Node, Value
from passes.calibration.evidence import Evidence
from passes.importance.criterion import ParameterCriterion, is_weight


class GradientCriterion(ParameterCriterion):
    """A criterion of a weight and one derivative of the loss in it."""

    needs = "labels"

    def prepare(self, evidence: Evidence) -> None:
        self._derivative = self.derivative(evidence)

    @abstractmethod
    def derivative(self, evidence: Evidence) -> dict[Value, np.ndarray]:
        """The array of each weight that `combine` is given."""

    @abstractmethod
    def combine(self, weights: np.ndarray, derivative: np.ndarray) -> np.ndarray:
        """The score of each element."""

    def selects(self, constant: Value, uses: list[tuple[Node, int]]) -> bool:
        return constant in self._derivative and is_weight(constant, uses)

    def score(self, data: np.ndarray, constant: Value, rows: slice) -> np.ndarray:
        return self.combine(np.asarray(data, np.float64), self._derivative[constant][rows])
