"""Compile kernels, call them from numpy on arrays with guard pages, and ask ONNX Runtime for the same."""

from __future__ import annotations

import ctypes
import functools
import mmap
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from backends.schedules import ConvSpec, Kernel, MatMulSpec, PoolSpec, module, object_code
from backends.target import Target

_LAUNCHER = """
typedef struct { void *sync; int tasks; } Env;
typedef int (*Task)(int, Env *, void *);
int secateur_test_tasks = 3;
static int launch(Task task, void *data, int tasks) {
  Env env = {0, tasks > 0 ? tasks : secateur_test_tasks};
  for (int i = env.tasks - 1; i >= 0; --i) { int code = task(i, &env, data); if (code) return code; }
  return 0;
}
int (*__TVMBackendParallelLaunch)(Task, void *, int) = launch;
"""
TOLERANCE = {"float32": 1e-5, "float16": 4e-3}
"""Norm of the error over the norm of the result, by what a target computes in."""
_PAGE = mmap.PAGESIZE
_LIBC = ctypes.CDLL(None)


def guarded(shape: Sequence[int], at_end: bool = True, dtype: type | np.dtype = np.float32) -> np.ndarray:
    """An array of NaN (of all ones in binary) that ends (or begins) at a page that must not be touched."""
    item = np.dtype(dtype).itemsize
    size = max(1, int(np.prod(shape))) * item
    body = -(-size // _PAGE) * _PAGE
    memory = mmap.mmap(-1, body + 2 * _PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (base, base + _PAGE + body):
        assert _LIBC.mprotect(ctypes.c_void_p(page), _PAGE, 0) == 0
    array = np.frombuffer(memory, dtype, size // item, _PAGE + (body - size if at_end else 0))
    array.view(np.uint8)[...] = 0xFF
    return array[: int(np.prod(shape))].reshape(shape)


def _zig(arguments: list[str], folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "ziglang", *arguments], cwd=folder, check=True, capture_output=True)


@functools.cache
def _launcher() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "launch.c").write_text(_LAUNCHER)
        _zig(["cc", "-c", "-fPIC", "-O1", "-o", "launch.o", "launch.c"], folder)
        return (folder / "launch.o").read_bytes()


class Library:
    """A shared library made of PrimFuncs."""

    def __init__(self, funcs: Sequence[object], target: Target) -> None:
        unique = {str(func.attrs["global_symbol"]): func for func in funcs}
        start = time.perf_counter()
        code = object_code(module(list(unique.values())), target)
        self.compile_seconds = time.perf_counter() - start
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        (folder / "kernels.o").write_bytes(code)
        (folder / "launch.o").write_bytes(_launcher())
        _zig(["ld.lld", "-shared", "-o", "kernels.so", "kernels.o", "launch.o"], folder)
        self._library = ctypes.CDLL(str(folder / "kernels.so"))

    def function(self, symbol: str) -> Callable[..., int]:
        """One of its functions, which takes pointers."""
        return getattr(self._library, symbol)

    def set_tasks(self, tasks: int) -> None:
        """Number of pieces that parallel loops are cut into."""
        ctypes.c_int.in_dll(self._library, "secateur_test_tasks").value = tasks

    def call(
        self, kernel: Kernel, arrays: Mapping[str, np.ndarray], shape: Sequence[int], at_end: bool = True
    ) -> np.ndarray:
        """Run once on guarded copies, rounded to the kernel's types; y has `shape`."""
        stored = {role: kernel.stored(role, np.asarray(array)) for role, array in arrays.items()}
        held = {role: guarded(np.shape(array), at_end, array.dtype) for role, array in stored.items()}
        for role, array in stored.items():
            held[role][...] = array
        held["y"] = guarded(shape, at_end, np.dtype(kernel.dtype("y")))
        if kernel.workspace_bytes:
            held["workspace"] = guarded((kernel.workspace_bytes,), at_end, np.uint8)
        assert set(held) == set(kernel.params), (sorted(held), kernel.params)
        code = getattr(self._library, kernel.symbol)(*[_pointer(held[role]) for role in kernel.params])
        assert code == 0
        return held["y"]

    def bound(
        self, kernel: Kernel, feeds: Mapping[str, np.ndarray], packed: Mapping[str, np.ndarray]
    ) -> Callable[[], None]:
        """A call on fixed, aligned arrays, for timing."""
        held = {role: _aligned(array) for role, array in {**feeds, **packed}.items()}
        held["y"] = _aligned(np.zeros(1 << 23, np.float32)[: 1 << 23])
        if kernel.workspace_bytes:
            held["workspace"] = _aligned(np.zeros(kernel.workspace_bytes // 4, np.float32))
        pointers = [_pointer(held[role]) for role in kernel.params]
        function = getattr(self._library, kernel.symbol)

        def run() -> None:
            function(*pointers)

        run.arrays = held  # type: ignore[attr-defined]
        return run


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _aligned(array: np.ndarray) -> np.ndarray:
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def ort_session(
    layer: object, kernel: Kernel, rng: np.random.Generator
) -> tuple[Callable[[], None], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The layer in ONNX Runtime on one thread: a call, and the same arrays for our kernel."""

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    nodes, weights, feeds, packed, last = [], {}, {}, {}, "c"
    if isinstance(layer, ConvSpec):
        taps = layer.in_channels // layer.groups
        weights = {"w": random(layer.out_channels, taps, *layer.kernel), "b": random(layer.out_channels)}
        feeds["x"] = random(layer.batch, layer.in_channels, layer.height, layer.width)
        nodes.append(
            helper.make_node(
                "Conv",
                ["x", "w", "b"],
                ["c"],
                kernel_shape=layer.kernel,
                strides=layer.strides,
                pads=layer.pads,
                dilations=layer.dilations,
                group=layer.groups,
            )
        )
        if layer.epilogue.residual:
            feeds["residual"] = random(layer.batch, layer.out_channels, layer.out_height, layer.out_width)
            nodes.append(helper.make_node("Add", [last, "residual"], ["a"]))
            last = "a"
        if layer.epilogue.activation == "relu":
            nodes.append(helper.make_node("Relu", [last], ["r"]))
            last = "r"
        elif layer.epilogue.activation == "clip":
            weights |= {"lo": np.float32(layer.epilogue.alpha), "hi": np.float32(layer.epilogue.beta)}
            nodes.append(helper.make_node("Clip", [last, "lo", "hi"], ["r"]))
            last = "r"
        packed = kernel.pack(weights["w"], weights["b"])
    elif isinstance(layer, MatMulSpec):
        weights = {"w": random(layer.n, layer.k), "b": random(layer.n)}
        feeds["a"] = random(layer.m, layer.k)
        nodes.append(helper.make_node("Gemm", ["a", "w", "b"], ["c"], transB=1))
        packed = kernel.pack(weights["w"], weights["b"])
    elif isinstance(layer, PoolSpec):
        feeds["x"] = random(layer.batch, layer.channels, layer.height, layer.width)
        nodes.append(
            helper.make_node("MaxPool", ["x"], ["c"], kernel_shape=layer.kernel, strides=layer.strides, pads=layer.pads)
        )
    else:
        feeds["x"] = random(1, layer[1], layer[2], 1)
        nodes.append(helper.make_node("GlobalAveragePool", ["x"], ["c"]))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(name, 1, array.shape) for name, array in feeds.items()],
        [helper.make_tensor_value_info(last, 1, None)],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    result = session.run(None, feeds)[0]
    output = onnxruntime.OrtValue.ortvalue_from_numpy(result)
    binding.bind_ortvalue_output(last, output)

    def run() -> None:
        session.run_with_iobinding(binding)

    return run, feeds, packed
