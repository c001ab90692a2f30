"""DETR and Deformable DETR (Carion et al., 2020; Zhu et al., 2021): object queries, attention that samples an image."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from tests.zoo.blocks import conv_bn
from tests.zoo.entry import Entry, exported


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, heads * depth) for _ in range(3))
        self.out = nn.Linear(heads * depth, width)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            m(t).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for m, t in ((self.q, query), (self.k, key), (self.v, value))
        )
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DeformableAttention(nn.Module):
    """Each query and head samples `points` places of an image of values, at offsets that the query predicts."""

    def __init__(self, width: int, heads: int, depth: int, points: int = 3) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.offsets, self.weights = nn.Linear(width, heads * points * 2), nn.Linear(width, heads * points)
        self.values, self.out = nn.Linear(width, heads * depth), nn.Linear(heads * depth, width)

    def forward(self, query: torch.Tensor, reference: torch.Tensor, image: torch.Tensor, side: int) -> torch.Tensor:
        count = query.shape[1]
        values = self.values(image).transpose(1, 2).reshape(self.heads, -1, side, side)
        offsets = self.offsets(query).view(1, count, self.heads, self.points, 2)
        places = (reference[:, :, None, None] + offsets / side) * 2 - 1
        weights = self.weights(query).view(1, count, self.heads, self.points).softmax(-1)
        sampled = functional.grid_sample(values, places[0].transpose(0, 1), align_corners=False)
        mixed = (sampled * weights[0].transpose(0, 1)[:, None]).sum(-1)
        return self.out(mixed.reshape(1, -1, count).transpose(1, 2))


class Hidden(nn.Module):
    """A hidden layer, added, and a LayerNorm after it."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.mlp(x))


class Decoder(nn.Module):
    """Self-attention among the queries, attention to the encoded image, a hidden layer."""

    def __init__(self, width: int, depths: tuple[int, int], hidden: int, deformable: bool) -> None:
        super().__init__()
        self.deformable = deformable
        self.self_attention = Attention(width, 2, depths[0])
        self.cross_attention = (DeformableAttention if deformable else Attention)(width, 2, depths[1])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.hidden = Hidden(width, hidden)

    def forward(
        self, y: torch.Tensor, queries: torch.Tensor, memory: torch.Tensor, where: torch.Tensor
    ) -> torch.Tensor:
        query = y + queries
        y = self.norms[0](y + self.self_attention(query, query, y))
        query = y + queries
        if self.deformable:
            mixed = self.cross_attention(query, where, memory, 4)
        else:
            mixed = self.cross_attention(query, memory + where, memory)
        return self.hidden(self.norms[1](y + mixed))


class DETR(nn.Module):
    def __init__(self, deformable: bool) -> None:
        super().__init__()
        width = 20
        self.deformable = deformable
        self.backbone = nn.Sequential(conv_bn(3, 8, 3, 2), conv_bn(8, 12, 3, 2), nn.Conv2d(12, width, 1))
        self.register_buffer("places", torch.randn(1, 16, width))
        self.register_buffer("centres", torch.rand(1, 16, 2))
        self.queries = nn.Parameter(torch.randn(1, 5, width))
        self.reference = nn.Linear(width, 2)
        self.encoder = (DeformableAttention if deformable else Attention)(width, 2, 7)
        self.norm, self.hidden = nn.LayerNorm(width), Hidden(width, 40)
        self.decoders = nn.ModuleList(
            [Decoder(width, (8, 9), 44, deformable), Decoder(width, (10, 11), 48, deformable)]
        )
        self.classes = nn.Linear(width, 6)
        self.boxes = nn.Sequential(nn.Linear(width, 18), nn.ReLU(), nn.Linear(18, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.backbone(x).flatten(2).transpose(1, 2)
        placed = x + self.places
        mixed = self.encoder(placed, self.centres, x, 4) if self.deformable else self.encoder(placed, placed, x)
        memory = self.hidden(self.norm(x + mixed))
        where = self.reference(self.queries).sigmoid() if self.deformable else self.places
        y = torch.zeros_like(self.queries)
        for decoder in self.decoders:
            y = decoder(y, self.queries, memory, where)
        return self.classes(y), self.boxes(y).sigmoid()


# Backbone, the encoder's stream, the decoders' stream (with the queries), hidden layers, the box head.
_COMMON = ("8", "12", "20", "20", "40", "44", "48", "18", "16")

NETWORKS = {
    # The first decoder's self-attention reads nothing but the queries, so simplification folds it to a constant; the
    # queries of its attention to the image are one, too.
    "detr": Entry(
        exported(lambda: DETR(False), (1, 3, 16, 16)),
        (*_COMMON, *["14 in 2 blocks"] * 2, *["18 in 2 blocks"] * 2, *["20 in 2 blocks"] * 2, *["22 in 2 blocks"] * 2),
        heads=("2",) * 4,
    ),
    # Of each deformable attention: its values, and its points (3 in each of 2 heads: two offsets and a weight each);
    # the first decoder's offsets and weights are constants.
    "deformable": Entry(
        exported(lambda: DETR(True), (1, 3, 16, 16)),
        (
            *(*_COMMON, "14 in 2 blocks", "18 in 2 blocks", *["20 in 2 blocks"] * 2, "22 in 2 blocks"),
            *["6 in 2 blocks"] * 3,
        ),
        heads=("2",) * 4,
        one_batch=True,
        closed="its encoder samples an image of 4 x 4",
    ),
}
