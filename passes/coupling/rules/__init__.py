"""Coupling rules, one module an operator family; importing this package registers them all."""

from passes.coupling.rules import convolution, elementwise, linear, movement, normalization, reduction

__all__ = ["convolution", "elementwise", "linear", "movement", "normalization", "reduction"]
