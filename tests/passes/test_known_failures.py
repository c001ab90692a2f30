"""What pruning tools are known to get wrong, one small module each: groups by hand, proof, pruning and write-back.

Every class says what goes wrong elsewhere. The modules are torch's, since that is where these failures are met.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compiler.exporters import export
from compiler.frontends import load
from compiler.ir.execute import execute, relative_difference
from passes import Context, Pipeline, Prune, certify, dependency_groups
from passes.structured.check import pruning_error
from tests.passes.test_coupling import described

TOLERANCE = 1e-4
IMAGE, TOKENS = (2, 3, 4, 4), (2, 6, 12)


class FlattenAfterConvolution(nn.Module):
    """One channel becomes H*W columns of the layer behind Flatten; taken one to one, the wrong columns go."""

    example, expected = IMAGE, ["conv.weight[0]: 8", "wide.weight[0]: 10"]

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.wide, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.wide(torch.flatten(functional.relu(self.conv(x)), 1))))


class ReshapeAfterConvolution(nn.Module):
    """The same as view, and then back into an image: channels are found again behind two Reshapes."""

    example, expected = IMAGE, ["conv.weight[0]: 8", "wide.weight[0]: 6"]

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 6 * 16)
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(self.conv(x).reshape(x.shape[0], -1))
        return self.last(y.reshape(x.shape[0], -1, 4, 4))


class Chunk(nn.Module):
    """chunk gives parts of one tensor: an index into a part is not the index into the whole."""

    example, expected = IMAGE, ["conv.weight[0]: 6", "conv.weight[0]#2: 6", "other.weight[0]: 10"]

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.left, self.other = nn.Conv2d(3, 12, 1), nn.Conv2d(6, 3, 1), nn.Conv2d(6, 10, 1)
        self.right = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, 1)
        return self.left(a) + self.right(functional.relu(self.other(b)))


class Unbind(nn.Module):
    """unbind takes an axis away: query, key and value, rows of one projection, stay equally deep in every head."""

    example, expected = TOKENS, ["qkv.weight.T[1]: 24 in 6 blocks"]

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(2, 6, 3, 3, 4).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(2, 3)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(2, 6, -1))


class UnequalSplit(nn.Module):
    """Parts of unequal width begin at sums of the sizes, which change as parts shrink."""

    example, expected = IMAGE, ["conv.weight[0]: 4", "conv.weight[0]#2: 6", "conv.weight[0]#3: 8"]

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 18, 1)
        self.heads = nn.ModuleList(nn.Conv2d(width, 3, 1) for width in (4, 6, 8))

    def forward(self, x: Tensor) -> Tensor:
        parts = functional.relu(self.conv(x)).split([4, 6, 8], 1)
        a, b, c = (head(part) for head, part in zip(self.heads, parts, strict=True))
        return a + b + c


class BroadcastMultiplication(nn.Module):
    """An attention map of one channel multiplies all: no channel of one side is coupled to the other's only one."""

    example, expected = IMAGE, ["conv.weight[0]: 8", "gate.0.weight[0]: 6"]

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 3, 1)
        self.gate = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.conv(x) * self.gate(x))


class NestedConcatenation(nn.Module):
    """Concat of a Concat: offsets add up, also where a part occurs twice."""

    example, expected = IMAGE, ["a.weight[0]: 4", "b.weight[0]: 6", "c.weight[0]: 8"]

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(10, 8, 1)
        self.last = nn.Conv2d(8 + 10 + 4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        both = torch.cat([a, self.b(x)], 1)
        return self.last(torch.cat([self.c(both), both, a], 1))


class PixelShuffle(nn.Module):
    """Four neighbouring channels become one: they go together, or the picture is torn."""

    example, expected = IMAGE, ["up.weight[0]: 5"]

    def __init__(self) -> None:
        super().__init__()
        self.up, self.shuffle, self.last = nn.Conv2d(3, 20, 1), nn.PixelShuffle(2), nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shuffle(self.up(x)))


class ChannelShuffle(nn.Module):
    """Channels are dealt out over the groups of the next layer; all groups must stay equally wide."""

    example, expected = IMAGE, ["first.weight[0]: 16 in 4 blocks", "second.weight[0]: 8 in 2 blocks"]

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shuffle = nn.Conv2d(3, 16, 1), nn.ChannelShuffle(2)
        self.second, self.last = nn.Conv2d(16, 8, 1, groups=2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.shuffle(self.first(x))))


class RawParametersAndClassToken(nn.Module):
    """Parameters that no layer owns (a scale, positions, a class token) are as wide as the stream they join."""

    example, expected = TOKENS, ["embed.weight.T[1]: 16", "up.weight.T[1]: 20"]

    def __init__(self) -> None:
        super().__init__()
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 7, 16))
        self.embed, self.scale = nn.Linear(12, 16), nn.Parameter(torch.rand(16) + 0.5)
        self.up, self.down, self.head = nn.Linear(16, 20), nn.Linear(20, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(2, -1, -1), self.embed(x)], 1) + self.places
        x = x + self.down(functional.relu(self.up(x))) * self.scale
        return self.head(x[:, 0])


class GroupedQueries(nn.Module):
    """Several query heads read one key-value head: their depths are one group, and not as wide as the projection."""

    example, expected = TOKENS, ["q.weight.T[1]: 8 in 2 blocks", "v.weight.T[1]: 8 in 2 blocks"]

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 16), nn.Linear(12, 8), nn.Linear(12, 8)
        self.out = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).reshape(2, 6, 4, 4).transpose(1, 2)
        k, v = (m(x).reshape(2, 6, 2, 4).transpose(1, 2).repeat_interleave(2, 1) for m in (self.k, self.v))
        weights = (q @ k.transpose(2, 3)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(2, 6, -1))


class DecomposedLayerNorm(nn.Module):
    """Mean, difference, square and root by hand: statistics of size 1 must not tie the stream to anything."""

    example, expected = TOKENS, ["embed.weight.T[1]: 16"]

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(12, 16), nn.Linear(16, 3)
        self.weight, self.bias = nn.Parameter(torch.rand(16) + 0.5), nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return self.head(x * self.weight + self.bias)


class SharedModule(nn.Module):
    """A layer used twice is sliced once: what its two inputs and its two outputs carry are one group each."""

    example, expected = IMAGE, ["a.weight[0]: 8", "shared.weight[0]: 10"]

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 10, 1)
        self.last = nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shared(self.a(x)) + functional.relu(self.shared(self.b(x))))


FAILURES: list[Any] = [
    kind for kind in list(globals().values()) if isinstance(kind, type) and hasattr(kind, "expected")
]


@pytest.mark.parametrize("kind", FAILURES, ids=lambda kind: kind.__name__)
def test_known_failure_of_others(kind: Any) -> None:
    torch.manual_seed(0)
    module, x = kind().eval(), torch.randn(kind.example)
    graph = Pipeline("simplify")(load(module, args=(x,)))
    groups = dependency_groups(graph)
    assert sorted(described(groups)) == sorted(kind.expected)
    assert certify(graph, groups) <= TOLERANCE

    context = Context()
    pruned = Prune(ratio=0.5, metric="params")(graph, context)
    report = context.reports["prune"][0]
    assert report.reached == pytest.approx(0.5, abs=0.1)
    error = pruning_error(*report.selection, pruned)
    assert error is None or error <= TOLERANCE

    result = export(pruned, module).eval()
    assert sum(p.numel() for p in result.parameters()) < 0.65 * sum(p.numel() for p in module.parameters())
    (expected,) = execute(pruned, {pruned.inputs[0].name: x.numpy()}).values()
    actual = result(x)
    assert relative_difference({"y": actual.detach().numpy()}, {"y": np.asarray(expected)}) <= TOLERANCE
    actual.square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in result.parameters())
