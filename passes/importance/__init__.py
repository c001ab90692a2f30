"""Importance criteria, one a file; importing this package registers them."""

from passes.importance import activations, batchnorm_scale, fpgm, lamp, magnitude, obspa, random  # noqa: F401
from passes.importance.criterion import (
    AGGREGATES,
    Criterion,
    ParameterCriterion,
    criterion,
    register_criterion,
    unit_scores,
)

__all__ = ["AGGREGATES", "Criterion", "ParameterCriterion", "criterion", "register_criterion", "unit_scores"]
