"""Retrieval: search in two stages, and from scores to rankings and their metrics."""

from muse_adapter.retrieval.exact_recall import ExactRecall
from muse_adapter.retrieval.metrics import retrieval_metrics
from muse_adapter.retrieval.normalization import dual_softmax, query_bank_normalization
from muse_adapter.retrieval.two_stage import TwoStageRetriever
from muse_adapter.retrieval.vectors import FeatureRows

__all__ = [
    "ExactRecall",
    "FeatureRows",
    "TwoStageRetriever",
    "dual_softmax",
    "query_bank_normalization",
    "retrieval_metrics",
]
