"""What patches in int8 cost in ranking, beyond first hits that are right in any type."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.retrieval.corpus import Corpus, Shape, in_bytes
from benchmarks.retrieval.subjects import CANDIDATES, HITS
from benchmarks.retrieval.table import Row
from muse_adapter import EERCF, ExactRecall

ALIKE = 0.9  # of near duplicates


def near_duplicates(shape: Shape) -> Corpus:
    """Make as many videos as there are candidates, whose scores are close."""
    sizes = dict.fromkeys(("distinct", "distinct_patches", "queries"), CANDIDATES)
    return Corpus(CANDIDATES, shape._replace(alike=ALIKE, **sizes))


def order_in_bytes(corpus: Corpus, numbers: Tensor | None = None) -> Row:
    """Compare the order of the candidates by patches in int8 with that by patches in half.

    Args:
        corpus: All its videos have patches of their own.
        numbers: (N, T, P, D), the patches in int8; None: as `in_bytes` rounds them.

    Returns:
        `videos` and `alike` of the corpus; `same_ten`, the share of the first ten that is the same;
        `places_off`, the places that a candidate moves by, on average; and `right_first`, for
        either type.
    """
    scorer = EERCF(corpus.shape.dim, corpus.shape.frames)
    numbers = in_bytes(corpus.patches) if numbers is None else numbers
    recall = ExactRecall(corpus.vectors.half())
    _, found = recall.search(scorer.recall_text(corpus.text), CANDIDATES)

    def order(query: int, patches: Tensor) -> Tensor:
        features = (corpus.frames, corpus.fused, patches)
        rows = ([array[i] for i in found[query]] for array in features)
        return scorer.rerank_candidates(corpus.text[query], *rows).argsort(descending=True)

    queries = range(len(corpus.text))
    half, int8 = (
        torch.stack([order(query, patches) for query in queries])
        for patches in (corpus.patches, numbers)
    )
    places, new_places = half.argsort(1), int8.argsort(1)
    ten = min(HITS, half.shape[1])
    answers = [torch.as_tensor(found).gather(1, each[:, :1])[:, 0] for each in (half, int8)]
    right = [(each == corpus.answers).double().mean().item() for each in answers]
    return {
        "videos": corpus.size,
        "alike": corpus.shape.alike,
        "same_ten": ((places < ten) & (new_places < ten)).sum().item() / (ten * len(queries)),
        "places_off": (places - new_places).abs().double().mean().item(),
        "right_first": dict(zip(("half", "int8"), right, strict=True)),
    }
