"""The contract of stores: every store gives the same answers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from muse_adapter.search.segments import Settings, VideoSegments
from muse_adapter.search.store import Store, create_store, open_store
from tests.support.search_models import DIM, segments_of, settings
from tests.support.search_stores import append, assert_same, videos

pytest.importorskip("safetensors", reason="an index has the identity of its model in one")

SERVER = [pytest.mark.slow, pytest.mark.milvus_server]
STORES = ["folder", "milvus-lite", pytest.param("milvus-server", marks=SERVER)]


@pytest.fixture(params=STORES)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Return an address of each kind of store, where there is no index yet."""
    if request.param == "folder":
        yield str(tmp_path / "clips.index")
    elif request.param == "milvus-lite":
        pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
        yield str(tmp_path / "clips.db")
    else:
        with request.getfixturevalue("milvus_server").database() as address:
            yield address


@pytest.fixture
def open_(uri: str) -> Iterator[Callable[..., Store]]:
    """Return a function that opens a store, which is closed after the test."""
    with contextlib.ExitStack() as stores:

        def open_(name: str = "videos", create: Settings | None = None) -> Store:
            store = (
                open_store(uri, name)
                if create is None
                else create_store(uri, name, create, b"a model")
            )
            stores.callback(store.close)
            return store

        yield open_


@pytest.fixture
def store(open_: Callable[..., Store]) -> Store:
    return open_(create=settings())


def test_an_empty_table(store, open_):
    assert_same(store, {})
    assert_same(open_(), {})
    assert store.settings == settings() and open_().settings == settings()
    assert open_().model == b"a model"


def test_what_is_appended_is_found(store, open_):
    content = videos(40)
    for start in range(0, 40, 7):
        append(store, dict(list(content.items())[start : start + 7]))
        assert_same(store, dict(list(content.items())[: start + 7]))
    assert_same(open_(), content)


def test_a_video_with_many_good_segments_is_found_once(store):
    """More segments of one video than a search looks at come before those of the others."""
    content = videos(6)
    content["v0.mp4"] = VideoSegments(
        "v0.mp4",
        [(float(i), i + 1.0) for i in range(500)],
        F.normalize(torch.randn(DIM) + 0.01 * torch.randn(500, DIM), dim=1),
        [torch.zeros(1, 6)] * 500,
    )
    append(store, content)
    assert_same(store, content, k=6)


def test_removed_videos_are_not_found(store, open_):
    content = videos(30)
    append(store, content)
    for names in (["v3.mp4"], [f"v{i}.mp4" for i in range(10, 30)], []):
        with store.write() as writer:
            writer.remove(names)
            assert writer.present([*names, "v0.mp4"]) == {"v0.mp4"}
        content = {name: video for name, video in content.items() if name not in names}
        assert_same(store, content)
    again = segments_of("v3.mp4", 77, count=3)
    content["v3.mp4"] = again
    append(store, {"v3.mp4": again})
    assert_same(store, content)
    with store.write() as writer:
        assert writer.present(["v3.mp4", "v12.mp4"]) == {"v3.mp4"}
        writer.compact()
        assert writer.present(["v3.mp4", "v12.mp4"]) == {"v3.mp4"}
    assert_same(store, content)
    assert_same(open_(), content)


def test_everything_is_removed(store):
    append(store, videos(5))
    with store.write() as writer:
        writer.remove(videos(5))
    assert_same(store, {})
    with store.write() as writer:
        writer.compact()
    assert_same(store, {})
    append(store, videos(3))
    assert_same(store, videos(3))


def test_an_unknown_video_is_not_removed(store):
    append(store, videos(3))
    with store.write() as writer, pytest.raises(KeyError, match=r"'x\.mp4' and 1 others"):
        writer.remove(["v0.mp4", "x.mp4", "y.mp4"])
    assert_same(store, videos(3))


@pytest.mark.parametrize("uri", ["folder"], indirect=True)  # Milvus keeps no earlier states
def test_a_table_stays_as_it_was_read(store, open_):
    """Others append, remove and compact; whoever reads a table goes on with it."""
    append(store, videos(10))
    reader = open_()
    table = reader.read()
    found = table.search(torch.eye(DIM), 4)
    with store.write() as writer:
        writer.append(list(videos(20).values())[10:])
        writer.remove(["v1.mp4", "v2.mp4"])
        writer.compact()
    assert table.num_videos == 10 and table.search(torch.eye(DIM), 4) == found
    assert {
        segment.video for segment in table.segments(table.search(torch.eye(DIM), 10)[1][0])
    } == {f"v{i}.mp4" for i in range(10)}
    left = {name: video for name, video in videos(20).items() if name not in ("v1.mp4", "v2.mp4")}
    assert_same(reader, left)


def test_tables_of_one_address(store, open_):
    other = open_("other", settings(frame_features=False))
    append(store, videos(3))
    assert_same(other, {})
    with pytest.raises(FileExistsError, match=r"there is an index in .*VideoIndex\.open"):
        open_(create=settings())
    with pytest.raises(FileNotFoundError, match="there is no index"):
        open_("missing")
    assert_same(open_(), videos(3))


@pytest.mark.parametrize("uri", ["folder"], indirect=True)
def test_a_second_writer_is_refused(store, open_):
    with store.write() as writer:
        second = open_()
        with (
            pytest.raises(BlockingIOError, match=r"written by process \d+ on host"),
            second.write(),
        ):
            pass
        writer.append(list(videos(2).values()))
        assert_same(second, videos(2))
    append(second, {"v9.mp4": segments_of("v9.mp4", 9)})
    assert_same(store, {**videos(2), "v9.mp4": segments_of("v9.mp4", 9)})
    with pytest.raises(ZeroDivisionError), store.write():
        raise ZeroDivisionError
    append(store, {"v8.mp4": segments_of("v8.mp4", 8)})


@pytest.mark.parametrize("uri", STORES[1:], indirect=True)
def test_several_writers(store, open_):
    """In Milvus, also of the same videos."""
    with store.write() as writer, open_().write() as second:
        writer.append(list(videos(4).values()))
        second.append(list(videos(9).values())[2:])
    assert_same(store, videos(9))


def test_values_that_have_no_half(store):
    append(store, videos(2))
    wrong = segments_of("wrong.mp4", 1)
    assert wrong.frames is not None
    wrong.frames[0][0, 0] = 70000.0
    with pytest.raises(ValueError, match=r"'wrong\.mp4': frame features are not finite in half"):
        append(store, {"good.mp4": segments_of("good.mp4", 5), "wrong.mp4": wrong})
    assert_same(store, videos(2))


def test_names_of_any_kind(store, open_):
    names = ["ä ö/\N{GRINNING FACE}.mp4", "new\nline", "\udcff.mp4", " ", "a" * 3000]
    content = {name: segments_of(name, i) for i, name in enumerate(names)}
    append(store, content)
    assert_same(open_(), content)


@pytest.mark.parametrize(
    ("uri", "name", "message"),
    [
        ("", "videos", "uri must be a folder or an address of Milvus, got ''"),
        ("clips", "../other", r"ASCII letters, digits and underscores, got '\.\./other'"),
        ("clips.db", "", "ASCII letters"),
    ],
)
def test_wrong_addresses(uri, name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: create_store(uri, name, settings(), b""),
        lambda: open_store(uri, name),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not list(tmp_path.iterdir())
