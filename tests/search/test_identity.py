"""Which models count as that of an index."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from muse_adapter.search import VideoIndex
from muse_adapter.search.identity import check_same, embedding_width, identify, model_class
from tests.support.search_models import FrameModel, PathModel

pytest.importorskip("safetensors", reason="an index has the identity of its model in one")


class Wrapper:
    """Holds modules, and is none."""

    def __init__(self, video_scale: float = 1.0) -> None:
        self.text = FrameModel()
        self.video = nn.Linear(4, 4)
        torch.nn.init.constant_(self.video.weight, video_scale)
        torch.nn.init.zeros_(self.video.bias)

    def encode_query(self, queries: list[str]) -> torch.Tensor:
        return self.text.encode_query(queries)

    def encode_document(self, documents: list[object]) -> torch.Tensor:
        return torch.zeros(len(documents), 8)


def changed(change: float) -> FrameModel:
    model = FrameModel()
    with torch.no_grad():
        model.scale.weight += change
    return model


def in_bfloat16() -> FrameModel:
    return FrameModel().bfloat16()


class MoreFrames(FrameModel):
    num_frames = 9


class OtherText(PathModel):
    def encode_query(self, queries: list[str]) -> list[list[float]]:
        return [[*vector[1:], vector[0]] for vector in super().encode_query(queries)]


class OtherWidth(PathModel):
    def encode_query(self, queries: list[str]) -> list[list[float]]:
        return [vector[:5] for vector in super().encode_query(queries)]


@pytest.mark.parametrize(
    ("model", "same"),
    [
        (FrameModel(), FrameModel()),
        (FrameModel(), copy.deepcopy(FrameModel()).eval()),
        (FrameModel(), in_bfloat16()),
        (in_bfloat16(), FrameModel()),
        (Wrapper(), Wrapper()),
    ],
    ids=["equal", "copied", "in bfloat16", "from bfloat16", "wrapper"],
)
def test_the_same_model(model, same):
    check_same(identify(model), same)


@pytest.mark.parametrize(
    ("model", "other", "message"),
    [
        (FrameModel(), changed(1e-7), "another model: 1 of 2 tensors of its weights differ"),
        (Wrapper(), Wrapper(1.001), "1 of 4 tensors of its weights differ"),
        (Wrapper(), FrameModel(), "its weights have other names or shapes"),
        (
            FrameModel(),
            MoreFrames(),
            r"\(num_frames, fps\) is \(4, None\) there and \(9, None\) now",
        ),
    ],
    ids=["weights", "video tower", "names", "frames"],
)
def test_another_model(model, other, message):
    with pytest.raises(ValueError, match=message):
        check_same(identify(model), other)


def test_models_without_weights_are_compared_by_a_text():
    stored = identify(PathModel())
    check_same(stored, PathModel())
    with pytest.raises(ValueError, match=r"embeddings of a text differ by \d+\.\d% of their norm"):
        check_same(stored, OtherText())
    with pytest.raises(ValueError, match="have the width 8 there and 5 now"):
        check_same(stored, OtherWidth())
    assert embedding_width(stored) == 8 and model_class(stored) == "PathModel"


def test_an_index_refuses_another_model(tmp_path):
    VideoIndex.create(tmp_path / "clips.index", FrameModel()).close()
    VideoIndex.open(tmp_path / "clips.index", model=FrameModel()).close()
    with pytest.raises(ValueError, match="the index is of another model: 1 of 2 tensors"):
        VideoIndex.open(tmp_path / "clips.index", model=changed(0.1))
    with pytest.raises(TypeError, match="Linear has no encode_query"):
        VideoIndex.open(tmp_path / "clips.index", model=nn.Linear(2, 2))
    path = tmp_path / "clips.index" / "videos" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="the identity of the model is damaged"):
        VideoIndex.open(tmp_path / "clips.index", model=FrameModel())


def test_settings_of_frames_are_compared_as_numbers(tmp_path):
    one, other = FrameModel(), FrameModel()
    one.num_frames, one.fps = 4, 1
    other.num_frames, other.fps = np.int64(4), np.float32(1)
    check_same(identify(one), other)
    for wrong in (0, 4.5, True):
        one.num_frames = wrong
        with pytest.raises(ValueError, match="num_frames must be an integer of at least 1"):
            VideoIndex.create(tmp_path / "clips.index", one)
