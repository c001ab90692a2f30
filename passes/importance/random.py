"""Random importance, the baseline that every criterion must beat."""

from __future__ import annotations

import numpy as np

from compiler.ir import Node, Value
from passes.importance.criterion import Criterion, register_criterion


@register_criterion("random")
class Random(Criterion):
    """Uniform noise, the same for the same seed."""

    def score(self, constant: Value, uses: list[tuple[Node, int]]) -> np.ndarray | None:
        assert constant.data is not None
        return np.zeros(constant.data.shape, np.float32)

    def finish(self, totals: np.ndarray) -> np.ndarray:
        return np.random.default_rng(self.seed).random(len(totals))
