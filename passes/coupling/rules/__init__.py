"""Coupling rules, one module an operator family; importing this package registers them all."""

from passes.coupling.rules import (
    attention,
    contrib,
    control_flow,
    convolution,
    elementwise,
    linear,
    movement,
    normalization,
    quantized,
    recurrent,
    reduction,
    refused,
    selection,
    spatial,
)

__all__ = [
    "attention",
    "contrib",
    "control_flow",
    "convolution",
    "elementwise",
    "linear",
    "movement",
    "normalization",
    "quantized",
    "recurrent",
    "reduction",
    "refused",
    "selection",
    "spatial",
]
