"""Sequence taggers: two-layer bidirectional LSTM and GRU over word embeddings, and a one-way LSTM with projections."""

from __future__ import annotations

import torch
from torch import nn

from tests.zoo.entry import Entry, exported, ids


class Tagger(nn.Module):
    """A hidden layer between the recurrent ones and the tags."""

    def __init__(self, kind: type[nn.RNNBase], both_ways: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 14)
        self.first = kind(14, 10, batch_first=True, bidirectional=both_ways)
        self.second = kind(20 if both_ways else 10, 12, batch_first=True, bidirectional=both_ways)
        self.hidden, self.tags = nn.Linear(24 if both_ways else 12, 16), nn.Linear(16, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, _ = self.second(self.first(self.words(tokens))[0])
        return self.tags(torch.relu(self.hidden(x)))


# The embedding, the hidden units of two layers (each way by itself, equally many both ways), the hidden layer.
_BOTH = ("14", "20 in 2 blocks", "24 in 2 blocks", "16")

NETWORKS = {
    "lstm": Entry(
        exported(lambda: Tagger(nn.LSTM, True), ids(1, 6)),
        _BOTH,
        axes=({1: "words"},),
    ),
    "gru": Entry(
        exported(lambda: Tagger(nn.GRU, True), ids(1, 6)),
        _BOTH,
        axes=({1: "words"},),
    ),
    "lstm_one_way": Entry(
        exported(lambda: Tagger(nn.LSTM, False), ids(1, 6)),
        ("14", "10", "12", "16"),
        axes=({1: "words"},),
    ),
}
