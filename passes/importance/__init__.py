"""Importance criteria, one a file; importing this package registers them."""

from passes.importance import (  # noqa: F401
    activation_moments,
    apoz,
    batchnorm_scale,
    crop,
    entropy,
    flap,
    fpgm,
    grasp,
    hessian_trace,
    lamp,
    magnitude,
    obd_fisher,
    obspa,
    random,
    snip,
    synflow,
    taylor,
    wanda,
)
from passes.importance.criterion import (
    AGGREGATES,
    Criterion,
    ParameterCriterion,
    available_criteria,
    criterion,
    register_criterion,
    unit_scores,
)
from passes.importance.data import criterion_samples

__all__ = [
    "AGGREGATES",
    "Criterion",
    "ParameterCriterion",
    "available_criteria",
    "criterion",
    "criterion_samples",
    "register_criterion",
    "unit_scores",
]
