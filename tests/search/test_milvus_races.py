"""Additions and removals of the same video at once in Milvus, and connections lost in a scan."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from muse_adapter.search.milvus import MilvusStore
from muse_adapter.search.milvus import table as milvus_table
from muse_adapter.search.milvus.client import Client
from muse_adapter.search.milvus.rows import row_ids, video_id
from muse_adapter.search.segments import VideoSegments
from tests.support.search_models import segments_of, settings
from tests.support.search_stores import append, assert_same, videos

pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MilvusStore]:
    store = MilvusStore.create(str(tmp_path / "clips.db"), "videos", settings(), b"a model")
    yield store
    store.close()


@pytest.fixture
def other(tmp_path: Path, store: MilvusStore) -> Iterator[MilvusStore]:
    """Open the table another time, as another writer does."""
    other = MilvusStore(str(tmp_path / "clips.db"), "videos")
    yield other
    other.close()


@contextlib.contextmanager
def before(method: str, number: int, happens: Callable[[], None]) -> Iterator[None]:
    """Inside the `with` block something happens before a call of a method, by its number."""
    real, calls = Client.call, 0

    def call(self: Client, name: str, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += name == method
        if name == method and calls == number + 1:
            patch.undo()
            happens()
        return real(self, name, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "call", call)
        yield
    assert calls == number + 1


def remove(store: MilvusStore, content: dict[str, VideoSegments]) -> None:
    with store.write() as writer:
        writer.remove(content)


def test_additions_and_removals_at_once(store, other):
    """A video is whole afterwards, or it is not there, wherever one meets the other."""
    content = {"v.mp4": segments_of("v.mp4", 1, count=5)}
    there = []
    # The first and the second deletion, and the look whether it was added again.
    for method, number in (("delete", 0), ("delete", 1), ("query", 1)):
        append(store, content)
        with before(method, number, lambda: append(other, content)):
            remove(store, content)
        there.append(store.read().num_videos)
        assert_same(store, content if there[-1] else {})
    # The segments but the first, the first, and the look whether all of them are there.
    for method, number in (("upsert", 0), ("upsert", 1), ("query", 0)):
        append(store, content)
        with before(method, number, lambda: remove(other, content)):
            append(store, content)
        there.append(store.read().num_videos)
        assert_same(store, content if there[-1] else {})
    assert there == [0, 0, 0, 1, 1, 1], "who is last wins, and here that is who was interrupted"


def test_a_removal_that_deletes_behind_an_addition(store, other):
    """It began before, and deletes the segments when the addition has written all of them."""
    content = {"v.mp4": segments_of("v.mp4", 1, count=5)}
    append(store, content)
    (head,) = store.read().rows([video_id("v.mp4")], ["addition"])
    segments = row_ids(head["addition"], 5)[1:]
    with before("query", 0, lambda: other._client.call("delete", "videos", ids=segments)):
        append(store, content)
    assert_same(store, content)
    assert store.verify() == []


def test_a_removal_during_verify(store, other):
    """Its videos are not damaged: they are gone when `verify` returns."""
    append(store, videos(6))
    heads = store.read().rows([video_id("v3.mp4")], ["addition", "count"])
    ids = row_ids(heads[0]["addition"], heads[0]["count"])
    assert len(ids) > 1
    # The first row was read: then it is deleted, and the others are about to be.
    with before("query", 0, lambda: other._client.call("delete", "videos", ids=ids[:1])):
        assert store.verify() == []


def test_a_connection_that_is_lost_during_a_scan(store, monkeypatch):
    """Every row comes once, wherever it was lost."""
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    append(store, videos(30))
    table, real = store.read(), MilvusClient.query_iterator
    expected = sorted(row["id"] for block in table.scan("", []) for row in block)
    monkeypatch.setattr(milvus_table, "IDS_AT_ONCE", 7)
    lost, calls = 0, 0

    def query_iterator(self: Any, *arguments: Any, **options: Any) -> Any:
        iterator = real(self, *arguments, **options)
        following = iterator.next

        def following_or_lost() -> Any:
            nonlocal calls
            calls += 1
            if calls == lost:
                raise MilvusException(2, "service unavailable")
            return following()

        iterator.next = following_or_lost
        return iterator

    monkeypatch.setattr(MilvusClient, "query_iterator", query_iterator)
    for condition, lost in (("", 1), ("", 2), ("number >= 0", 4)):  # noqa: B007
        calls = 0
        blocks = list(table.scan(condition, []))
        assert [row["id"] for block in blocks for row in block] == expected
        assert calls == len(blocks) + 2, "each block, the end, and one of them again"
