"""VideoIndex over real video files: adding, searching, reranking, windows."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from muse_adapter.search import AddReport, Hit, VideoIndex
from tests.support.search_models import FrameModel, PathModel, write_greys

pytest.importorskip("av", reason="the videos of an index are read with PyAV")
pytest.importorskip("fcntl", reason="writing a table needs POSIX locks")
pytest.importorskip("safetensors", reason="an index has the identity of its model in one")

LEVELS = [[level] * 4 for level in (20, 70, 120, 170, 220)]


@pytest.fixture
def greys(tmp_path: Path) -> list[str]:
    """Videos of one second and one grey level each."""
    return write_greys(tmp_path, *LEVELS)


@pytest.fixture
def index(tmp_path: Path) -> VideoIndex:
    return VideoIndex.create(tmp_path / "clips.index", FrameModel())


@pytest.mark.parametrize("model", [FrameModel, PathModel])
def test_the_right_video_is_found(model, greys, tmp_path):
    with VideoIndex.create(tmp_path / "clips.index", model()) as index:
        assert index.add(greys, progress=False) == AddReport(tuple(greys), (), {})
        assert len(index) == index.segments == 5
        hits = index.search("grey 121", k=2)
        assert [type(hit) for hit in hits] == [Hit, Hit]
        assert (hits[0].video, hits[0].start, hits[0].end) == (greys[2], 0.0, 1.0)
        assert 0.999 < hits[0].score <= 1.001 and hits[0].score > hits[1].score
        assert len(index.search("grey 0", k=50)) == 5
    with VideoIndex.open(tmp_path / "clips.index", model=model()) as again:
        assert again.search("grey 121", k=2) == hits


def test_what_is_in_is_skipped(index, greys):
    first = index.add([greys[0], Path(greys[1]), greys[0]], progress=False)
    assert first == AddReport((greys[0], greys[1]), (greys[0],), {})
    second = index.add(greys, progress=False)
    assert second == AddReport(tuple(greys[2:]), tuple(greys[:2]), {})
    index.remove([greys[3]])
    assert len(index) == 4 and greys[3] not in [hit.video for hit in index.search("grey 170")]
    assert index.add(greys, progress=False).added == (greys[3],)
    assert index.search("grey 170", k=1)[0].video == greys[3]
    index.compact()
    assert len(index) == 5 and index.verify() == []


@pytest.mark.parametrize("model", [FrameModel, PathModel])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_unreadable_videos_are_named(model, batch_size, greys, tmp_path):
    broken, missing = tmp_path / "broken.mp4", tmp_path / "missing.mp4"
    broken.write_bytes(b"no video")
    given = [greys[0], str(broken), greys[1], str(missing), greys[2]]
    with VideoIndex.create(tmp_path / "clips.index", model()) as index:
        report = index.add(given, batch_size=batch_size, progress=False)
        assert report.added == (greys[0], greys[1], greys[2]) and len(index) == 3
        assert "header is damaged" in report.unreadable[str(broken)]
        assert report.unreadable[str(missing)] == f"no such video file: {missing}"
        # The next call tries them again.
        assert set(index.add(given, progress=False).unreadable) == {str(broken), str(missing)}


def test_a_video_that_only_the_model_cannot_read(greys, tmp_path):
    class Picky(PathModel):
        def encode_document(self, documents):
            if greys[1] in documents:
                raise OSError("the model refuses it")
            return super().encode_document(documents)

    with VideoIndex.create(tmp_path / "clips.index", Picky()) as index:
        report = index.add(greys, batch_size=3, progress=False)
    assert report.unreadable == {greys[1]: "the model refuses it"}
    assert report.added == (greys[0], *greys[2:])


def test_an_error_of_a_model_that_takes_frames_is_an_error(index, greys):
    def offline(documents: list[object], output_value: str | None = "") -> None:
        raise OSError("weights are gone")

    index._model.encode_document = offline
    with pytest.raises(OSError, match="weights are gone"):
        index.add(greys, progress=False)
    assert len(index) == 0


def test_an_interrupted_call_is_repeated(index, greys):
    class Interrupted(FrameModel):
        def encode_document(self, documents, output_value=""):
            if len(self.documents) >= 4:
                raise KeyboardInterrupt
            return super().encode_document(documents, output_value)

    index._model = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        index.add(greys, batch_size=2, progress=False)
    assert len(index) == 4, "two batches"
    index._model = FrameModel()
    assert index.add(greys, batch_size=2, progress=False).added == (greys[4],)


def test_workers_end_with_an_error_at_once(index, greys):
    class Broken(FrameModel):
        def encode_document(self, documents, output_value=""):
            raise RuntimeError("the model is broken")

    index._model = Broken()
    try:
        index.add(greys, batch_size=1, workers=2, progress=False)
    except RuntimeError:  # its traceback lives in here
        assert multiprocessing.active_children() == []
        index._model = FrameModel()
        assert len(index.add(greys, progress=False).added) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_windows_of_long_videos(workers, tmp_path):
    long = write_greys(tmp_path, [20] * 4 + [120] * 6 + [220] * 6, [70] * 3)
    model = FrameModel()
    with VideoIndex.create(tmp_path / "clips.index", model, window=1.5, stride=1) as index:
        report = index.add(long, batch_size=2, workers=workers, progress=False)
        assert sorted(report.added) == sorted(long)
        # Frames of 0.25 s: 4 s are windows from 0, 1, 2 and 2.5; 0.75 s are one.
        assert (len(index), index.segments) == (2, 5)
        best = index.search("grey 120", k=2, rerank=False)
        assert (best[0].video, best[0].start, best[0].end) == (long[0], 1.0, 2.5)
        assert [hit.end for hit in index.search("grey 70", k=1, rerank=False)] == [0.75]
        assert index.search("grey 220", k=1, rerank=False)[0].start == 2.5
    shapes = {tuple(document.shape) for document in model.documents}
    assert shapes == {(4, 3, 16, 16), (3, 3, 16, 16)}


def test_workers_give_the_same_index(greys, tmp_path):
    found = []
    for workers in (0, 2):
        with VideoIndex.create(tmp_path / f"{workers}", FrameModel()) as index:
            index.add(greys, workers=workers, batch_size=3, progress=False)
            found.append(index.search("grey 100"))
    assert found[0] == found[1]


def test_the_second_stage_orders_by_frames(index, tmp_path):
    """The best frame decides, which the mean hides."""
    mixed, plain = write_greys(tmp_path, [20, 20, 20, 220], [170] * 4)
    index.add([mixed, plain], progress=False)
    assert index.search("grey 220", rerank=False)[0].video == plain
    hits = index.search("grey 220")
    assert [hit.video for hit in hits] == [mixed, plain] and hits[0].score == pytest.approx(
        1, abs=2e-3
    )
    assert index.search("grey 220", rerank=True) == hits
    assert len(index.search("grey 220", k=1)) == 1 and len(index.search("grey 220", k=70)) == 2

    def last_first(query: torch.Tensor, frames: list[torch.Tensor]) -> list[float]:
        assert query.shape == (8,) and [each.shape for each in frames] == [(4, 8), (4, 8)]
        return [0.0, 1.0]

    assert [hit.video for hit in index.search("grey 220", rerank=last_first)] == [mixed, plain]


def test_an_index_without_a_second_stage(greys, tmp_path):
    with VideoIndex.create(tmp_path / "one", FrameModel(), frame_features=False) as index:
        index.add(greys[:2], progress=False)
        assert index.search("grey 20")[0].score == pytest.approx(1, abs=2e-3)
        with pytest.raises(ValueError, match="has no frame features, which rerank= needs"):
            index.search("grey 20", rerank=True)
    model = FrameModel()
    with VideoIndex.create(tmp_path / "two", model) as index:
        index.add(greys[:2], progress=False)
        model.score_frames = None
        assert index.search("grey 20")[0].video == greys[0]
        with pytest.raises(ValueError, match=r"model with score_frames\(query, frames\), which Fr"):
            index.search("grey 20", rerank=True)


def test_attributes_of_the_first_module(tmp_path, greys):
    """As in a SentenceTransformer, which is a Sequential."""

    class Pipeline(torch.nn.Sequential):
        def encode_query(self, queries):
            return self[0].encode_query(queries)

        def encode_document(self, documents, output_value="sentence_embedding"):
            return self[0].encode_document(documents, output_value)

    with VideoIndex.create(tmp_path / "clips.index", Pipeline(FrameModel()), window=1) as index:
        index.add(greys[:2], progress=False)
        assert index.search("grey 20", rerank=True)[0].video == greys[0]


def test_an_index_opened_without_its_model(index, greys, tmp_path):
    index.add(greys, progress=False)
    with VideoIndex.open(tmp_path / "clips.index") as again:
        assert len(again) == 5 and again.verify() == []
        again.remove(greys[:1])
        again.compact()
        assert len(again) == len(index) == 4
        for call in (lambda: again.search("grey 20"), lambda: again.add(greys)):
            with pytest.raises(
                ValueError, match=r"needs the model of the index, a FrameModel: .*open\(uri, model="
            ):
                call()


def test_a_closed_index(index, greys):
    index.close()
    index.close()
    for call in (lambda: len(index), lambda: index.search("x"), lambda: index.add(greys)):
        with pytest.raises(ValueError, match="the index is closed"):
            call()


def test_progress_is_printed(index, greys, capsys):
    index.add(greys, progress=False)
    assert capsys.readouterr() == ("", "")
    index.add(greys)
    assert capsys.readouterr() == ("", ""), "there is nothing to do"
    index.remove(greys)
    index.add([*greys, "missing.mp4"])
    assert "6 of 6 videos, " in (printed := capsys.readouterr().err) and "1 unreadable" in printed


def test_another_writer_is_named(index, greys, tmp_path):
    from muse_adapter.search.local.lock import writer_lock

    with writer_lock(tmp_path / "clips.index" / "videos"):
        for call in (lambda: index.add(greys), lambda: index.remove([]), index.compact):
            with pytest.raises(BlockingIOError, match=f"written by process {os.getpid()} on host"):
                call()
