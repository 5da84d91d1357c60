"""Several writers that add to one index in turns."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from muse_adapter.search import VideoIndex, turns
from muse_adapter.search.store import open_store
from tests.support.search_models import FrameModel, write_greys

pytest.importorskip("av", reason="the videos of an index are read with PyAV")
pytest.importorskip("fcntl", reason="writing a table needs POSIX locks")
pytest.importorskip("safetensors", reason="an index has the identity of its model in one")


def test_nothing_is_lost_and_nothing_twice(tmp_path):
    """Three writers get overlapping lists."""
    videos = write_greys(tmp_path, *([level] * 2 for level in range(10, 250, 20)))
    VideoIndex.create(tmp_path / "clips.index", FrameModel()).close()

    def add(number: int):
        with VideoIndex.open(tmp_path / "clips.index", model=FrameModel()) as index:
            mine = videos[4 * number : 4 * number + 8]
            return mine, index.add(mine, batch_size=2, progress=False, shared=True)

    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(add, range(3)))
    for mine, report in done:
        assert sorted(report.added + report.skipped) == sorted(mine)
    assert sorted(video for _, report in done for video in report.added) == sorted(videos)
    with VideoIndex.open(tmp_path / "clips.index", model=FrameModel()) as index:
        assert len(index) == index.segments == len(videos)
        assert index.verify() == []
        assert {hit.video for hit in index.search("grey 30", k=20)} == set(videos)


def test_a_video_that_another_has_added_meanwhile_is_skipped(tmp_path):
    videos = write_greys(tmp_path, [20] * 2, [220] * 2)

    class Slow(FrameModel):
        def encode_document(self, documents, output_value=""):
            with VideoIndex.open(tmp_path / "clips.index", model=FrameModel()) as other:
                other.add(videos[:1], progress=False)  # it may write: nobody else is writing now
            return super().encode_document(documents, output_value)

    VideoIndex.create(tmp_path / "clips.index", FrameModel()).close()
    with VideoIndex.open(tmp_path / "clips.index", model=Slow()) as index:
        report = index.add(videos, progress=False, shared=True)
        assert (report.added, report.skipped) == ((videos[1],), (videos[0],))
        assert len(index) == 2


def test_waiting_has_an_end(tmp_path, monkeypatch):
    VideoIndex.create(tmp_path, FrameModel()).close()
    holder = open_store(tmp_path, "videos")
    with VideoIndex.open(tmp_path, model=FrameModel()) as index:
        with holder.write():
            monkeypatch.setattr(turns, "PATIENCE_S", 0.1)
            with pytest.raises(BlockingIOError, match="is being written by process"):
                index.add(["a.mp4"], progress=False, shared=True)
        assert "a.mp4" in index.add(["a.mp4"], progress=False, shared=True).unreadable
