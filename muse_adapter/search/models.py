"""Models by duck typing: embeddings of queries and videos, frame features, the second stage."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from muse_adapter.data.video.sampling import Sampling
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
    """The embeddings of a document.

    Attributes:
        vectors: (G, D), float32: one of unit norm, or those of the segments that the model made.
        spans: Start and end of each, as fractions of the document.
        frames: Frame features of each, (T, F); None without them.
    """

    vectors: Tensor
    spans: list[tuple[float, float]]
    frames: list[Tensor] | None


def check_model(model: Any) -> None:
    """Check that a model has the methods that an index needs.

    Raises:
        TypeError: It lacks one.
    """
    document = "encode_segments" if makes_segments(model) else "encode_document"
    for method in ("encode_query", document):
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


def embed_documents(model: Any, documents: list[Any], *, frame_features: bool) -> list[Embedded]:
    """Embed videos.

    Args:
        model: Gives frame features by `encode_document(documents, output_value=None)`: for each
            document a mapping with "sentence_embedding" (D,), "token_embeddings" (T, F) and, where
            some of them are padding, "attention_mask" (T,). Or it makes segments by
            `encode_segments(documents)`: for each document vectors (G, D), and spans (G, 2) as
            fractions of it.
        documents: Paths or frames.
        frame_features: Whether to return frame features.

    Raises:
        ValueError: The embeddings are not finite, or of another shape.
    """
    with torch.no_grad():
        if makes_segments(model):
            return [_segments(*found) for found in model.encode_segments(documents)]
        outputs = model.encode_document(
            documents, **({"output_value": None} if frame_features else {})
        )
        frames: list[list[Tensor] | None] = [None] * len(documents)
        if frame_features:
            frames = [[_frame_features(output)] for output in outputs]
            outputs = [as_tensor(output["sentence_embedding"]) for output in outputs]
        vectors = _unit("encode_document", outputs, len(documents))
    return [
        Embedded(vector[None], [(0.0, 1.0)], each)
        for vector, each in zip(vectors, frames, strict=True)
    ]


def makes_segments(model: Any) -> bool:
    """Return whether the model makes segments of a document itself."""
    return callable(getattr(model, "encode_segments", None))


def gives_frame_features(model: Any) -> bool:
    """Return whether `encode_document` can return what is below its embedding."""
    if makes_segments(model):
        return False
    try:
        return "output_value" in inspect.signature(model.encode_document).parameters
    except (TypeError, ValueError):  # a callable that does not tell
        return False


def frame_sampling_of(model: Any) -> FrameSampling | None:
    """Return how the model wants frames; None: it reads the videos itself.

    Raises:
        ValueError: `num_frames` or `fps` is out of range.
    """
    num_frames, fps = _attribute(model, "num_frames"), _attribute(model, "fps")
    if num_frames is None:
        return None
    # As Python's own numbers: 1 and 1.0, or numbers of numpy, are no other model.
    if isinstance(num_frames, numbers.Integral) and not isinstance(num_frames, bool):
        num_frames = int(num_frames)
    Sampling(num_frames, fps=fps)  # checks both
    return FrameSampling(num_frames, None if fps is None else float(fps))


def frame_scorer_of(model: Any) -> FrameScorer | None:
    """Return what scores frame features, `score_frames(query, frames)`; None: nothing."""
    return _attribute(model, "score_frames")


def saved_in_of(model: Any) -> tuple[str, str | None] | None:
    """Return where the model was saved, its attribute `saved_in`; None: nowhere."""
    place: tuple[str, str | None] | None = _attribute(model, "saved_in")
    return place


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


def _segments(vectors: Any, spans: Any) -> Embedded:
    vectors, spans = as_tensor(vectors), torch.as_tensor(spans, dtype=torch.float64)
    if vectors.dim() != 2 or not len(vectors) or spans.shape != (len(vectors), 2):
        raise ValueError(
            "encode_segments must return vectors (G, D) and spans (G, 2) of each document, got "
            f"shapes {tuple(vectors.shape)} and {tuple(spans.shape)}"
        )
    if not vectors.isfinite().all():
        raise ValueError("encode_segments must return finite vectors, got NaN or infinity")
    start, end = spans.unbind(1)
    if not bool(((start >= 0) & (start <= end) & (end <= 1)).all()):
        raise ValueError("encode_segments must return spans as ascending fractions from 0 to 1")
    return Embedded(vectors, [(a, b) for a, b in spans.tolist()], None)


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
    frames, mask = as_tensor(output["token_embeddings"]), output.get("attention_mask")
    if frames.dim() != 2 or (mask is not None and len(mask) != len(frames)):
        raise ValueError(
            "encode_document must return token_embeddings (T, F) and their attention_mask (T,), "
            f"got shape {tuple(frames.shape)}"
            + ("" if mask is None else f" and a mask of {len(mask)}")
        )
    return frames if mask is None else frames[torch.as_tensor(mask).to("cpu").bool()]
