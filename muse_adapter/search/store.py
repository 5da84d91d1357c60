"""What an index needs of the place that keeps it, and which place an address means.

A store keeps one table of segments. `VideoIndex` knows stores by these protocols only; the tests in
`tests/search/test_stores.py` hold for each of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from muse_adapter.search.local import LocalStore
from muse_adapter.search.segments import Segment, Settings, VideoSegments


class Table(Protocol):
    """One state of the table, which does not change while others write."""

    @property
    def num_videos(self) -> int:
        """Number of videos."""
        ...

    @property
    def num_segments(self) -> int:
        """Number of segments of these videos."""
        ...

    def search(self, vectors: Tensor, k: int, /) -> tuple[list[list[float]], list[list[Any]]]:
        """Find the k videos with the largest inner products, each by its best segment.

        Args:
            vectors: (A, D).
            k: How many videos to find; fewer if there are fewer.

        Returns:
            For each query: scores, best first, and ids of the segments.
        """
        ...

    def segments(self, ids: Sequence[Any], /) -> list[Segment]:
        """Return segments by the ids that `search` found."""
        ...

    def frames(self, ids: Sequence[Any], /) -> list[Tensor]:
        """Return the frame features (T, F) of segments."""
        ...


class Writer(Protocol):
    """The right to change the table, which one process has at a time."""

    def __contains__(self, video: object) -> bool:
        """Return whether a video is in the table."""
        ...

    def append(self, videos: Sequence[VideoSegments], /) -> None:
        """Add videos that are not in the table: all of them, or none after a crash."""
        ...

    def remove(self, videos: Iterable[str], /) -> None:
        """Remove videos that are in the table, all or none."""
        ...

    def compact(self) -> None:
        """Free the space of removed videos."""
        ...


class Store(Protocol):
    """A place that keeps a table of segments."""

    @property
    def settings(self) -> Settings:
        """What was fixed when the index was created."""
        ...

    @property
    def model(self) -> bytes:
        """What identifies the model, as it was given at creation."""
        ...

    def read(self) -> Table:
        """Return the current state."""
        ...

    def write(self) -> AbstractContextManager[Writer]:
        """Begin to write; a second writer is refused until the context ends."""
        ...

    def verify(self) -> list[str]:
        """Compare all data with their checksums, and return the damaged videos."""
        ...

    def close(self) -> None:
        """Release files and connections."""
        ...


def create_store(uri: str | os.PathLike[str], name: str, settings: Settings, model: bytes) -> Store:
    """Create an empty table.

    Args:
        uri: A folder.
        name: Of the table, beside others at the same address.
        settings: Fixed properties.
        model: What identifies the model.

    Raises:
        FileExistsError: There is one of this name.
        ValueError: There is no store for this address, or the name is none.
    """
    return LocalStore.create(_folder(uri, name), settings, model)


def open_store(uri: str | os.PathLike[str], name: str) -> Store:
    """Open a table.

    Raises:
        FileNotFoundError: There is none.
        ValueError: There is no store for this address, the name is none, or the table is damaged.
    """
    return LocalStore(_folder(uri, name))


def _folder(uri: str | os.PathLike[str], name: str) -> Path:
    address = os.fspath(uri)
    if not isinstance(address, str) or not address:
        raise ValueError(f"uri must be a path of a folder, got {uri!r}")
    scheme, separator, _ = address.partition("://")
    if separator or address.endswith(".db"):
        kind = f"addresses with {scheme}://" if separator else "files of Milvus Lite (.db)"
        raise ValueError(
            f"this version of muse-adapter has no store for {kind}: give a folder, which is "
            "searched exactly"
        )
    # A folder's name here, a collection's name in databases.
    if not isinstance(name, str) or not (name.isascii() and name.isidentifier()):
        raise ValueError(
            f"name must be made of ASCII letters, digits and underscores, got {name!r}"
        )
    return Path(address) / name
