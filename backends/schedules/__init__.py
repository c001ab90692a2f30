"""Schedules: CPU kernels as flat TIR, dense and sparse, one operator family a file, parametrised by `Target`.

Every factory takes (spec, target, parallel=False) and returns a `Kernel`; `codegen.object_code` turns a module of
their functions into an object file.
"""

from backends.schedules.codegen import object_code
from backends.schedules.conv import conv2d
from backends.schedules.conv_transpose import conv_transpose2d
from backends.schedules.emit import Emitter, module
from backends.schedules.epilogue import ACTIVATIONS, Epilogue, activate, erf, exp, log, sigmoid, tanh
from backends.schedules.kernel import ALIGNMENT, Kernel
from backends.schedules.matmul import matmul
from backends.schedules.pool import global_pool, pool2d
from backends.schedules.sparse_conv import SparseConvSpec, sparse_conv2d
from backends.schedules.sparse_depthwise import SparseDepthwiseSpec, sparse_depthwise
from backends.schedules.sparse_matmul import SparseMatMulSpec, sparse_matmul
from backends.schedules.specs import ConvSpec, ConvTransposeSpec, MatMulSpec, PoolSpec

__all__ = [
    "ACTIVATIONS",
    "ALIGNMENT",
    "ConvSpec",
    "ConvTransposeSpec",
    "Emitter",
    "Epilogue",
    "Kernel",
    "MatMulSpec",
    "PoolSpec",
    "SparseConvSpec",
    "SparseDepthwiseSpec",
    "SparseMatMulSpec",
    "activate",
    "conv2d",
    "conv_transpose2d",
    "erf",
    "exp",
    "global_pool",
    "log",
    "matmul",
    "module",
    "object_code",
    "pool2d",
    "sigmoid",
    "sparse_conv2d",
    "sparse_depthwise",
    "sparse_matmul",
    "tanh",
]
