"""ONNX Runtime's own operators, which optimised and quantised models hold."""

from compiler.exporters.torch.differentiable.operators.contrib import attention, fused, quantized

__all__ = ["attention", "fused", "quantized"]
