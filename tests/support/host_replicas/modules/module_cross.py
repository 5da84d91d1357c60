"""The configuration of the hosts' models."""

from __future__ import annotations


class CrossConfig:
    def __init__(self, vocabulary: int, hidden_size: int, max_position_embeddings: int) -> None:
        self.hidden_size = hidden_size
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = 0.02
