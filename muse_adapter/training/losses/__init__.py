"""Losses over scores of texts and videos, and over their embeddings."""

from muse_adapter.training.losses.contrastive import contrastive_loss, sigmoid_loss
from muse_adapter.training.losses.correlation import pearson_constraint
from muse_adapter.training.losses.partially_relevant import (
    multi_positive_nce,
    query_diverse_loss,
    triplet_loss,
)

__all__ = [
    "contrastive_loss",
    "multi_positive_nce",
    "pearson_constraint",
    "query_diverse_loss",
    "sigmoid_loss",
    "triplet_loss",
]
