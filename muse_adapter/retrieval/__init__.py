"""Retrieval: from scores to rankings and their metrics."""

from muse_adapter.retrieval.metrics import retrieval_metrics
from muse_adapter.retrieval.normalization import dual_softmax, query_bank_normalization

__all__ = ["dual_softmax", "query_bank_normalization", "retrieval_metrics"]
