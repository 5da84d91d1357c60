"""VideoIndex with models of several kinds, and wrong calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from muse_adapter.search import VideoIndex
from tests.support.search_models import FrameModel, PathModel, write_greys

pytest.importorskip("av", reason="the videos of an index are read with PyAV")
pytest.importorskip("fcntl", reason="writing a table needs POSIX locks")
pytest.importorskip("safetensors", reason="an index has the identity of its model in one")


@pytest.fixture
def greys(tmp_path: Path) -> list[str]:
    """Videos of one second and one grey level each."""
    return write_greys(tmp_path, *([level] * 4 for level in (20, 70, 120, 170, 220)))


@pytest.fixture
def index(tmp_path: Path) -> VideoIndex:
    return VideoIndex.create(tmp_path / "clips.index", FrameModel())


def test_frames_sampled_by_time(tmp_path):
    class ByTime(FrameModel):
        fps = 2

        def frames(self, document):
            assert document["video_metadata"] == {"fps": 2}
            return super().frames(document["array"])

    paths = write_greys(tmp_path, [20, 20, 220, 220, 120, 120])  # 1.5 seconds
    with VideoIndex.create(tmp_path / "clips.index", model := ByTime()) as index:
        index.add(paths, progress=False)
    levels = model.documents[0]["array"].float().mean((1, 2, 3))
    assert levels.tolist() == pytest.approx([20, 220, 120], abs=3)


class Halves:
    """Divides each video into two halves, with vectors that are not of unit norm."""

    num_frames = 4
    spans: object = ((0, 0.5), (0.5, 1))

    def __init__(self) -> None:
        self.model = FrameModel()

    def encode_query(self, queries):
        return self.model.encode_query(queries)

    def encode_segments(self, documents):
        frames = [self.model.frames(document) for document in documents]
        return [(0.5 * each[[0, 3]], self.spans) for each in frames]


def test_a_model_that_makes_segments(tmp_path):
    """As MamFusion does, whose folded vectors have norms up to 1."""
    path, short = write_greys(tmp_path, [20] * 8 + [220] * 8, [120] * 4)
    with VideoIndex.create(tmp_path / "clips.index", Halves()) as index:
        index.add([path, short], progress=False)
        assert (len(index), index.segments) == (2, 4)
        hit = index.search("grey 220", k=1)[0]
        assert (hit.video, hit.start, hit.end) == (path, 2.0, 4.0)
        assert hit.score == pytest.approx(0.5, abs=1e-3)
        hit = index.search("grey 20", k=1)[0]
        assert (hit.start, hit.end) == (0.0, 2.0)
        with pytest.raises(ValueError, match="has no frame features"):
            index.search("grey 20", rerank=True)
    with VideoIndex.create(tmp_path / "windows", Halves(), window=2) as index:
        index.add([path], progress=False)
        assert index.search("grey 220", k=1)[0].start in (2.0, 3.0) and index.segments == 4


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (((0, 0.5),), r"vectors \(G, D\) and spans \(G, 2\) .* got shapes \(2, 8\) and \(1, 2\)"),
        (((0, 2), (2, 4)), "spans as ascending fractions from 0 to 1"),
        (((0.5, 0), (0, 1)), "spans as ascending fractions from 0 to 1"),
    ],
)
def test_wrong_segments(spans, message, tmp_path, greys):
    model = Halves()
    model.spans = spans
    with VideoIndex.create(tmp_path / "clips.index", model) as index:
        with pytest.raises(ValueError, match=message):
            index.add(greys, progress=False)
        assert len(index) == 0


class OtherWidth(FrameModel):
    def encode_document(self, documents, output_value=""):
        return [
            {**each, "sentence_embedding": each["sentence_embedding"][:5]}
            for each in super().encode_document(documents, None)
        ]


class NotFinite(FrameModel):
    def encode_document(self, documents, output_value=""):
        return [
            {**each, "sentence_embedding": each["sentence_embedding"] * float("nan")}
            for each in super().encode_document(documents, None)
        ]


class WrongMask(FrameModel):
    def encode_document(self, documents, output_value=""):
        return [
            {**each, "attention_mask": each["attention_mask"][:1]}
            for each in super().encode_document(documents, None)
        ]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (WrongMask, r"token_embeddings \(T, F\) .* got shape \(5, 8\) and a mask of 1"),
        (OtherWidth, "must return vectors of the width of the index, 8, got 5"),
        (NotFinite, "encode_document must return finite vectors, got NaN or infinity"),
    ],
)
def test_wrong_embeddings(model, message, greys, tmp_path):
    with VideoIndex.create(tmp_path / "clips.index", model()) as index:
        with pytest.raises(ValueError, match=message):
            index.add(greys, progress=False)
        assert len(index) == 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda index: index.add("a.mp4"), TypeError, "list of paths, got the single path 'a.mp4'"),
        (lambda index: index.remove(Path("a.mp4")), TypeError, "got the single path"),
        (lambda index: index.remove(["a.mp4"]), KeyError, "not in the index: 'a.mp4'"),
        (lambda index: index.add([], batch_size=0), ValueError, "batch_size must be at least 1"),
        (lambda index: index.add([], workers=-1), ValueError, "workers at least 0, got 8 and -1"),
        (lambda index: index.search(["a"]), TypeError, "query must be a str, got list"),
        (lambda index: index.search("a", k=0), ValueError, "k must be an int of at least 1, got 0"),
        (lambda index: index.search("a", k=True), ValueError, "k must be an int"),
    ],
)
def test_wrong_calls(index, call, error, message):
    with pytest.raises(error, match=message):
        call(index)


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (torch.nn.Linear(2, 2), {}, TypeError, "Linear has no encode_query"),
        (PathModel(), {"window": 2}, ValueError, "window= needs a model that takes frames"),
        (FrameModel(), {"window": 0}, ValueError, "window must be a positive number .* got 0"),
        (FrameModel(), {"stride": 1}, ValueError, r"stride=1 needs window="),
        (FrameModel(), {"window": 1, "stride": 2}, ValueError, "stride must be at most window=1"),
    ],
)
def test_wrong_creation(model, options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        VideoIndex.create(tmp_path / "clips.index", model, **options)
    assert not list(tmp_path.iterdir())


def test_workers_need_frames(tmp_path):
    with (
        VideoIndex.create(tmp_path / "clips.index", PathModel()) as index,
        pytest.raises(ValueError, match="workers= needs a model that takes frames"),
    ):
        index.add([], workers=2)
