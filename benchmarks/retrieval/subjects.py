"""What is measured: searches of a whole corpus, and what a pair costs in each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.retrieval.baselines import XClip, faiss_index, mean_pool_search, text_tower
from benchmarks.retrieval.corpus import Corpus, Shape, feature_rows, in_bytes, in_parts
from muse_adapter import EERCF, ExactRecall, TwoStageRetriever
from muse_adapter.ops import use_backend

CANDIDATES, HITS = 50, 10
MAX_EVERY_PATCH = 100_000  # videos

# Names of rows that others are compared with, in the table and by the targets.
COARSE, FAISS = "coarse: `ExactRecall`, half, with a copy", "coarse: faiss `IndexFlatIP`"
WITHOUT_COPY = "coarse: `ExactRecall`, half, without a copy"
HALVES = COARSE, WITHOUT_COPY  # rank vectors that are rounded to half precision
FRAMES, EVERYTHING = "two stages, frames", "everything, frames"
PATCHES, EVERY_PATCH = "two stages, patches in half", "everything, patches in half"
XCLIP = "X-CLIP's scorer"


class Subject(NamedTuple):
    """A search.

    Attributes:
        search: Positions of queries -> the best videos of each, (queries, `HITS` or more).
        operations: Multiply-adds for each pair of query and video.
        ranks: What a hit is decided by, which says whose first hit it has to equal: "coarse",
            "frames", "patches", "other".
    """

    search: Callable[[Tensor], Tensor]
    operations: float
    ranks: str


def subjects(corpus: Corpus, scorer: EERCF) -> tuple[dict[str, Subject], dict[str, str]]:
    """Build all searches of a corpus.

    Returns:
        Searches by name, and the reasons of those that do not run here.
    """
    shape, size = corpus.shape, corpus.size
    costs = operations(shape, size)
    found: dict[str, Subject] = {}
    missing: dict[str, str] = {}
    folded = scorer.recall_text(corpus.text).detach()

    halves = corpus.vectors.half()
    coarse = ExactRecall(halves, narrow_copy=True)

    def recall(index: Any, queries: Tensor) -> Tensor:
        return torch.as_tensor(index.search(folded[queries], CANDIDATES)[1])

    def faiss(index: Any, queries: Tensor) -> Tensor:
        return torch.from_numpy(index.search(folded[queries].numpy(), CANDIDATES)[1])

    found[COARSE] = Subject(functools.partial(recall, coarse), costs["coarse"], "coarse")
    found[WITHOUT_COPY] = Subject(
        functools.partial(recall, ExactRecall(halves)), costs["coarse"], "coarse"
    )
    wide = ExactRecall(corpus.vectors)
    found["coarse: `ExactRecall`, float32"] = Subject(
        functools.partial(recall, wide), costs["coarse"], "coarse"
    )
    try:
        index = faiss_index(corpus.vectors)
        found[FAISS] = Subject(functools.partial(faiss, index), costs["coarse"], "coarse")
    except ImportError as error:
        missing[FAISS] = str(error)

    def two_stages(features: Any, rerank: Callable[[Any, Any], Tensor]) -> Callable[..., Tensor]:
        retriever = TwoStageRetriever(coarse, features, rerank, candidates=CANDIDATES)

        def search(queries: Tensor) -> Tensor:
            hits = min(HITS, size)
            texts = {"text": corpus.text[queries], "recall_text": folded[queries]}
            ids, _ = retriever.search(texts, hits, recall_queries=texts["recall_text"])
            return torch.as_tensor(ids)

        return search

    def by_rows(query: dict[str, Tensor], features: dict[str, Any]) -> Tensor:
        return scorer.rerank_candidates(**query, **features)

    frames = {"frames": corpus.frames, "fused": corpus.fused}
    patches = corpus.patches
    stored = {"half": patches, "float32": patches.float(), "int8": in_bytes(patches)}
    found[FRAMES] = Subject(
        two_stages(feature_rows(size, **frames), by_rows), costs["two, frames"], "frames"
    )
    for name, patches in stored.items():
        found[f"two stages, patches in {name}"] = Subject(
            two_stages(feature_rows(size, **frames, patches=patches), by_rows),
            costs["two, patches"],
            "patches",
        )

    def without_numba(query: dict[str, Tensor], features: dict[str, Any]) -> Tensor:
        with use_backend("torch"):
            return by_rows(query, features)

    found[f"{PATCHES}, without numba"] = Subject(
        two_stages(feature_rows(size, **frames, patches=corpus.patches), without_numba),
        costs["two, patches"],
        "patches",
    )
    found[EVERYTHING] = Subject(
        functools.partial(score_all, scorer, corpus, ()), costs["all, frames"], "frames"
    )
    if size <= MAX_EVERY_PATCH:
        found[EVERY_PATCH] = Subject(
            functools.partial(score_all, scorer, corpus, (corpus.patches,)),
            costs["all, patches"],
            "patches",
        )
    else:
        missing[EVERY_PATCH] = f"not run above {MAX_EVERY_PATCH:,} videos: it would take minutes"
    xclip = XClip(corpus.fused, shape.words)

    def by_xclip(queries: Tensor) -> Tensor:
        scores = xclip.scores(corpus.text[queries], corpus.words[queries], size)
        return scores.topk(min(HITS, size), dim=1).indices

    found[XCLIP] = Subject(by_xclip, costs["xclip"], "other")
    found["CLIP4Clip's mean pooling"] = Subject(
        lambda queries: mean_pool_search(corpus.vectors, corpus.text[queries], HITS),
        costs["coarse"],
        "other",
    )
    return found, missing


def score_all(
    scorer: EERCF, corpus: Corpus, patches: tuple[Tensor, ...], queries: Tensor
) -> Tensor:
    """Rank all videos by the fine score, (queries, `HITS`)."""
    text = corpus.text[queries]

    def score(*part: Tensor) -> Tensor:
        if len(text) == 1:  # in one pass over the features as they are
            return scorer.rerank_candidates(text[0], *part)[None]
        return scorer.rerank(text, *part)

    parts = in_parts(corpus.size, corpus.frames, corpus.fused, *patches)
    scores = torch.cat([score(*part) for part in parts], 1)
    return scores.topk(min(HITS, corpus.size), dim=1).indices


def text_towers(shape: Shape) -> dict[str, Callable[[], Tensor]]:
    """Build the run of a text tower for a single query."""
    tower, tokens = text_tower(shape.dim), torch.randn(1, 77, shape.dim)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(77)
    return {"a text tower of CLIP's size": lambda: tower(tokens, mask=mask, is_causal=True)}


def operations(shape: Shape, size: int) -> dict[str, float]:
    """Count multiply-adds for each pair of query and video, softmax and norms left out.

    Args:
        shape: Of the corpus.
        size: Videos N.

    Returns:
        By kind of search.
    """
    frames, patches, dim, words = shape.frames, shape.patches, shape.dim, shape.words
    part = min(CANDIDATES, size) / size
    fine = 2 * frames * dim + dim  # gate, gated sum, product with the text
    with_patches = fine + frames * patches * dim
    products = (words + 1) * frames * dim + (words + 1) * dim
    mixing = words**2 * frames + frames**2 * words + 2 * (words**2 + frames**2)
    return {
        "coarse": dim,
        "two, frames": dim + part * fine,
        "two, patches": dim + part * with_patches,
        "all, frames": dim + fine,
        "all, patches": dim + with_patches,
        "xclip": products + mixing,
    }
