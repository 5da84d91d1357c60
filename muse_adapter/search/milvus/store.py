"""Creating, opening and writing a table in Milvus."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import json
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from muse_adapter.search.milvus.address import INDEXES, Address, parse_address
from muse_adapter.search.milvus.client import Client
from muse_adapter.search.milvus.rows import (
    decode_name,
    is_first,
    is_possible,
    is_whole,
    make_rows,
    row_ids,
    video_id,
    video_of,
)
from muse_adapter.search.milvus.schema import make_index, make_schema
from muse_adapter.search.milvus.table import MilvusTable, batches
from muse_adapter.search.segments import Settings, VideoSegments
from muse_adapter.strict_json import parse_json
from muse_adapter.version import VERSION

FORMAT = 1
_INDEX, _MODEL = "muse_adapter.index", "muse_adapter.model"  # properties of the collection
_REQUEST_BYTES = 4 << 20  # of rows that are written at once, about
_VIDEOS_AT_ONCE = 64  # that `verify` reads
# Seconds after which rows without a first one belong to no addition that is under way.
ABANDONED_S = 3600


class MilvusStore:
    """A table of segments in Milvus, see the package's docstring.

    Args:
        uri: As `parse_address` takes it.
        name: Of the collection.

    Raises:
        FileNotFoundError: There is none.
        ImportError: pymilvus or milvus-lite is not installed.
        OSError: Milvus is not reached, denies access, or reports an error.
        ValueError: The address is none, or the collection is no index, of another version of the
            format, or of another kind than the address says.
    """

    def __init__(self, uri: str, name: str) -> None:
        address = parse_address(uri)
        if address.is_file and not Path(address.uri).exists():
            raise FileNotFoundError(f"there is no index in {address}: no such file")
        self._name = name
        self._client = Client(address)
        try:
            self._open(address)
        except BaseException:
            self._client.close()
            raise

    def _open(self, address: Address) -> None:
        call, name = self._client.call, self._name
        if not call("has_collection", name):
            raise FileNotFoundError(f"there is no index {name!r} in {address}")
        properties = call("describe_collection", name).get("properties") or {}
        what = f"{name!r} in {address}"
        self.settings, kind, build = _unpack_index(properties.get(_INDEX), what)
        self.model = _unpack_model(properties.get(_MODEL, ""), what)
        for option, value in address.options.items():
            stored = kind if option == "index" else build.get(option)
            if stored is not None and value != str(stored):
                raise ValueError(
                    f"the index {name!r} was created with {option}={stored}, the address says "
                    f"{value}"
                )
        # Here, and not in `create`, which may be killed before it.
        if not call("list_indexes", name):
            call("create_index", name, make_index(kind, build), sync=False)
        call("load_collection", name)
        self._table = MilvusTable(
            self._client, name, self.settings, kind, address.search_parameters(kind, build)
        )
        # Strongly consistent: what was acknowledged before is seen from now on.
        self._table.rows([""], [], "Strong")

    @classmethod
    def create(cls, uri: str, name: str, settings: Settings, model: bytes) -> MilvusStore:
        """Create an empty table.

        Raises:
            FileExistsError: There is a collection of this name.
        """
        address = parse_address(uri)
        if address.is_file:
            Path(address.uri).parent.mkdir(parents=True, exist_ok=True)
        client = Client(address)
        try:
            if client.call("has_collection", name):
                raise FileExistsError(
                    f"there is an index in {address} named {name!r}, or another collection: open "
                    "it with VideoIndex.open"
                )
            client.call(
                "create_collection",
                name,
                schema=make_schema(settings.dim, settings.frame_features),
                properties={
                    _INDEX: _pack_index(settings, address),
                    _MODEL: _pack_model(model),
                },
                consistency_level="Strong",
            )
            return cls(uri, name)
        finally:
            client.close()

    def read(self) -> MilvusTable:
        """Return the table."""
        return self._table

    @contextlib.contextmanager
    def write(self) -> Iterator[MilvusWriter]:
        """Begin to write; any number of processes may."""
        yield MilvusWriter(self._client, self._name, self._table, self.settings)

    def verify(self) -> list[str]:
        """Compare all data with their hashes, and return the damaged videos."""
        damaged: dict[tuple[str, str], str] = {}  # by the ids of their first rows, and additions
        for block in self._table.scan('id != ""', ["addition", "name", "number", "count"]):
            # Not fewer than a video has: its other rows were written before the first one.
            most = self._table.num_segments
            heads = [row for row in block if is_first(row)]
            possible = [head for head in heads if is_possible(head, most)]
            broken = [head for head in heads if not is_possible(head, most)]
            for some in batches(possible, _VIDEOS_AT_ONCE):
                ids = [i for head in some for i in row_ids(head["addition"], head["count"])]
                by_addition: dict[str, list[Any]] = {}
                for row in self._table.rows(ids, ["*"], "Strong"):
                    by_addition.setdefault(row["addition"], []).append(row)
                for head in some:
                    rows = by_addition.get(head["addition"])
                    if rows and not is_whole(rows, self.settings.frame_features):
                        broken.append(head)
            for head in broken:
                damaged[head["id"], head["addition"]] = decode_name(head["name"])
        # Another process may have removed some before all their rows were read.
        now = self._table.rows([identity for identity, _ in damaged], ["addition"], "Strong")
        current = {(row["id"], row["addition"]) for row in now}
        return [video for key, video in damaged.items() if key in current]

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class MilvusWriter:
    """Changes a table.

    Args:
        client: Of the server.
        name: Of the collection.
        table: For reading it.
        settings: Of the index.
    """

    def __init__(self, client: Client, name: str, table: MilvusTable, settings: Settings) -> None:
        self._client, self._name, self._table, self._settings = client, name, table, settings

    def present(self, videos: Sequence[str]) -> set[str]:
        """Return which of these videos are in the table."""
        names = {video_id(video): video for video in videos}
        return {names[row["id"]] for row in self._table.rows(list(names), [], "Strong")}

    def append(self, videos: Sequence[VideoSegments]) -> None:
        """Add videos, each whole or not at all; all are in the table when this returns.

        Raises:
            OSError: Milvus reports an error.
            ValueError: A value is not finite in half precision; nothing was added.
        """
        rows = [make_rows(video, self._settings.frame_features) for video in videos]
        while rows:
            self._upsert([row for each in rows for row in each[1:]])
            self._upsert([each[0] for each in rows])
            # A removal that began before may have deleted rows of the same content: again, then.
            ids = [row["id"] for each in rows for row in each[1:]]
            found = {row["id"] for row in self._table.rows(ids, [], "Strong")}
            rows = [each for each in rows if not found.issuperset(r["id"] for r in each[1:])]

    def remove(self, videos: Iterable[str]) -> None:
        """Remove videos that are in the table, each whole.

        Raises:
            KeyError: A video is not in the table; nothing was removed.
            OSError: Milvus reports an error.
        """
        names = {video_id(video): video for video in videos}
        rows = self._table.rows(list(names), ["addition", "count"], "Strong")
        found = {row["id"] for row in rows}
        if unknown := [video for identity, video in names.items() if identity not in found]:
            others = f" and {len(unknown) - 1} others" if len(unknown) > 1 else ""
            raise KeyError(f"not in the index: {unknown[0]!r}{others}")
        most = self._table.num_segments
        while rows:
            self._delete([row["id"] for row in rows])
            # A damaged first row may name rows of another video, or more than there are.
            own = [row for row in rows if video_of(row["addition"]) == row["id"]]
            ids = [row_ids(row["addition"], min(row["count"], most))[1:] for row in own]
            self._delete(list(itertools.chain(*ids)))
            # An addition of the same content may have ended meanwhile, and lost rows to this one.
            # Then it comes first: its video is removed.
            removed = {row["addition"] for row in rows}
            again = self._table.rows([row["id"] for row in rows], ["addition", "count"], "Strong")
            rows = [row for row in again if row["addition"] in removed]

    def compact(self) -> None:
        """Delete rows of interrupted additions; Milvus frees space by itself.

        Rows that are younger than an hour are left: another process may be about to complete them.
        """
        before = int(time.time()) - ABANDONED_S
        for block in self._table.scan(f"number > 0 and written < {before}", ["addition"]):
            current = self._table.current([row["addition"] for row in block], "Strong")
            self._delete([row["id"] for row in block if row["addition"] not in current])

    def _upsert(self, rows: list[dict[str, Any]]) -> None:
        request: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            size += 4 * self._settings.dim + sum(map(len, row.get("frames", [])))
            if request and size > _REQUEST_BYTES:
                self._client.call("upsert", self._name, request)
                request, size = [], 0
            request.append(row)
        if request:
            self._client.call("upsert", self._name, request)

    def _delete(self, ids: list[str]) -> None:
        for some in batches(ids, 10_000):
            self._client.call("delete", self._name, ids=list(some))


def _pack_index(settings: Settings, address: Address) -> str:
    """Write what is fixed as text."""
    values = {
        "format": FORMAT,
        "muse_adapter_version": VERSION,
        "settings": dataclasses.asdict(settings),
        "index": address.index,
        "build": address.build_parameters(),
    }
    return json.dumps(values)


def _unpack_index(text: str | None, what: str) -> tuple[Settings, str, dict[str, int]]:
    """Read settings, kind of index and its parameters.

    Raises:
        ValueError: There are none, they are damaged, or of another version of the format.
    """
    if text is None:
        raise ValueError(f"the collection {what} is no index of muse-adapter")
    try:
        values = parse_json(text)
        version = values["format"]
        if version == FORMAT:
            settings, kind = Settings(**values["settings"]), values["index"]
            # KeyError: the kind is unknown, or a parameter of it is missing.
            return settings, kind, _checked_build(values["build"], INDEXES[kind][0])
    except KeyError as error:
        raise ValueError(
            f"the property {_INDEX} of {what} is damaged: {error} is missing or unknown"
        ) from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"the property {_INDEX} of {what} is damaged: {error}") from error
    raise ValueError(
        f"the index {what} has format {version!r}, this version of muse-adapter reads {FORMAT}"
    )


def _checked_build(values: Any, names: Iterable[str]) -> dict[str, int]:
    if not isinstance(values, dict):
        raise ValueError(f"build must hold parameters by their names, got {values!r}")
    build = {name: values[name] for name in names}
    for name, value in build.items():
        if type(value) is not int or value < 1:  # True is an int, too
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return build


def _pack_model(model: bytes) -> str:
    return base64.b64encode(zlib.compress(model)).decode()


def _unpack_model(text: str, what: str) -> bytes:
    try:
        return zlib.decompress(base64.b64decode(text))
    except (ValueError, zlib.error) as error:
        raise ValueError(f"the property {_MODEL} of {what} is damaged: {error}") from error
