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
from muse_adapter.search.milvus import MilvusStore, is_milvus_address
from muse_adapter.search.segments import Segment, Settings, VideoSegments


class Table(Protocol):
    """The table, for reading.

    In a folder it is one state, which does not change while others write. Milvus keeps no states:
    there, each call sees the current one.
    """

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
        """Return segments by the ids that `search` returned, which may be anything."""
        ...

    def frames(self, ids: Sequence[Any], /) -> list[Tensor]:
        """Return the frame features (T, F) of segments."""
        ...


class Writer(Protocol):
    """The right to change the table."""

    def present(self, videos: Sequence[str], /) -> set[str]:
        """Return which of these videos are in the table."""
        ...

    def append(self, videos: Sequence[VideoSegments], /) -> None:
        """Add videos that are not in the table.

        After a crash, each is there whole or not at all; in a folder, all or none.
        """
        ...

    def remove(self, videos: Iterable[str], /) -> None:
        """Remove videos that are in the table; none if one is not."""
        ...

    def compact(self) -> None:
        """Free the space of what is no longer in the table."""
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
        """Begin to write; in a folder, a second writer is refused until the context ends."""
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
        uri: A folder, or an address of Milvus, see `milvus.address.parse_address`.
        name: Of the table, beside others at the same address.
        settings: Fixed properties.
        model: What identifies the model.

    Raises:
        FileExistsError: There is one of this name.
        ImportError: A library for this address is not installed.
        ValueError: The address or the name is none.
    """
    address = _checked(uri, name)
    if is_milvus_address(address):
        return MilvusStore.create(address, name, settings, model)
    return LocalStore.create(Path(address) / name, settings, model)


def open_store(uri: str | os.PathLike[str], name: str) -> Store:
    """Open a table.

    Raises:
        FileNotFoundError: There is none.
        ImportError: A library for this address is not installed.
        ValueError: The address or the name is none, or the table is damaged.
    """
    address = _checked(uri, name)
    if is_milvus_address(address):
        return MilvusStore(address, name)
    return LocalStore(Path(address) / name)


def _checked(uri: str | os.PathLike[str], name: str) -> str:
    address = os.fspath(uri)
    if not isinstance(address, str) or not address:
        raise ValueError(f"uri must be a folder or an address of Milvus, got {uri!r}")
    # A folder's name, or a collection's.
    if not isinstance(name, str) or not (name.isascii() and name.isidentifier()):
        raise ValueError(
            f"name must be made of ASCII letters, digits and underscores, got {name!r}"
        )
    return address
