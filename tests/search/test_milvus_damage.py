"""Damaged rows of an index in Milvus: `verify` finds them, and they can be removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from muse_adapter.search.milvus import MilvusStore
from tests.support.search_models import DIM, segments_of, settings
from tests.support.search_stores import append, videos

pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MilvusStore]:
    store = MilvusStore.create(str(tmp_path / "clips.db"), "videos", settings(), b"a model")
    yield store
    store.close()


def change(store: MilvusStore, video: str, number: int, changes: Mapping[str, Any]) -> None:
    """Write other values into the row of a segment."""
    condition = f'number == {number} and name == "{video}"'
    ((row,),) = store.read().scan(condition, ["*"])
    store._client.call("upsert", "videos", [{**row, **changes}])


@pytest.mark.parametrize(
    "changes", [{"start": 9.0}, {"vector": [0.5] * DIM}, {"frames": ["AAAA"]}, {"number": 0}]
)
def test_damage_is_found(changes: Mapping[str, Any], store: MilvusStore) -> None:
    append(store, videos(6))
    assert store.verify() == []
    change(store, "v3.mp4", 1, changes)
    assert store.verify() == ["v3.mp4"]


def test_a_missing_row_is_found(store: MilvusStore) -> None:
    append(store, videos(6))
    ((row,),) = store.read().scan('number == 1 and name == "v3.mp4"', [])
    store._client.call("delete", "videos", ids=[row["id"]])
    assert store.verify() == ["v3.mp4"]


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 5},
        {"number": -1},
        {"count": 10**12},
        {"count": 0},
        {"count": 1},
        {"addition": "that of v4.mp4"},
    ],
)
def test_damaged_first_rows(changes: Mapping[str, Any], store: MilvusStore) -> None:
    """Found, and removed without those of another video, also of the same content."""
    content = videos(6)
    content["v4.mp4"] = replace(content["v3.mp4"], video="v4.mp4")
    append(store, content)
    if "addition" in changes:
        ((row,),) = store.read().scan('number == 0 and name == "v4.mp4"', ["addition"])
        changes = {"addition": row["addition"]}
    change(store, "v3.mp4", 0, changes)
    assert store.verify() == ["v3.mp4"]
    with store.write() as writer:
        writer.remove(["v3.mp4"])
    del content["v3.mp4"]
    assert store.verify() == []
    assert store.read().num_videos == len(content)


@pytest.mark.parametrize("changes", [{"frames": ["AAAA"]}, {"frames": ["?"]}, {"num_frames": -1}])
def test_damaged_frame_features(changes: Mapping[str, Any], store: MilvusStore) -> None:
    append(store, {"v.mp4": segments_of("v.mp4", 1, count=1)})
    change(store, "v.mp4", 0, changes)
    _, ids = store.read().search(torch.eye(DIM)[:1], 1)
    with pytest.raises(ValueError, match=r"'v\.mp4' is damaged: .*VideoIndex\.verify\(\) lists"):
        store.read().frames(ids[0])
