"""Importance criteria, one a file; importing this package registers them."""

from passes.importance import batchnorm_scale, magnitude, random
from passes.importance.criterion import Criterion, criterion, register_criterion, unit_scores

__all__ = ["Criterion", "batchnorm_scale", "criterion", "magnitude", "random", "register_criterion", "unit_scores"]
