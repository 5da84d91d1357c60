"""VideoIndex: search a corpus of videos by text."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from muse_adapter.search.adding import add_videos
from muse_adapter.search.identity import check_same, embedding_width, identify
from muse_adapter.search.models import (
    FrameScorer,
    check_model,
    embed_queries,
    frame_sampling_of,
    frame_scorer_of,
    gives_frame_features,
)
from muse_adapter.search.saved_models import load_model_of
from muse_adapter.search.second_stage import search_twice
from muse_adapter.search.segments import AddReport, Hit, Settings
from muse_adapter.search.store import Store, create_store, open_store
from muse_adapter.search.turns import wait_for_turn


class VideoIndex:
    """A searchable corpus of videos, made by `VideoIndex.create` or `VideoIndex.open`.

    An index holds segments: a short video is one, a long one may be many windows. A video is found
    by its best segment.

    `model` is a `SentenceTransformer`, or anything with `encode_query(list of str)` and
    `encode_document(list of videos)`, both of which return an embedding for each. A video is given
    to the model as its path, or, if the model has an attribute `num_frames`, as that many of its
    frames, (T, 3, height, width), uint8, RGB, T fewer for a shorter video. With an attribute `fps`
    that is not None, they are sampled by it, and given as
    `{"array": frames, "video_metadata": {"fps": fps}}`. In a `torch.nn.Sequential`, as a
    `SentenceTransformer` is, the attributes may be those of the first module.

    The second stage needs frame features, which are stored if `encode_document` takes
    `output_value=None` and then returns, for each video, a mapping with "sentence_embedding" (D,),
    "token_embeddings" (T, F) and, if some of these are padding, "attention_mask" (T,); and it needs
    a scorer, `score_frames(query, frames)` of the model: from the embedding (D,) of a query and a
    list of K frame features (T, F) to K scores.

    A model that divides videos itself, as MamFusion does into clips, has instead of
    `encode_document` a method `encode_segments(list of videos)`: for each video the vectors (G, D)
    of its segments, whose inner products with a unit query are the scores, and their spans (G, 2)
    as fractions of the video, from 0 to 1. They are stored as they are.

    In a folder, one process writes at a time, any number reads, and each call sees the current
    state. On a Milvus server any number write, too, and see what others have added a moment later.
    A file of Milvus Lite belongs to the process that has it open. An index is closed by `close`, or
    as a context manager.
    """

    def __init__(self, store: Store, model: Any) -> None:
        self._store: Store | None = store
        self._model = model

    @classmethod
    def create(
        cls,
        uri: str | os.PathLike[str],
        model: Any,
        *,
        name: str = "videos",
        window: float | None = None,
        stride: float | None = None,
        frame_features: bool = True,
    ) -> VideoIndex:
        """Create an empty index.

        Args:
            uri: A folder, which is searched exactly; a file of Milvus Lite, `clips.db`; or a Milvus
                server or cluster, `http[s]://[user:password@|token@]host[:port][/database]`, with
                credentials there or in the environment variable `MILVUS_TOKEN`. Milvus takes
                options behind a question mark: `?index=HNSW&M=16&efConstruction=200`, `IVF_FLAT` or
                `IVF_SQ8` with `nlist=1024`, or `FLAT`, which is exact; for searching, `ef=128`,
                `nprobe=32` and `consistency=Session` (or `Strong`, `Bounded`, `Eventually`); and
                `timeout=60` seconds for which a call is tried.
            model: Embeds queries and videos.
            name: Of the index, beside others at the same address.
            window: Seconds of a segment, for long videos; the last window ends with the video.
                None: a video is one segment.
            stride: Seconds from the start of a window to that of the next; None: `window`.
            frame_features: Whether to store frame features, where the model gives them.

        Raises:
            FileExistsError: There is an index.
            ImportError: safetensors is not installed, or pymilvus or milvus-lite is not.
            OSError: The folder cannot be written, or Milvus is not reached or denies access.
            TypeError: `model` lacks one of its two methods.
            ValueError: An argument is out of range, or there is no store for this address.
        """
        check_model(model)
        if window is not None and frame_sampling_of(model) is None:
            raise ValueError(
                "window= needs a model that takes frames: with an attribute num_frames, the number "
                "of frames of a window"
            )
        identity = identify(model)
        settings = Settings(
            dim=embedding_width(identity),
            window=window,
            stride=window if stride is None else stride,
            frame_features=frame_features and gives_frame_features(model),
        )
        return cls(create_store(uri, name, settings, identity), model)

    @classmethod
    def open(
        cls, uri: str | os.PathLike[str], *, name: str = "videos", model: Any = None
    ) -> VideoIndex:
        """Open an index.

        Args:
            uri: As in `create`.
            name: As in `create`.
            model: The model with which it was created, or a copy, also in another precision. None:
                the first call that needs it loads it from where it was saved, if it is a
                `SentenceTransformer` and was, before the index was created.

        Raises:
            FileNotFoundError: There is no index.
            ImportError: safetensors is not installed, or pymilvus or milvus-lite is not.
            OSError: Milvus is not reached, denies access, or reports an error.
            TypeError: `model` lacks one of its two methods.
            ValueError: The index is of another model, it is damaged or of another version of the
                format, or there is no store for this address.
        """
        store = open_store(uri, name)
        if model is not None:
            check_model(model)
            check_same(store.model, model)
        return cls(store, model)

    def add(
        self,
        paths: Iterable[str | os.PathLike[str]],
        *,
        batch_size: int = 8,
        workers: int = 0,
        progress: bool = True,
        shared: bool = False,
    ) -> AddReport:
        """Add videos; what is in the index is skipped, so an interrupted call can be repeated.

        Videos are appended in batches. When the process is killed, at most the batches in work are
        lost, and the index is as it was before them.

        Args:
            paths: Video files. Hits name them as they are given here.
            batch_size: Segments that are embedded at once.
            workers: Processes that read videos, for models that take frames.
            progress: Whether to print videos a second and the time left, to standard error.
            shared: Whether other processes add to the index too: they write their batches in turns,
                each waiting for the others, instead of being refused.

        Returns:
            What became of each path.

        Raises:
            BlockingIOError: Another process writes, or with `shared` has been writing for ten
                minutes; the message names it.
            ImportError: PyAV is not installed.
            OSError: The index cannot be written.
            TypeError: `paths` is a single path.
            ValueError: The model cannot be loaded, an embedding is not finite or of another width,
                or an argument is out of range.
        """
        store, model = self._opened(), self._needed_model("adding videos")
        if batch_size < 1 or workers < 0:
            raise ValueError(
                f"batch_size must be at least 1 and workers at least 0, got {batch_size} and "
                f"{workers}"
            )
        if workers and frame_sampling_of(model) is None:
            raise ValueError(
                "workers= needs a model that takes frames (with an attribute num_frames): this "
                "one reads the videos itself"
            )
        add = functools.partial(
            add_videos,
            model=model,
            settings=store.settings,
            videos=_names(paths),
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
        if shared:
            return add(functools.partial(wait_for_turn, store))
        with store.write() as writer:
            return add(lambda: contextlib.nullcontext(writer))

    def search(
        self, query: str, k: int = 10, *, rerank: bool | FrameScorer | None = None
    ) -> list[Hit]:
        """Find the videos that fit a text best.

        Args:
            query: The text.
            k: How many videos to find; fewer if the index has fewer.
            rerank: Whether the 50 best videos, or k if that is more, are ordered again by the
                model's scorer of frame features; or the scorer itself. None: if there are both.

        Returns:
            Hits, best first. Their scores are cosines, or those of the scorer.

        Raises:
            OSError: Milvus is not reached, denies access, or reports an error.
            TypeError: `query` is no text.
            ValueError: The model cannot be loaded, `k` is below 1, the index has no frame features
                or the model no scorer, or what was found is damaged.
        """
        store, model = self._opened(), self._needed_model("searching a text")
        if not isinstance(query, str):
            raise TypeError(f"query must be a str, got {type(query).__name__}")
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise ValueError(f"k must be an int of at least 1, got {k!r}")
        scorer = self._scorer(rerank)
        table, vectors = store.read(), embed_queries(model, [query])
        if scorer is None:
            found_scores, found_ids = table.search(vectors, k)
            scores, ids = found_scores[0], found_ids[0]
        else:
            scores, ids = search_twice(table, vectors, k, scorer)
        segments = table.segments(ids)
        return [Hit(*segment, score) for segment, score in zip(segments, scores, strict=True)]

    def remove(self, videos: Iterable[str | os.PathLike[str]]) -> None:
        """Remove videos: all or none; in Milvus, after an error, perhaps some.

        Their space is used until `compact` is called.

        Args:
            videos: Paths as they were added.

        Raises:
            BlockingIOError: Another process writes; the message names it.
            KeyError: A video is not in the index.
            OSError: The index cannot be written.
            TypeError: `videos` is a single path.
        """
        names = _names(videos)
        with self._opened().write() as writer:
            writer.remove(names)

    def compact(self) -> None:
        """Free the space of removed videos, without disturbing readers.

        In Milvus nobody else may add in that time: a process that adds what an interrupted addition
        has left may lose segments, which `verify` finds.

        Raises:
            BlockingIOError: Another process writes; the message names it.
            OSError: The index cannot be written.
            ValueError: Videos are damaged; nothing has changed.
        """
        with self._opened().write() as writer:
            writer.compact()

    def verify(self) -> list[str]:
        """Compare all data with their checksums.

        Opening an index does not read its data. In a folder a search checks what it shows; in
        Milvus it compares nothing.

        Returns:
            The damaged videos, to be removed and added again.
        """
        return self._opened().verify()

    def __len__(self) -> int:
        """Return the number of videos."""
        return self._opened().read().num_videos

    @property
    def segments(self) -> int:
        """Number of segments."""
        return self._opened().read().num_segments

    @property
    def settings(self) -> Settings:
        """What was fixed when the index was created: width, windows, frame features."""
        return self._opened().settings

    def close(self) -> None:
        """Release files and connections; the index cannot be used after it."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def __enter__(self) -> VideoIndex:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _opened(self) -> Store:
        if self._store is None:
            raise ValueError("the index is closed")
        return self._store

    def _needed_model(self, purpose: str) -> Any:
        if self._model is None:
            self._model = load_model_of(self._opened().model, purpose)
        return self._model

    def _scorer(self, rerank: bool | FrameScorer | None) -> FrameScorer | None:
        if rerank is False:
            return None
        has_features = self._opened().settings.frame_features
        scorer = rerank if callable(rerank) else frame_scorer_of(self._model)
        if has_features and scorer is not None:
            return scorer
        if rerank is None:
            return None
        if not has_features:
            raise ValueError("the index has no frame features, which rerank= needs")
        raise ValueError(
            f"rerank=True needs a model with score_frames(query, frames), which "
            f"{type(self._model).__name__} has not"
        )


def _names(paths: Iterable[str | os.PathLike[str]]) -> list[str]:
    if isinstance(paths, (str, bytes, os.PathLike)):
        raise TypeError(f"expected a list of paths, got the single path {paths!r}")
    return [os.fsdecode(path) for path in paths]
