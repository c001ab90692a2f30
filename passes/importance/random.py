"""Random importance, the baseline that every criterion must beat."""

from __future__ import annotations

import zlib

import numpy as np

from compiler.ir import Node, Value
from passes.calibration.evidence import Evidence
from passes.importance.criterion import ParameterCriterion, register_criterion


@register_criterion("random")
class Random(ParameterCriterion):
    """Uniform noise, the same for the same seed."""

    def selects(self, constant: Value, uses: list[tuple[Node, int]]) -> bool:
        return True

    def score(self, data: np.ndarray, constant: Value, rows: slice) -> np.ndarray:
        return np.zeros(data.shape, np.float32)

    def weight_scores(self, evidence: Evidence, constant: Value) -> np.ndarray:
        rng = np.random.default_rng((self.seed, zlib.crc32(constant.name.encode())))
        return rng.random(constant.static_shape, np.float32)

    def finish(self, totals: np.ndarray) -> np.ndarray:
        return np.random.default_rng(self.seed).random(len(totals))
