"""What `benchmarks.search` compares: a folder, with and without a second stage, and faiss."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.vectors import Vectors
from muse_adapter import TextGatedInteraction
from muse_adapter.search.milvus.address import INDEXES
from muse_adapter.search.second_stage import search_twice
from muse_adapter.search.segments import Settings, VideoSegments
from muse_adapter.search.store import create_store, open_store

K = 10


class Searched(Protocol):
    """A store of vectors in a folder, that may have been built in part by an earlier call."""

    def __len__(self) -> int:
        """Return how many vectors are in."""
        ...

    def append(self, vectors: Tensor) -> None:
        """Add the next block."""
        ...

    def save(self) -> None:
        """Write what is in memory only."""
        ...

    def search(self, queries: Tensor) -> Any:
        """Find the K best for each query."""
        ...

    def numbers(self, found: Any) -> list[list[int]]:
        """Return the numbers of the vectors that `search` found."""
        ...

    def best(self) -> list[list[int]]:
        """Return what it should have found."""
        ...


def name(number: int) -> str:
    """Return the path of a made-up video."""
    return f"videos/of/some/corpus/{number:09d}.mp4"


def number_of(video: str) -> int:
    """Undo `name`."""
    return int(Path(video).stem)


def segments(first: int, vectors: Tensor, frames: Tensor | None = None) -> list[VideoSegments]:
    """Return a video for each vector, named by its number from `first` on."""
    return [
        VideoSegments(
            name(first + i), [(0.0, 10.0)], vector[None], None if frames is None else [frames[i]]
        )
        for i, vector in enumerate(vectors)
    ]


class OwnIndex:
    """An index of this package, in a folder or in Milvus, that is searched for vectors.

    Args:
        store: The index.
        vectors: That it is filled with.
    """

    frame_features = False

    def __init__(self, store: Any, vectors: Vectors) -> None:
        self.store, self._vectors = store, vectors

    def __len__(self) -> int:
        return int(self.store.read().num_videos)

    def append(self, vectors: Tensor) -> None:
        """Add the next block."""
        frames = self._vectors.frames(vectors) if self.frame_features else None
        with self.store.write() as writer:
            writer.append(segments(len(self), vectors, frames))

    def save(self) -> None:
        """Do nothing: what was appended is kept."""

    def search(self, queries: Tensor) -> Any:
        """Find the K best for each query."""
        return self.store.read().search(queries, K)[1]

    def numbers(self, found: Any) -> list[list[int]]:
        """Return the numbers of the vectors that were found."""
        table = self.store.read()
        return [[number_of(hit.video) for hit in table.segments(row)] for row in found]

    def best(self) -> list[list[int]]:
        """Return what should be found."""
        return self._vectors.best(K)


class SecondStage(OwnIndex):
    """An index whose 50 best videos are ordered by their frames.

    The score is that of a `VideoTransformer`. What should be found is what this score finds among
    all videos.
    """

    frame_features = True

    def search(self, queries: Tensor) -> Any:
        """Find the K best for each query."""
        table = self.store.read()
        return [search_twice(table, query[None], K, _score_frames)[1] for query in queries]

    def best(self) -> list[list[int]]:
        """Return what should be found."""
        vectors, score = self._vectors, TextGatedInteraction()
        return vectors.best(K, lambda block: score(vectors.queries, vectors.frames(block)))


def _score_frames(query: Tensor, frames: Sequence[Tensor]) -> Tensor:
    return TextGatedInteraction()(query[None], torch.stack(list(frames)))[0]


class Folder(OwnIndex):
    """An index in a folder: all of its vectors are compared."""

    def __init__(self, folder: Path, vectors: Vectors) -> None:
        if not (folder / "videos").exists():
            settings = Settings(vectors.dim, frame_features=self.frame_features)
            create_store(folder, "videos", settings, b"").close()
        super().__init__(open_store(folder, "videos"), vectors)


class FolderTwice(SecondStage, Folder):
    """An index in a folder, in two stages: of mapped files only the frames of the 50 are read."""


class Faiss:
    """An index of faiss in memory, in float32; every vector is compared."""

    def __init__(self, folder: Path, vectors: Vectors) -> None:
        self._vectors, self._file = vectors, folder / "index.faiss"
        self.faiss: Any = importlib.import_module("faiss")
        exists = self._file.exists()
        self.index = self.faiss.read_index(str(self._file)) if exists else self.empty()
        self.configure()

    def empty(self) -> Any:
        """Return an index without vectors."""
        return self.faiss.IndexFlatIP(self._vectors.dim)

    def configure(self) -> None:
        """Do nothing: there is nothing to choose."""

    def __len__(self) -> int:
        return int(self.index.ntotal)

    def append(self, vectors: Tensor) -> None:
        """Add the next block."""
        self.index.add(vectors.numpy())

    def save(self) -> None:
        """Write it to its file."""
        self.faiss.write_index(self.index, str(self._file))

    def search(self, queries: Tensor) -> Any:
        """Find the K best for each query."""
        return self.index.search(queries.numpy(), K)[1]

    def numbers(self, found: Any) -> list[list[int]]:
        """Return the numbers of the vectors that were found."""
        numbers: list[list[int]] = found.tolist()
        return numbers

    def best(self) -> list[list[int]]:
        """Return what should be found."""
        return self._vectors.best(K)


class FaissHnsw(Faiss):
    """A graph of faiss, with the parameters that an index in Milvus has by default."""

    def empty(self) -> Any:
        """Return an index without vectors."""
        build = INDEXES["HNSW"][0]
        index = self.faiss.IndexHNSWFlat(
            self._vectors.dim, build["M"], self.faiss.METRIC_INNER_PRODUCT
        )
        index.hnsw.efConstruction = build["efConstruction"]
        return index

    def configure(self) -> None:
        """Choose how it is searched."""
        self.index.hnsw.efSearch = INDEXES["HNSW"][1]["ef"]


FOLDER, FLAT = "folder", "faiss, flat"
STORES: dict[str, type[Folder | Faiss]] = {
    FOLDER: Folder,
    "folder, second stage": FolderTwice,
    FLAT: Faiss,
    "faiss, HNSW": FaissHnsw,
}


def here() -> list[str]:
    """Return the names of what can be measured: faiss is where it is installed."""
    has_faiss = importlib.util.find_spec("faiss") is not None
    return [name for name, store in STORES.items() if has_faiss or issubclass(store, Folder)]
