"""Dense schedules against ONNX Runtime, layer by layer: the distinct layers of MobileNetV2 and ResNet-18.

One thread, alternating in one process; arguments: mobilenetv2 or resnet18 (default both), and part of a label.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backends.schedules import ConvSpec, Epilogue, MatMulSpec, PoolSpec, conv2d, global_pool, matmul, pool2d
from backends.target import Target
from tests.backends.schedules_harness import Library, ort_session

RELU6 = Epilogue(bias=True, activation="clip", alpha=0.0, beta=6.0)
LINEAR = Epilogue(bias=True)
RELU = Epilogue(bias=True, activation="relu")
RELU_ADD = Epilogue(bias=True, activation="relu", residual=True)


def conv(channels: int, size: int, out: int, kernel: int, stride: int, groups: int, epilogue: Epilogue) -> ConvSpec:
    pad = kernel // 2
    return ConvSpec(
        1, channels, size, size, out, (kernel, kernel), (stride, stride), (pad,) * 4, (1, 1), groups, epilogue
    )


def mobilenetv2() -> Counter:
    layers: Counter = Counter()
    layers[conv(3, 224, 32, 3, 2, 1, RELU6)] += 1
    channels, size = 32, 112
    blocks = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expand, out, repeat, stride in blocks:
        for index in range(repeat):
            step, wide = (stride if index == 0 else 1), channels * expand
            if expand != 1:
                layers[conv(channels, size, wide, 1, 1, 1, RELU6)] += 1
            layers[conv(wide, size, wide, 3, step, wide, RELU6)] += 1
            size //= step
            skip = step == 1 and channels == out
            layers[conv(wide, size, out, 1, 1, 1, Epilogue(bias=True, residual=True) if skip else LINEAR)] += 1
            channels = out
    layers[conv(320, 7, 1280, 1, 1, 1, RELU6)] += 1
    layers[("average", 1280, 49)] += 1
    layers[MatMulSpec(1, 1, 1280, 1000, transpose_b=True, weight_side="b", b_batched=False, epilogue=LINEAR)] += 1
    return layers


def resnet18() -> Counter:
    layers: Counter = Counter()
    layers[conv(3, 224, 64, 7, 2, 1, RELU)] += 1
    layers[PoolSpec("max", 1, 64, 112, 112, (3, 3), (2, 2), (1, 1, 1, 1))] += 1
    channels, size = 64, 56
    for out, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]:
        for index in range(2):
            step = stride if index == 0 else 1
            layers[conv(channels, size, out, 3, step, 1, RELU)] += 1
            if step != 1:
                layers[conv(channels, size, out, 1, step, 1, LINEAR)] += 1
            size //= step
            layers[conv(out, size, out, 3, 1, 1, RELU_ADD)] += 1
            channels = out
    layers[("average", 512, 49)] += 1
    layers[MatMulSpec(1, 1, 512, 1000, transpose_b=True, weight_side="b", b_batched=False, epilogue=LINEAR)] += 1
    return layers


def kernel_of(layer, target: Target):
    if isinstance(layer, ConvSpec):
        return conv2d(layer, target)
    if isinstance(layer, MatMulSpec):
        return matmul(layer, target)
    return pool2d(layer, target) if isinstance(layer, PoolSpec) else global_pool(*layer, target)


def label(layer) -> str:
    if isinstance(layer, ConvSpec):
        kind = "dw" if layer.groups > 1 else "conv"
        extra = "+res" if layer.epilogue.residual else ""
        channels = f"{layer.in_channels}->{layer.out_channels}"
        return f"{kind}{layer.kernel[0]}/{layer.strides[0]} {channels} {layer.height}{extra}"
    if isinstance(layer, MatMulSpec):
        return f"fc {layer.k}->{layer.n}"
    return f"maxpool {layer.channels}x{layer.height}" if isinstance(layer, PoolSpec) else f"mean {layer[1]}x{layer[2]}"


def best_times(ours, theirs, rounds: int) -> tuple[float, float, float]:
    """Fastest times in seconds of both, taken in turns, and the median of their ratios."""
    first, second, ratios = [], [], []
    for _ in range(rounds):
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        theirs()
        end = time.perf_counter()
        first.append(middle - start)
        second.append(end - middle)
        ratios.append(first[-1] / second[-1])
    return min(first), min(second), float(np.median(ratios))


def bench(name: str, layers: Counter, only: str) -> None:
    target = Target.native()
    chosen = {layer: n for layer, n in layers.items() if only in label(layer)}
    start = time.perf_counter()
    kernels = {layer: kernel_of(layer, target) for layer in chosen}
    built = time.perf_counter()
    library = Library([kernel.func for kernel in kernels.values()], target)
    compiled = library.compile_seconds
    print(f"{name}: {len(kernels)} kernels, construct {built - start:.2f} s, compile {compiled:.2f} s")
    rng = np.random.default_rng(0)
    total_ours = total_theirs = 0.0
    for layer, count in chosen.items():
        kernel = kernels[layer]
        session, feeds, packed = ort_session(layer, kernel, rng)
        call = library.bound(kernel, feeds, packed)
        rounds = int(np.clip(0.4 / max(kernel.macs * 2 / 40e9, 2e-5), 15, 300))
        best_times(call, session, 3)
        ours, theirs, _ = best_times(call, session, rounds)
        total_ours += ours * count
        total_theirs += theirs * count
        rate = 2 * kernel.macs / 1e9
        print(
            f"{label(layer):28s} x{count}  ours {ours * 1e6:8.1f} us {rate / ours:6.1f} GF/s   "
            f"ort {theirs * 1e6:8.1f} us {rate / theirs:6.1f} GF/s   ratio {ours / theirs:5.2f}"
        )
    ratio = total_ours / total_theirs
    print(f"{name}: ours {total_ours * 1e3:.2f} ms, ort {total_theirs * 1e3:.2f} ms, ratio {ratio:.3f}")


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for network in (mobilenetv2, resnet18):
        if wanted in network.__name__:
            bench(network.__name__, network(), sys.argv[2] if len(sys.argv) > 2 else "")
