"""Scores of the weights that may go, and masks from them, one weight at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from compiler.ir import SecateurError
from passes.calibration import Evidence
from passes.importance import Criterion
from passes.sparsity.masks import block_mask, block_scores, check_scores, run_mask
from passes.sparsity.patterns import NM, Blocks, Pattern
from passes.sparsity.weights import Weight


class Scores:
    """What a criterion says of weights, found anew whenever it is asked for, so that no two weights need be held."""

    def __init__(self, chosen: Criterion, evidence: Evidence, pattern: Pattern) -> None:
        self._chosen = chosen
        self._evidence = evidence
        self._pattern = pattern

    def covers(self, weight: Weight) -> bool:
        """Whether the criterion scores a weight."""
        return self._chosen.scores_weights_of(self._evidence, weight.value)

    def of(self, weight: Weight) -> np.ndarray:
        """[groups, outputs, inputs, taps], in float32 or float64; minus infinity where there is a zero."""
        scores = self._chosen.weight_scores(self._evidence, weight.value)
        if scores.shape != weight.shape:
            raise SecateurError(
                "E_SCORES",
                f"criterion {self._chosen.name!r} gives scores of shape {scores.shape} to weights of {weight.shape}",
                where=weight.name,
                hint="repair the criterion's weight_scores",
            )
        wide = scores.astype(np.float64 if scores.dtype == np.float64 else np.float32)
        check_scores(wide, weight.name)
        wide[np.asarray(weight.value.numpy()) == 0] = -np.inf
        return weight.layouts[0].view(wide)

    def ranked(self, weights: Sequence[Weight]) -> Iterator[tuple[np.ndarray, np.ndarray | int]]:
        """The blocks of each weight in turn; see `masks.block_scores`."""
        assert isinstance(self._pattern, Blocks)
        return (block_scores(self.of(weight), self._pattern) for weight in weights)

    def mask(self, weight: Weight, zeros: int) -> np.ndarray:
        """True where a weight stays nonzero, in its own shape. zeros: how many are to go; N:M does not ask."""
        scores = self.of(weight)
        if isinstance(self._pattern, NM):
            stays = run_mask(scores, self._pattern)
        else:
            stays = block_mask(scores, self._pattern, zeros)
        return weight.layouts[0].stored(stays, weight.shape) & (np.asarray(weight.value.numpy()) != 0)
