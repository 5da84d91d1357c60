"""Agreement with plain formulas, pair by pair, before anything is timed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.correctness import require_agreement
from benchmarks.retrieval.baselines import XCLIP_TEMPERATURE, XClip, mean_pool_search
from benchmarks.retrieval.corpus import Corpus, Shape, feature_rows, in_bytes
from benchmarks.retrieval.subjects import HALVES, score_all, subjects
from muse_adapter import EERCF, ExactRecall, TwoStageRetriever

SIZE = 60  # videos of the corpus that is checked: more than candidates


def check(shape: Shape) -> None:
    """Compare all searches with plain formulas, on a small corpus.

    Raises:
        SystemExit: One differs.
    """
    corpus = Corpus(SIZE, shape._replace(distinct=SIZE, distinct_patches=SIZE, queries=2))
    scorer = EERCF(shape.dim, shape.frames)
    with torch.no_grad():
        _two_stages(corpus, scorer)
        _bytes(corpus, scorer)
        _xclip(corpus)
        _coarse(corpus, scorer)


def _two_stages(corpus: Corpus, scorer: EERCF) -> None:
    """With all videos as candidates, two stages are the exhaustive ranking, and that is EERCF's."""
    queries = torch.arange(len(corpus.text))
    features = {"frames": corpus.frames, "fused": corpus.fused}
    for name in ("frames", "patches"):
        patches = (corpus.patches,) if name == "patches" else ()
        if patches:
            features["patches"] = corpus.patches
        retriever = TwoStageRetriever(
            ExactRecall(corpus.vectors.half()),
            feature_rows(corpus.size, **features),
            lambda text, rows: scorer.rerank_candidates(text, **rows),
            candidates=corpus.size,
        )
        recall = scorer.recall_text(corpus.text)
        ids, scores = retriever.search(corpus.text, corpus.size, recall_queries=recall)
        expected = _eercf(corpus, scorer, bool(patches))
        in_order = torch.empty(scores.shape).scatter(1, torch.as_tensor(ids), scores)
        require_agreement({"scores": in_order}, {"scores": expected}, f"two stages, {name}")
        _require_best(score_all(scorer, corpus, patches, queries), expected, f"everything, {name}")
        _require_best(torch.as_tensor(ids)[:, :1], expected, f"two stages, {name}")


def _eercf(corpus: Corpus, scorer: EERCF, with_patches: bool) -> Tensor:
    """Compute EERCF's rerank scores (A, N) by their formulas, learned matrices at the identity."""

    def weak(text: Tensor, tokens: Tensor) -> Tensor:
        similarities = tokens @ text
        return similarities @ (similarities / scorer.weak_temperature).softmax(0)

    of_video, of_frames, of_patches, of_gated, _ = scorer.rerank_weights
    rows = []
    for text in corpus.text.double():
        row = []
        for i in range(corpus.size):
            frames, fused = (
                F.normalize(tokens[i].double(), dim=-1) for tokens in (corpus.frames, corpus.fused)
            )
            gate = (frames @ text / scorer.frame_temperature).softmax(0)
            video = fused.mean(0)
            score = of_video * F.cosine_similarity(text, video, dim=0)
            score = score + of_frames * weak(text, frames)
            score = score + of_gated * F.cosine_similarity(text, gate @ fused, dim=0)
            if with_patches:
                patches = F.normalize(corpus.patches[i].double().flatten(0, 1), dim=-1)
                score = score + of_patches * weak(text, patches)
            row.append(score)
        rows.append(torch.stack(row))
    return torch.stack(rows).float()


def _bytes(corpus: Corpus, scorer: EERCF) -> None:
    """Scores by bytes are those of the same numbers in float32, and close to those of halves."""
    numbers = in_bytes(corpus.patches)
    text, features = corpus.text[0], (corpus.frames, corpus.fused)
    got = scorer.rerank_candidates(text, *features, numbers)
    for patches, bound in ((numbers.float(), 1e-5), (corpus.patches, 1e-2)):
        expected = scorer.rerank_candidates(text, *features, patches)
        require_agreement({"scores": got}, {"scores": expected}, "patches in int8", bound)


def _xclip(corpus: Corpus) -> None:
    """X-CLIP's scores, pair by pair, in float64."""
    xclip = XClip(corpus.fused, corpus.shape.words)
    got = xclip.scores(corpus.text, corpus.words, corpus.size)
    matrices = {name: matrix.double() for name, matrix in xclip.matrices.items()}

    def weighted(similarities: Tensor, mix: str) -> Tensor:
        weights = (similarities / XCLIP_TEMPERATURE).softmax(0)
        return similarities @ (weights @ matrices[mix])

    def columns(similarities: Tensor, mix: str) -> Tensor:
        weights = (similarities / XCLIP_TEMPERATURE).softmax(0)
        return (similarities * (matrices[mix].T @ weights)).sum(0)

    expected = torch.empty(got.shape)
    for a in range(len(got)):
        text, words = corpus.text[a].double(), corpus.words[a].double()
        for b, features in enumerate(corpus.fused.double()):
            frames = F.normalize(features, dim=-1)
            video = F.normalize(frames.mean(0), dim=0)
            pairs = words @ matrices["local"] @ frames.T  # (W, T)
            score = text @ matrices["global"] @ video
            score = score + weighted(words @ video, "word") + weighted(frames @ text, "frame")
            frame_level = weighted(columns(pairs, "words"), "frames_last")
            word_level = weighted(columns(pairs.T, "frames"), "words_last")
            expected[a, b] = (score + (frame_level + word_level) / 2) / 4
    require_agreement({"scores": got}, {"scores": expected}, "X-CLIP's scorer")


def _coarse(corpus: Corpus, scorer: EERCF) -> None:
    """Every coarse search finds the largest inner products; so does CLIP4Clip's."""
    queries = torch.arange(len(corpus.text))
    exact = corpus.text.double() @ corpus.vectors.double().T
    rounded = corpus.text.double() @ corpus.vectors.half().double().T
    pooled = F.normalize(F.normalize(corpus.fused.double(), dim=-1).mean(1), dim=-1)
    of_frames = F.cosine_similarity(corpus.text.double()[:, None], pooled[None], dim=2)
    found = mean_pool_search(corpus.vectors, corpus.text, corpus.size)
    _require_best(found, of_frames.float(), "CLIP4Clip's mean pooling")
    searches, _ = subjects(corpus, scorer)
    for name, subject in searches.items():
        if name.startswith("coarse"):
            expected = rounded if name in HALVES else exact
            _require_best(subject.search(queries), expected.float(), name)


def _require_best(found: Tensor, scores: Tensor, what: str) -> None:
    """End the run where what was found does not have the best scores, in their order."""
    best = scores.topk(found.shape[1], dim=1).values
    require_agreement({"the best scores": scores.gather(1, found)}, {"the best scores": best}, what)
