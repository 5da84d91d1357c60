"""What is particular to Milvus, in Milvus Lite: interruptions, grouping, errors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from muse_adapter.search import VideoIndex
from muse_adapter.search.milvus import MilvusStore
from muse_adapter.search.milvus import store as milvus_store
from muse_adapter.search.milvus.client import Client
from muse_adapter.search.segments import VideoSegments
from muse_adapter.search.store import create_store, open_store
from tests.support.search_models import DIM, FrameModel, segments_of, settings, write_greys
from tests.support.search_stores import append, assert_found, assert_same, videos

pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return str(tmp_path / "clips.db")


@pytest.fixture
def store(uri: str) -> Iterator[MilvusStore]:
    store = create_store(uri, "videos", settings(), b"a model")
    assert isinstance(store, MilvusStore)
    yield store
    store.close()


class Interruption(BaseException):
    """As a process that is killed."""


def interrupt(monkeypatch: pytest.MonkeyPatch, method: str, after: int) -> None:
    """Let calls of a method fail from some number on, before they reach the server."""
    calls, real = 0, Client.call

    def call(self: Client, name: str, *arguments: object, **options: object) -> object:
        nonlocal calls
        calls += name == method
        if name == method and calls > after:
            raise Interruption
        return real(self, name, *arguments, **options)

    monkeypatch.setattr(Client, "call", call)


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_an_interrupted_append_is_repeated(store, after, monkeypatch):
    """Each video is whole or not found, whichever request was the last; then nothing is twice."""
    monkeypatch.setattr(milvus_store, "_REQUEST_BYTES", 80)  # two or three rows in a request
    content = videos(5)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interruption):
        interrupt(patch, "upsert", after)
        append(store, content)
    with store.write() as writer:
        present = writer.present(list(content))
        assert_found(store, {name: content[name] for name in present})
        assert present or after < 5
        writer.append([video for name, video in content.items() if name not in present])
    assert_same(store, content)


def test_another_content_after_an_interruption(store, monkeypatch):
    """Rows of the first attempt are never taken for those of the second, until they are deleted."""
    first, second = segments_of("v.mp4", 1, count=5), segments_of("v.mp4", 2, count=3)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interruption):
        interrupt(patch, "upsert", 1)
        append(store, {"v.mp4": first})
    assert store.read().num_videos == 0
    assert_found(store, {})
    append(store, {"v.mp4": second})
    assert_found(store, {"v.mp4": second})
    with store.write() as writer:
        writer.compact()
        assert store.read().num_segments == 3 + 4, "another process may be about to complete them"
        monkeypatch.setattr(milvus_store, "ABANDONED_S", -10)
        writer.compact()
    assert_same(store, {"v.mp4": second})


def test_two_contents_of_one_video(store):
    """Of concurrent writers that do not agree, the last one wins."""
    append(store, {"v.mp4": segments_of("v.mp4", 1, count=3)})
    append(store, {"v.mp4": segments_of("v.mp4", 2, count=4)})
    assert_found(store, {"v.mp4": segments_of("v.mp4", 2, count=4)})


@pytest.mark.parametrize("after", range(2))
def test_an_interrupted_removal(store, after):
    content = videos(8)
    append(store, content)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interruption):
        interrupt(patch, "delete", after)
        with store.write() as writer:
            writer.remove(["v1.mp4", "v3.mp4"])
    if after:
        del content["v1.mp4"], content["v3.mp4"]
    assert store.read().num_videos == len(content)
    assert_found(store, content)


def long_videos() -> dict[str, VideoSegments]:
    """Return videos of which one has more segments than an answer has rows, all of them near."""
    content = videos(12)
    content["v0.mp4"] = VideoSegments(
        "v0.mp4",
        [(float(i), i + 1.0) for i in range(200)],
        torch.nn.functional.normalize(torch.eye(DIM)[0] + 0.1 * torch.randn(200, DIM), dim=1),
        [torch.zeros(1, 6)] * 200,
    )
    return content


def test_grouping_by_the_server(store, monkeypatch):
    """Milvus Lite groups: an answer has each video once, although another has more segments."""
    content, real, answers = long_videos(), Client.call, []
    append(store, content)

    def call(self: Client, name: str, *arguments: object, **options: object) -> object:
        answer = real(self, name, *arguments, **options)
        if name == "search":
            assert options["group_by_field"] == "addition"
            answers.extend(answer)
        return answer

    monkeypatch.setattr(Client, "call", call)
    assert store._client.knows_grouping()
    assert_same(store, content)
    for answer in answers:
        additions = [row["entity"]["addition"] for row in answer]
        assert len(additions) == len(set(additions))
    assert max(map(len, answers)) > 1


@pytest.mark.parametrize(
    ("version", "known"),
    [("v2.3.5-lite", False), ("v2.4.0", True), ("2.6.1-dev", True), ("?", False)],
)
def test_grouping_by_the_version(version, known, store, monkeypatch):
    """The same hits where a server does not know it, and where it does not do what it says."""
    content, real = long_videos(), Client.call
    append(store, content)

    def call(self: Client, name: str, *arguments: object, **options: object) -> object:
        assert options.pop("group_by_field", None) == (
            "addition" if known and name == "search" else None
        )
        return real(self, name, *arguments, **options)

    monkeypatch.setattr(Client, "call", call)
    store._client.version = version
    assert store._client.knows_grouping() == known
    assert_same(store, content)


def test_an_index_of_videos(tmp_path):
    """Everything that an index does, in a file."""
    pytest.importorskip("av", reason="the videos of an index are read with PyAV")
    mixed, plain = write_greys(tmp_path, [20, 20, 20, 220], [170] * 4)
    model, uri = FrameModel(), tmp_path / "clips.db"
    with VideoIndex.create(uri, model) as index:
        assert index.add([mixed], progress=False).added == (mixed,)
        assert index.add([mixed, plain], workers=1, progress=False).skipped == (mixed,)
        assert index.search("grey 220", rerank=False)[0].video == plain
        hits = index.search("grey 220")
        assert [(hit.video, hit.start, hit.end) for hit in hits] == [(mixed, 0, 1), (plain, 0, 1)]
        assert index.verify() == []
    with VideoIndex.open(uri, model=model) as index:
        assert index.search("grey 220") == hits
        index.remove([mixed])
        index.compact()
        assert len(index) == index.segments == 1
    with torch.no_grad():
        model.scale.bias.add_(1)
    with pytest.raises(ValueError, match="the index is of another model"):
        VideoIndex.open(uri, model=model)


def test_a_removal_during_a_search(store):
    append(store, videos(3))
    table = store.read()
    _, ids = table.search(torch.eye(DIM)[:1], 3)
    with store.write() as writer:
        writer.remove(["v1.mp4"])
    with pytest.raises(ValueError, match=r"'v1\.mp4' was removed while it was searched"):
        table.frames(ids[0])


def test_another_width_is_refused(store):
    with pytest.raises(ValueError, match=f"vectors of the width {DIM}, got 3"):
        store.read().search(torch.zeros(1, 3), 5)


def test_large_frame_features(store):
    """More than one text of Milvus holds."""
    frames = torch.randn(40, 1000, generator=torch.Generator().manual_seed(0))
    video = VideoSegments("v.mp4", [(0.0, 1.0)], torch.eye(DIM)[:1], [frames])
    append(store, {"v.mp4": video})
    assert_same(store, {"v.mp4": video})
    assert store.verify() == []


def test_collections_that_are_no_index(store, uri):
    client = store._client
    client.call("create_collection", "other", dimension=4)
    with pytest.raises(
        ValueError, match=r"the collection 'other' in .* is no index of muse-adapter"
    ):
        open_store(uri, "other")
    with pytest.raises(FileExistsError, match="or another collection"):
        create_store(uri, "other", settings(), b"")


KNOWN = '"format": 1, "settings": {"dim": 4}'
NO_NUMBER = "is damaged: nlist must be a whole number of at least 1, got "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 2}', "has format 2, this version of muse-adapter reads 1"),
        ('{"format": 1, "settings": {"dim": 0}}', "is damaged: dim must be an int of at least 1"),
        ("[]", "index of 'videos' in .* is damaged"),
        ("{", "is damaged"),
        (f'{{{KNOWN}, "index": "HNSW"}}', "is damaged: 'build' is missing or unknown"),
        (f'{{{KNOWN}, "index": "TREE", "build": {{}}}}', "damaged: 'TREE' is missing or unknown"),
        (f'{{{KNOWN}, "index": [], "build": {{}}}}', "is damaged"),
        (f'{{{KNOWN}, "index": "HNSW", "build": {{"M": 16}}}}', "'efConstruction' is missing"),
        (f'{{{KNOWN}, "index": "HNSW", "build": [16]}}', r"by their names, got \[16\]"),
        (f'{{{KNOWN}, "index": "FLAT", "build": null}}', "by their names, got None"),
        (f'{{{KNOWN}, "index": "IVF_SQ8", "build": {{"nlist": null}}}}', NO_NUMBER + "None"),
        (f'{{{KNOWN}, "index": "IVF_SQ8", "build": {{"nlist": "64"}}}}', NO_NUMBER + "'64'"),
        (f'{{{KNOWN}, "index": "IVF_SQ8", "build": {{"nlist": true}}}}', NO_NUMBER + "True"),
        (f'{{{KNOWN}, "index": "IVF_SQ8", "build": {{"nlist": 0}}}}', NO_NUMBER + "0"),
        ("null", "is damaged"),
        ('"1"', "is damaged"),
        ("1", "is damaged"),
    ],
)
def test_other_formats(text, message, store, uri):
    assert_refused({"muse_adapter.index": text}, message, store, uri)


@pytest.mark.parametrize("text", ["", "no base64", "aGVsbG8="])
def test_a_damaged_model(text, store, uri):
    message = "the property muse_adapter.model of 'videos' in .* is damaged"
    assert_refused({"muse_adapter.model": text}, message, store, uri)


def assert_refused(properties, message, store, uri):
    store._client.call("alter_collection_properties", "videos", properties=properties)
    with pytest.raises(ValueError, match=message):
        open_store(uri, "videos")


@pytest.mark.parametrize("index", ["FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8"])
def test_kinds_of_index(index, tmp_path, monkeypatch):
    """Of a server that says it is 2.4: its first versions refuse to group results of IVF_SQ8."""
    address = f"{tmp_path}/clips.db?index={index}"
    store = create_store(address, "videos", settings(), b"")
    append(store, videos(9))
    real, groups = Client.call, []

    def call(self: Client, name: str, *arguments: object, **options: object) -> object:
        if name == "search":
            groups.append(options.get("group_by_field"))
        return real(self, name, *arguments, **options)

    monkeypatch.setattr(Client, "call", call)
    store._client.version = "v2.4.1"
    (scores,), (rows,) = store.read().search(torch.eye(DIM)[:1], 3)
    assert len(scores) == len({row["addition"] for row in rows}) == 3
    assert set(groups) == {None if index == "IVF_SQ8" else "addition"}
    store.close()
    open_store(f"{tmp_path}/clips.db", "videos").close()
    other = "FLAT" if index == "HNSW" else "HNSW"
    with pytest.raises(ValueError, match=f"was created with index={index}, the address says"):
        open_store(f"{tmp_path}/clips.db?index={other}", "videos")


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_store(tmp_path / "missing.db", "videos")
    assert not list(tmp_path.iterdir())


def test_a_file_that_another_process_has(store, uri):
    fcntl = pytest.importorskip("fcntl", reason="Milvus Lite locks a file by flock")
    append(store, videos(2))
    store.close()
    with (Path(uri) / "LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another process may have it open"):
            open_store(uri, "videos")
    again, more = open_store(uri, "videos"), open_store(uri, "videos")
    again.close()
    again.close()
    assert_same(more, videos(2))
    more.close()


def test_a_server_that_is_not_there():
    with pytest.raises(
        ConnectionError, match=r"'http://127\.0\.0\.1:9' does not answer, tried for 1 s"
    ) as caught:
        open_store("http://me:hunter2@127.0.0.1:9?timeout=1", "videos")
    assert "hunter2" not in str(caught.value)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ImportError, match=r"needs pymilvus: pip install 'muse-adapter\[milvus\]'"):
        open_store("http://127.0.0.1:9", "videos")
