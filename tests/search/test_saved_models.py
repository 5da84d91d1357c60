"""An index of a saved `SentenceTransformer`: its model is loaded by itself, and reranks."""

from __future__ import annotations

import shutil
from dataclasses import astuple
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
pytest.importorskip("fcntl", reason="writing a table needs POSIX locks")

from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from muse_adapter.search import Hit, VideoIndex
from muse_adapter.search.saved_models import load_model
from tests.support.saved_models import tiny_model
from tests.support.video_files import grey_video, moving_frames, write_video

pytestmark = pytest.mark.usefixtures("torch_scan")

TEXT = "a small red dog"


def same(hits: list[Hit], expected: list[Hit]) -> bool:
    """Compare hits; a loaded copy may round otherwise."""
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-5)
    return [hit[:3] for hit in map(astuple, hits)] == [hit[:3] for hit in map(astuple, expected)]


@pytest.fixture
def model(tmp_path: Path) -> SentenceTransformer:
    model = tiny_model()
    model.save_pretrained(str(tmp_path / "model"))
    return model


@pytest.fixture
def videos(tmp_path: Path) -> list[str]:
    long = write_video(tmp_path / "long.mp4", moving_frames(20))
    return [str(long), *(str(grey_video(tmp_path / f"{n}.mp4", n)) for n in (3, 8))]


@pytest.mark.parametrize("windows", [{}, {"window": 1.0, "stride": 0.5}], ids=["whole", "windows"])
def test_from_files_to_reranked_hits(model, videos, windows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with VideoIndex.create("clips.index", model, **windows) as index:
        assert index.add(videos, progress=False).added == tuple(videos)
        expected = index.search(TEXT)
        plain = index.search(TEXT, rerank=False)
        assert expected == index.search(TEXT, rerank=True) != plain
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with VideoIndex.open(tmp_path / "clips.index") as index:
        assert same(index.search(TEXT), expected)
        assert index.add(videos, progress=False).skipped == tuple(videos)

    # By the definitions, from the model alone.
    query = torch.as_tensor(model.encode_query([TEXT])[0])
    output = model.encode_document(videos, output_value=None)
    if not windows:
        vectors = torch.stack([each["sentence_embedding"] for each in output])
        cosines = dict(zip(videos, (vectors @ query).tolist(), strict=True))
        assert {hit.video: hit.score for hit in plain} == pytest.approx(cosines, abs=1e-3)
        scores = {}
        for video, each in zip(videos, output, strict=True):
            frames = each["token_embeddings"][each["attention_mask"].bool()]
            gate = (frames @ query / 0.1).softmax(0)
            scores[video] = float(normalize(gate @ frames, dim=0) @ query)
        assert {hit.video: hit.score for hit in expected} == pytest.approx(scores, abs=2e-3)


def test_model_that_was_loaded(model, videos, tmp_path):
    again = load_model(str(tmp_path / "model"))
    with VideoIndex.create(tmp_path / "clips.index", again) as index:
        index.add(videos, progress=False)
        expected = index.search(TEXT)
    with VideoIndex.open(tmp_path / "clips.index") as index:
        assert same(index.search(TEXT), expected)


def test_nothing_is_loaded_before_it_is_needed(model, videos, tmp_path):
    with VideoIndex.create(tmp_path / "clips.index", model) as index:
        index.add(videos, progress=False)
    shutil.rmtree(tmp_path / "model")
    with VideoIndex.open(tmp_path / "clips.index") as index:
        index.remove(videos[:1])
        index.compact()
        assert len(index) == 2
        with pytest.raises(FileNotFoundError, match=r"was saved in '.*model' and is not there now"):
            index.search(TEXT)
    with VideoIndex.open(tmp_path / "clips.index", model=model) as index:
        assert len(index.search(TEXT)) == 2


def test_another_model_in_the_same_place(model, tmp_path):
    VideoIndex.create(tmp_path / "clips.index", model).close()
    with torch.no_grad():
        next(iter(model.parameters())).add_(1)
    model.save_pretrained(str(tmp_path / "model"))
    index = VideoIndex.open(tmp_path / "clips.index")
    with pytest.raises(ValueError, match=r"of another model: .*; loaded from '.*/model'"):
        index.search(TEXT)


def test_frames_of_another_width(model):
    with pytest.raises(ValueError, match=r"frames of videos have width 12, .* width 4"):
        model[0].score_frames(torch.ones(4), [torch.ones(3, 12)])
