"""Similarities normalised over queries, as papers report beside the plain ones."""

from __future__ import annotations

import torch
from torch import Tensor

from muse_adapter.retrieval.checks import as_matrix


def dual_softmax(similarity: Tensor, *, temperature: float = 0.01) -> Tensor:
    """Weight each similarity by the softmax over the queries (CAMoE's dual softmax, DSL).

    Every query of the test set takes part, so results are not comparable with those of single
    queries. For the other direction, transpose the matrix before and after.

    Args:
        similarity: (queries, gallery), cosines.
        temperature: Divides the cosines in the softmax; 0.01 is the inverse of CLIP's logit scale.

    Returns:
        (queries, gallery), float64, on the CPU: in float32, weights of exp(-100) would be zero and
        so tied.

    Raises:
        TypeError: `similarity` is neither a floating point tensor nor such a numpy array.
        ValueError: `similarity` is no matrix of finite numbers, or `temperature` is not positive.
    """
    wide = as_matrix("similarity", "queries", similarity).cpu().double()
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return wide * (wide / temperature).softmax(0)


def query_bank_normalization(
    similarity: Tensor, bank: Tensor, *, temperature: float = 0.05
) -> Tensor:
    """Lower the similarity of gallery items that many queries are close to (QB-Norm).

    The dynamic inverted softmax: a query whose best item is the best of a bank query too gets
    `s - temperature * log(sum over the bank of exp(b / temperature))` for each item, which is
    `temperature` times the logarithm of the inverted softmax. Other queries keep their
    similarities. Only values of one row are comparable.

    Args:
        similarity: (queries, gallery), cosines.
        bank: (bank queries, gallery), cosines of other queries, such as those of the training set,
            with the same gallery.
        temperature: 0.05 is the published inverse temperature of 20.

    Returns:
        (queries, gallery), float64, on the CPU.

    Raises:
        ValueError: The shapes do not fit, the bank is empty, or `temperature` is not positive.
    """
    wide = as_matrix("similarity", "queries", similarity).cpu().double()
    bank = as_matrix("bank", "bank queries", bank).cpu().double()
    if wide.shape[1] != bank.shape[1]:
        raise ValueError(
            "similarity (queries, gallery) and bank (bank queries, gallery) must be of one "
            f"gallery, got {tuple(wide.shape)} and {tuple(bank.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    hub = torch.zeros(wide.shape[1], dtype=torch.bool)
    hub[bank.argmax(1)] = True
    lowered = wide - temperature * (bank / temperature).logsumexp(0)
    return torch.where(hub[wide.argmax(1)][:, None], lowered, wide)
