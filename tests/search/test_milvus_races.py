"""Additions and removals of the same video at once in Milvus, and connections lost in a scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from muse_adapter.search.milvus import MilvusStore
from muse_adapter.search.milvus.client import Client
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


def windows(seed: int = 1) -> dict[str, VideoSegments]:
    """Return a video of several segments."""
    return {"v.mp4": segments_of("v.mp4", seed, count=5)}


def during(monkeypatch: pytest.MonkeyPatch, method: str, number: int, other: Callable[[], None]):
    """Let something happen before a call of a method, by its number."""
    calls, real = 0, Client.call

    def call(self: Client, name: str, *arguments: object, **options: object) -> object:
        nonlocal calls
        calls += name == method
        if name == method and calls == number + 1:
            calls = 1000
            other()
        return real(self, name, *arguments, **options)

    monkeypatch.setattr(Client, "call", call)


@pytest.mark.parametrize("before", range(3))
def test_an_addition_during_a_removal(before, store, other, monkeypatch):
    """It is whole, or it was removed too, whenever it comes."""
    content = windows()
    append(store, content)

    def remove() -> None:
        with store.write() as writer:
            writer.remove(content)

    # Before the first or second deletion, or before the look whether it was added again.
    method, number = [("delete", 0), ("delete", 1), ("query", 1)][before]
    during(monkeypatch, method, number, lambda: append(other, content))
    remove()
    assert store.read().num_videos in (0, 1)
    assert_same(store, content if store.read().num_videos else {})


@pytest.mark.parametrize("before", range(3))
def test_a_removal_during_an_addition(before, store, other, monkeypatch):
    """Rows that a removal of the same content deletes are written again."""
    content = windows()
    append(store, content)
    method, number = [("upsert", 0), ("upsert", 1), ("query", 0)][before]

    def remove() -> None:
        with other.write() as writer:
            writer.remove(content)

    during(monkeypatch, method, number, remove)
    append(store, content)
    assert_same(store, content if store.read().num_videos else {})
    assert store.read().num_videos or before == 2


def test_a_removal_that_ends_behind_an_addition(store, other, monkeypatch):
    """The removal deletes segments after the addition has written all of them."""
    content = windows()
    append(store, content)
    real = Client.call

    def call(self: Client, name: str, *arguments: object, **options: object) -> object:
        if name == "upsert" and len(arguments[1]) == 1:  # type: ignore[arg-type]
            answer = real(self, name, *arguments, **options)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Client, "call", real)
                ids = [f"{arguments[1][0]['addition']}/{i}" for i in range(1, 5)]  # type: ignore[index]
                other._client.call("delete", "videos", ids=ids)
            monkeypatch.setattr(Client, "call", real)
            return answer
        return real(self, name, *arguments, **options)

    monkeypatch.setattr(Client, "call", call)
    append(store, content)
    assert_same(store, content)
    assert store.verify() == []


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_a_connection_that_is_lost_during_a_scan(failing, store, monkeypatch):
    """Every row once, wherever it was lost."""
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    append(store, videos(30))
    table, real, calls = store.read(), MilvusClient.query_iterator, 0
    expected = sorted(row["id"] for block in table.scan("", []) for row in block)
    monkeypatch.setattr("muse_adapter.search.milvus.table.IDS_AT_ONCE", 7)

    def query_iterator(self: object, *arguments: object, **options: object) -> object:
        iterator = real(self, *arguments, **options)
        following = iterator.next

        def following_or_lost() -> object:
            nonlocal calls
            calls += 1
            if calls == failing + 1:
                raise MilvusException(2, "service unavailable")
            return following()

        iterator.next = following_or_lost
        return iterator

    monkeypatch.setattr(MilvusClient, "query_iterator", query_iterator)
    blocks = list(table.scan("", []))
    assert [row["id"] for block in blocks for row in block] == expected
    assert calls == len(blocks) + 2, "each block, the empty one, and one again"
