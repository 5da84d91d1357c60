"""Models by duck typing: embeddings of queries and videos, frame features, the second stage."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from muse_adapter.search.documents import FrameSampling


class Model(Protocol):
    """What embeds queries and videos, such as a `SentenceTransformer`."""

    def encode_query(self, queries: list[str], /) -> Any:
        """Return embeddings (A, D) of texts."""
        ...

    def encode_document(self, documents: list[Any], /) -> Any:
        """Return embeddings (B, D) of videos."""
        ...


# From the embedding (D,) of a query and the frame features of K candidates, each (T, F) with its
# own T, to their scores (K,).
FrameScorer = Callable[[Tensor, list[Tensor]], Any]


class Embedded(NamedTuple):
    """Embeddings of documents.

    Attributes:
        vectors: (B, D), unit norm, float32.
        frames: Frame features of each, (T, F); None without them.
    """

    vectors: Tensor
    frames: list[Tensor] | None


def check_model(model: Any) -> None:
    """Check that a model has the two methods.

    Raises:
        TypeError: It lacks one.
    """
    for method in ("encode_query", "encode_document"):
        if not callable(getattr(model, method, None)):
            raise TypeError(
                "model must have encode_query and encode_document, as a SentenceTransformer has "
                f"them; {type(model).__name__} has no {method}"
            )


def embed_queries(model: Model, queries: list[str]) -> Tensor:
    """Embed texts.

    Returns:
        (A, D), unit norm, float32, on the CPU.

    Raises:
        ValueError: The embeddings are not finite, or of another shape.
    """
    with torch.no_grad():
        return _unit("encode_query", model.encode_query(queries), len(queries))


def embed_documents(model: Any, documents: list[Any], *, frame_features: bool) -> Embedded:
    """Embed videos.

    Args:
        model: Gives frame features by `encode_document(documents, output_value=None)`: for each
            document a mapping with "sentence_embedding" (D,), "token_embeddings" (T, F) and, where
            some of them are padding, "attention_mask" (T,).
        documents: Paths or frames.
        frame_features: Whether to return frame features.

    Raises:
        ValueError: The embeddings are not finite, or of another shape.
    """
    with torch.no_grad():
        if not frame_features:
            vectors = _unit("encode_document", model.encode_document(documents), len(documents))
            return Embedded(vectors, None)
        outputs = model.encode_document(documents, output_value=None)
        found = [as_tensor(output["sentence_embedding"]) for output in outputs]
        frames = [_frame_features(output) for output in outputs]
        return Embedded(_unit("encode_document", found, len(documents)), frames)


def gives_frame_features(model: Any) -> bool:
    """Return whether `encode_document` can return what is below its embedding."""
    try:
        return "output_value" in inspect.signature(model.encode_document).parameters
    except (TypeError, ValueError):  # a callable that does not tell
        return False


def frame_sampling_of(model: Any) -> FrameSampling | None:
    """Return how the model wants frames; None: it reads the videos itself."""
    num_frames = _attribute(model, "num_frames")
    return None if num_frames is None else FrameSampling(num_frames, _attribute(model, "fps"))


def frame_scorer_of(model: Any) -> FrameScorer | None:
    """Return what scores frame features, `score_frames(query, frames)`; None: nothing."""
    return _attribute(model, "score_frames")


def _attribute(model: Any, name: str) -> Any:
    """Return an attribute of a model, or of its first module: a pipeline hides its parts'."""
    found = getattr(model, name, None)
    if found is None and isinstance(model, torch.nn.Sequential) and len(model):
        found = getattr(model[0], name, None)
    return found


def as_tensor(values: Any) -> Tensor:
    """Convert what models return: tensors, arrays, or lists of them."""
    if isinstance(values, (list, tuple)) and values and not isinstance(values[0], (int, float)):
        return torch.stack([as_tensor(value) for value in values])
    return torch.as_tensor(values).detach().to("cpu", torch.float32)


def _unit(method: str, values: Any, count: int) -> Tensor:
    vectors = as_tensor(values)
    if vectors.dim() != 2 or len(vectors) != count or not vectors.shape[1]:
        raise ValueError(
            f"{method} must return one vector for each of {count}, got shape {tuple(vectors.shape)}"
        )
    if not vectors.isfinite().all():
        raise ValueError(f"{method} must return finite vectors, got NaN or infinity")
    return F.normalize(vectors, dim=1)


def _frame_features(output: Mapping[str, Any]) -> Tensor:
    frames = as_tensor(output["token_embeddings"])
    mask = output.get("attention_mask")
    return frames if mask is None else frames[torch.as_tensor(mask).to("cpu").bool()]


def rerank_scores(scorer: FrameScorer, query: Tensor, frames: Sequence[Tensor]) -> Tensor:
    """Score candidates by their frame features, which are stored in half precision.

    Returns:
        (K,), float32, on the CPU.
    """
    with torch.no_grad():
        return torch.as_tensor(scorer(query, [each.float() for each in frames])).cpu().float()
