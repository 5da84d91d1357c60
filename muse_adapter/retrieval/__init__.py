"""From scores to rankings: retrieval metrics."""

from muse_adapter.retrieval.metrics import retrieval_metrics

__all__ = ["retrieval_metrics"]
