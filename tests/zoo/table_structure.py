"""Table structure recognition (Nassar et al., 2022): an image encoder, a decoder of tags, boxes of cells."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.blocks import conv_bn
from tests.zoo.entry import Entry, exported, ids


class TagLayer(nn.TransformerDecoderLayer):
    """PyTorch's own layer, whose attention packs three projections in one matrix; only the last tag is computed."""

    def forward(self, tags: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        last = tags[:, -1:]
        last = self.norm1(last + self.self_attn(last, tags, tags, need_weights=False)[0])
        last = self.norm2(last + self.multihead_attn(last, memory, memory, need_weights=False)[0])
        return self.norm3(last + self.linear2(torch.relu(self.linear1(last))))


class TableFormer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        width = 16
        self.image = nn.Sequential(conv_bn(3, 8, 3, 2), conv_bn(8, 10, 3, 2), nn.Conv2d(10, width, 1))
        self.encoder = nn.TransformerEncoderLayer(width, 2, 40, batch_first=True)
        self.words, self.places = nn.Embedding(12, width), nn.Parameter(torch.randn(6, width) * 0.1)
        self.decoder = TagLayer(width, 2, 44, batch_first=True)
        self.tags = nn.Linear(width, 12)
        self.score_image, self.score_tag, self.score = nn.Linear(width, 18), nn.Linear(width, 18), nn.Linear(18, 1)
        self.gate = nn.Linear(width, width)
        self.boxes = nn.Sequential(nn.Linear(width, 20), nn.ReLU(), nn.Linear(20, 4))

    def forward(self, x: torch.Tensor, tags: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        memory = self.encoder(self.image(x).flatten(2).transpose(1, 2))
        last = self.decoder(self.words(tags) + self.places, memory)
        scores = self.score(torch.relu(self.score_image(memory) + self.score_tag(last))).softmax(1)
        seen = (scores * memory).sum(1, keepdim=True) * torch.sigmoid(self.gate(last))
        return self.tags(last), self.boxes(seen).sigmoid()


NETWORKS = {
    # Encoder and decoder have streams of their own: additive attention meets in its scores (18), and the gate (16 by
    # itself) in the encoder's. Three attentions of 2 x 8, whose packed projections
    # keep keys and values equally deep; hidden layers, boxes.
    "tableformer": Entry(
        exported(TableFormer, (1, 3, 16, 16), ids(1, 6)),
        ("8", "10", "16", "16", *["32 in 4 blocks"] * 3, "40", "44", "18", "20"),
        heads=("2",) * 3,
        closed="the exporter spells the number of tokens of MultiheadAttention out",
    )
}
