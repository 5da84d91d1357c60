"""Evaluation on the video retrieval tasks of mteb. Needs the extra `mteb`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sentence_transformers import MultiVectorEncoder, SentenceTransformer
from torch import Tensor

from muse_adapter.retrieval import ExactRecall, TwoStageRetriever
from muse_adapter.sentence_transformers.module import VideoTransformer

try:
    from mteb.models.sentence_transformer_wrapper import (
        MultiVectorWrapper,
        SentenceTransformerEncoderWrapper,
    )
except ImportError as error:
    raise ImportError(
        "muse_adapter.sentence_transformers.mteb needs mteb: pip install 'muse-adapter[mteb]'"
    ) from error


def as_encoder(
    model: SentenceTransformer | MultiVectorEncoder,
    *,
    name: str | None = None,
    revision: str | None = None,
) -> Any:
    """Wrap a model for `mteb.evaluate`, by the wrapper that mteb has for its class.

    mteb takes every model of sentence-transformers for one of texts, and one that was not loaded
    from the hub for the model that its weights come from. The wrapper gets the modalities, the
    name, and the sampling of frames: mteb decodes all frames of a video where it knows none.

    Args:
        model: A model whose first module is a `VideoTransformer`.
        name: "owner/name", under which mteb keeps the results. None: that on the hub, for a model
            which was loaded from there.
        revision: Of the model, kept with the name. None: the commit on the hub, where `name` is
            None too.

    Returns:
        mteb's `SentenceTransformerEncoderWrapper`, or its `MultiVectorWrapper`.

    Raises:
        TypeError: The first module is another one.
        ValueError: `name` is missing, or has another form.
    """
    module = model[0]
    if not isinstance(module, VideoTransformer):
        raise TypeError(
            f"the first module of the model must be a VideoTransformer, got {type(module).__name__}"
        )
    if name is None and module.saved_in is not None and module.saved_in[1] is not None:
        name, revision = module.saved_in
    if name is None or "/" not in name:
        raise ValueError(
            'mteb keeps results by the name of a model: name="owner/name" is needed for a model '
            f"that was not loaded from the hub, got {name!r}"
        )
    sampling: dict[str, Any] = {"num_frames": module.num_frames}
    if module.fps is not None:
        sampling = {"fps": module.fps, "max_frames": module.num_frames}
    late = isinstance(model, MultiVectorEncoder)
    wrapper = (MultiVectorWrapper if late else SentenceTransformerEncoderWrapper)(model, **sampling)
    known: dict[str, Any] = {
        "name": name,
        "revision": revision or "no_revision_available",
        "modalities": ["text", "image", "video"],
        # Results of other settings are kept apart.
        "experiment_kwargs": sampling,
    }
    wrapper.mteb_model_meta = wrapper.mteb_model_meta.model_copy(update=known)
    return wrapper


class TwoStageSearch:
    """Search videos by text in two stages, as mteb's `SearchProtocol`.

    The cosines of texts and videos choose candidates, and their frames order these, see
    `VideoTransformer.score_frames`. A query gets no result beyond its candidates, so recall at a
    larger k is that at `candidates`. In a task of reranking, mteb gives the candidates.

    Args:
        model: A model whose first module is a `VideoTransformer`.
        candidates: Number of videos of the first stage.
        name: See `as_encoder`.
        revision: See `as_encoder`.

    Attributes:
        mteb_model_meta: What mteb keeps with the results; the candidates are part of it.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        candidates: int = 50,
        name: str | None = None,
        revision: str | None = None,
    ) -> None:
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {candidates}")
        meta = as_encoder(model, name=name, revision=revision).mteb_model_meta
        experiment = {**meta.experiment_kwargs, "candidates": candidates}
        self.mteb_model_meta = meta.model_copy(update={"experiment_kwargs": experiment})
        self.model = model
        self.candidates = candidates
        self._recall: ExactRecall | None = None
        self._frames = _Frames()

    def index(self, corpus: Any, *, encode_kwargs: Mapping[str, Any], **task: Any) -> None:
        """Embed the videos of a corpus, and keep the vectors and the frames of each.

        Args:
            corpus: A `datasets.Dataset` with the columns "id" and "video". Of a video that is a
                decoder of torchcodec, only the sampled frames are decoded.
            encode_kwargs: Of `encode_document`.
            **task: What mteb tells of the task; not used.

        Raises:
            ValueError: The documents are no videos, or an id is repeated.
        """
        corpus = _columns(corpus, "document", "id", "video")
        if repeated := [name for name, count in Counter(corpus["id"]).items() if count > 1]:
            raise ValueError(
                f"{len(repeated)} ids of the corpus are repeated, the first {repeated[0]!r}"
            )
        options = {"batch_size": 32, **encode_kwargs}
        options |= {"output_value": None, "show_progress_bar": False}
        vectors: list[Tensor] = []
        self._frames = _Frames()
        for start in range(0, len(corpus), options["batch_size"]):
            rows = corpus[start : start + options["batch_size"]]
            outputs: Any = self.model.encode_document(rows["video"], **options)
            for document, output in zip(rows["id"], outputs, strict=True):
                vectors.append(output["sentence_embedding"].float().cpu())
                frames = output["token_embeddings"][output["attention_mask"].bool()]
                self._frames.of[document] = frames.float().cpu()
        self._recall = ExactRecall(torch.stack(vectors), list(self._frames.of))

    def search(
        self,
        queries: Any,
        *,
        top_k: int,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        **task: Any,
    ) -> dict[str, dict[str, float]]:
        """Search the corpus.

        Args:
            queries: A `datasets.Dataset` with the columns "id" and "text".
            top_k: Largest number of videos of a query.
            encode_kwargs: Of `encode_query`.
            top_ranked: Candidates of each query, from a task of reranking; a query that is not in
                it gets no results.
            **task: What mteb tells of the task; not used.

        Returns:
            Scores of videos by their ids, for each id of a query.

        Raises:
            RuntimeError: `index` was not called before.
            ValueError: The queries are no texts.
        """
        if self._recall is None:
            raise RuntimeError("no corpus was indexed: call index first")
        queries = _columns(queries, "query", "id", "text")
        names = list(queries["id"])
        if not names:
            return {}
        vectors: Any = self.model.encode_query(
            list(queries["text"]), **{**encode_kwargs, "convert_to_tensor": True}
        )
        recall: Any = self._recall
        candidates = self.candidates
        if top_ranked is not None:
            recall = _Given([list(top_ranked.get(name, ())) for name in names])
            candidates = max(1, *map(len, recall.ids))
        retriever = TwoStageRetriever(
            recall, self._frames, self.model[0].score_frames, candidates=candidates
        )
        found, scores = retriever.search(vectors.float().cpu(), min(top_k, candidates))
        return {
            name: {
                document: score
                for document, score in zip(documents, row, strict=True)
                if document is not None
            }
            for name, documents, row in zip(names, found, scores.tolist(), strict=True)
        }


class _Frames:
    """Frames (T, D) of videos, which `TwoStageRetriever` reads by the ids of candidates."""

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}

    def __getitem__(self, ids: Sequence[str]) -> list[Tensor]:
        return [self.of[each] for each in ids]


class _Given:
    """Candidates that are known before the search."""

    def __init__(self, ids: list[list[str]]) -> None:
        self.ids = ids

    def search(self, vectors: Tensor, k: int, /) -> tuple[None, list[list[str]]]:
        return None, self.ids


def _columns(dataset: Any, kind: str, *names: str) -> Any:
    """Return the columns that are read: mteb would decode the others too."""
    if missing := set(names) - set(dataset.column_names):
        raise ValueError(
            "two stages search videos by text: expected the columns "
            f"{' and '.join(names)} of a {kind}, got no {' and no '.join(sorted(missing))}"
        )
    return dataset.select_columns(list(names))
