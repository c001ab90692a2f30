"""ONNX Runtime's own operators (domain com.microsoft), which optimised and quantised models hold: shapes and costs.

Operands, results and attributes are those of the runtime's operator schemas
(github.com/microsoft/onnxruntime, docs/ContribOperators.md).
"""

from __future__ import annotations

from compiler.ir.contrib import quantized, unshaped  # noqa: F401  (they register their rules)
from compiler.ir.contrib.attention import PROJECTIONS, grouped_depth, projection_sizes
from compiler.ir.contrib.domain import CONTRIB_DOMAIN
from compiler.ir.contrib.fused import ACTIVATIONS, SKIP_NORMALIZATIONS, matrix_orders

__all__ = [
    "ACTIVATIONS",
    "CONTRIB_DOMAIN",
    "PROJECTIONS",
    "SKIP_NORMALIZATIONS",
    "grouped_depth",
    "matrix_orders",
    "projection_sizes",
]
