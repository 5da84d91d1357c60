"""Adding videos to a table: reading, embedding, and appending in batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from muse_adapter.data.video.container import UnreadableVideo
from muse_adapter.search.documents import Document, Unreadable, read_documents
from muse_adapter.search.models import embed_documents, frame_sampling_of
from muse_adapter.search.progress import Progress
from muse_adapter.search.segments import AddReport, Settings, VideoSegments
from muse_adapter.search.store import Writer

# Begins to write, and gives the right to do so back at its end.
Turn = Callable[[], AbstractContextManager[Writer]]


def add_videos(
    turn: Turn,
    model: Any,
    settings: Settings,
    videos: Sequence[str],
    *,
    batch_size: int,
    workers: int,
    progress: bool,
) -> AddReport:
    """Add the videos that are not in a table yet.

    Args:
        turn: Begins to write the table, for as long as one batch takes.
        model: Embeds the videos.
        settings: Of the table.
        videos: Paths.
        batch_size: Segments that are embedded at once, and appended at once at least.
        workers: Processes that read videos.
        progress: Whether to print it.

    Returns:
        What became of each path.

    Raises:
        ValueError: The model's embeddings are not as the table's.
    """
    new: dict[str, None] = {}
    skipped = []
    with turn() as writer:
        present = writer.present(videos)
    for video in videos:
        if video in new or video in present:
            skipped.append(video)
        else:
            new[video] = None
    batches = _Batches(turn, model, settings, batch_size)
    documents = read_documents(
        list(new), frame_sampling_of(model), settings.window, settings.stride, workers
    )
    bar = Progress(len(new), enabled=progress)
    try:
        # After an error the workers end now, not when its traceback is let go.
        with contextlib.closing(documents):
            for document in documents:
                batches.take(document)
                bar.update(batches.num_done, len(batches.unreadable))
        batches.finish()
    finally:
        bar.close(batches.num_done, len(batches.unreadable))
    return AddReport(tuple(batches.added), (*skipped, *batches.skipped), batches.unreadable)


@dataclass
class _Parts:
    """The segments of a video that are embedded so far."""

    spans: list[tuple[float, float]] = field(default_factory=list)
    vectors: list[Tensor] = field(default_factory=list)
    frames: list[Tensor] = field(default_factory=list)


class _Batches:
    """Embed documents in batches, and append the videos that are complete."""

    def __init__(self, turn: Turn, model: Any, settings: Settings, batch_size: int) -> None:
        self._turn, self._model, self._settings = turn, model, settings
        self._batch_size = batch_size
        self._batch: list[Document] = []
        self._parts: dict[str, _Parts] = {}
        self._complete: list[VideoSegments] = []
        self.added: list[str] = []
        self.skipped: list[str] = []  # which another process has added meanwhile
        self.unreadable: dict[str, str] = {}

    @property
    def num_done(self) -> int:
        """Number of videos that are in the table now, or cannot be."""
        return len(self.added) + len(self.skipped) + len(self.unreadable)

    def take(self, document: Document | Unreadable) -> None:
        """Take the next document, embed a full batch and append complete videos."""
        if isinstance(document, Unreadable):
            self._leave_out(document.video, document.reason)
            return
        self._batch.append(document)
        if len(self._batch) == self._batch_size:
            self._embed()
            if sum(len(video.spans) for video in self._complete) >= self._batch_size:
                self._append()

    def finish(self) -> None:
        """Embed and append what is left."""
        self._embed()
        self._append()

    def _embed(self) -> None:
        batch = [document for document in self._batch if document.video not in self.unreadable]
        self._batch = []
        if not batch:
            return
        try:
            self._embed_together(batch)
        except (UnreadableVideo, OSError):
            if frame_sampling_of(self._model) is not None:
                raise
            # The model reads the videos itself: which one is it?
            for document in batch:
                if document.video not in self.unreadable:
                    try:
                        self._embed_together([document])
                    except (UnreadableVideo, OSError) as error:
                        self._leave_out(document.video, str(error))

    def _embed_together(self, batch: list[Document]) -> None:
        embedded = embed_documents(
            self._model,
            [document.content for document in batch],
            frame_features=self._settings.frame_features,
        )
        for document, (vectors, spans, frames) in zip(batch, embedded, strict=True):
            if vectors.shape[1] != self._settings.dim:
                raise ValueError(
                    f"the model must return vectors of the width of the index, "
                    f"{self._settings.dim}, got {vectors.shape[1]}"
                )
            start, end = document.span
            parts = self._parts.setdefault(document.video, _Parts())
            # Exact at both ends.
            parts.spans += [
                (start * (1 - a) + end * a, start * (1 - b) + end * b) for a, b in spans
            ]
            parts.vectors.append(vectors)
            parts.frames += frames or []
            if document.is_last:
                self._complete.append(self._finished(document.video))

    def _finished(self, video: str) -> VideoSegments:
        parts = self._parts.pop(video)
        frames = parts.frames if self._settings.frame_features else None
        return VideoSegments(video, parts.spans, torch.cat(parts.vectors), frames)

    def _append(self) -> None:
        if not self._complete:
            return
        with self._turn() as writer:
            present = writer.present([video.video for video in self._complete])
            new = [video for video in self._complete if video.video not in present]
            if new:
                writer.append(new)
        self.added += [video.video for video in new]
        self.skipped += [video.video for video in self._complete if video.video in present]
        self._complete = []

    def _leave_out(self, video: str, reason: str) -> None:
        self.unreadable[video] = reason
        self._parts.pop(video, None)
