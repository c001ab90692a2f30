"""Coupling rules of ONNX Runtime's own operators (domain com.microsoft), which optimised models hold."""

from passes.coupling.rules.contrib import attention, fused, quantized, refused

__all__ = ["attention", "fused", "quantized", "refused"]
