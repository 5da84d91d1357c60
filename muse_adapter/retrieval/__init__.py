"""Retrieval: from scores to rankings and their metrics."""

from muse_adapter.retrieval.metrics import retrieval_metrics

__all__ = ["retrieval_metrics"]
