"""Texts, images and videos of a batch are told apart; videos that cannot be read are named."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")

from PIL import Image

from muse_adapter.data.video.sampling import Sampling
from muse_adapter.sentence_transformers import UnreadableVideos
from muse_adapter.sentence_transformers.inputs import batch_frames, parse_inputs
from tests.support.video_files import grey_video

PICTURE = Image.new("RGB", (4, 4))
CLIP = np.zeros((2, 4, 4, 3), np.uint8)
DECODER = SimpleNamespace(get_frames_at=None)
MESSAGE = {"role": "user", "content": [{"type": "video", "video": CLIP}]}

KINDS = [
    ("a dog", "text"),
    ({"text": "clip.mp4"}, "text"),
    ({"role": "user", "content": "a dog"}, "text"),
    ("clip.mp4", "video"),
    ("CLIP.WEBM", "video"),
    ("picture.JPG", "image"),
    ("./my pictures/a dog.jpg", "image"),
    ("/my videos/a dog.mp4", "video"),
    ("a dog in front of a window", "text"),
    (Path("clip.mp4"), "video"),
    (Path("clip"), "video"),
    ({"video": "clip"}, "video"),
    (CLIP, "video"),
    (torch.zeros(2, 3, 4, 4), "video"),
    ([PICTURE, PICTURE], "video"),
    ((PICTURE, PICTURE, PICTURE), "video"),
    ({"array": CLIP, "video_metadata": {}}, "video"),
    ({"video": {"array": CLIP, "video_metadata": None}}, "video"),
    (DECODER, "video"),
    (MESSAGE, "video"),
    ([MESSAGE], "video"),
    (PICTURE, "image"),
    (CLIP[0], "image"),
    (Path("picture.PNG"), "image"),
    ({"image": "picture.png"}, "image"),
]


@pytest.mark.parametrize(("given", "kind"), KINDS, ids=lambda value: str(value)[:40])
def test_kind(given: Any, kind: str) -> None:
    assert parse_inputs([given])[0] == [kind]


def test_an_existing_picture_is_an_image(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "picture.png")
    assert parse_inputs([str(tmp_path / "picture.png"), CLIP])[0] == ["image", "video"]


def test_a_missing_file_is_told_from_a_caption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my videos").mkdir()
    assert parse_inputs(["my videos/a dog.mp4", "my videos/a dog.png"])[0] == ["video", "image"]
    caption = "a man opens his videos/dog.mp4"
    with pytest.warns(UserWarning, match=r"embedded as a text, .* pass \{.video.: path"):
        assert parse_inputs([caption])[0] == ["text"]
    with pytest.raises(UnreadableVideos, match=r"picture\.png: .*No such file"):
        batch_frames(*parse_inputs(["picture.png"]), Sampling(2), skip_unreadable=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([("a dog", "a cat")], "expected a text, an image or a video, got text tuple"),
        ([torch.zeros(100)], r"got audio Tensor \(100,\)"),
        ([{"text": "a dog", "video": CLIP}], "one content, text, image or video, got text, video"),
        ([{}], "got none"),
        ([{"text": ["a", "b"]}], "expected one text, got list"),
        ([[MESSAGE, MESSAGE]], "a single one, with one content"),
        ([{"role": "user", "content": [*MESSAGE["content"]] * 2}], "with one content"),
        (
            [{"role": "user", "content": [{"type": "video", "path": "clip.mp4"}]}],
            "must stand under its type, got .*'path': 'clip.mp4'",
        ),
        ([7], "Unsupported input type: int"),
        (["a dog", CLIP], "texts, or videos and images, not both"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_inputs_are_refused(given: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_inputs(given)


@pytest.fixture
def batch(tmp_path: Path) -> list[Any]:
    """A readable video between unreadable ones of several kinds."""
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 8)
    (tmp_path / "noise.png").write_bytes(b"no picture")
    good = grey_video(tmp_path / "good.mp4", 3)
    names = [tmp_path / "noise.mp4", good, tmp_path / "missing.mp4", tmp_path / "noise.png"]
    return [*names, {"array": CLIP[:0], "video_metadata": None}, {"video": {"frames": CLIP}}]


def test_one_error_names_all_unreadable_videos(batch: list[Any]) -> None:
    with pytest.raises(UnreadableVideos, match=r"^cannot read 5 of 6 videos:\n") as caught:
        batch_frames(*parse_inputs(batch), Sampling(2), skip_unreadable=False)
    reasons = caught.value.reasons
    assert list(reasons) == [
        *map(str, (batch[0], batch[2], batch[3])),
        "number 4 of the batch (ndarray (0, 4, 4, 3))",
        "number 5 of the batch (dict)",
    ]
    assert "no such video file" in reasons[str(batch[2])]
    assert all(f"  {name}: {reason}" in str(caught.value) for name, reason in reasons.items())
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.reasons) == (str(caught.value), reasons)


def test_unreadable_videos_are_skipped_where_asked(batch: list[Any]) -> None:
    with pytest.warns(UserWarning, match=r"cannot read 5 of 6 videos:\n(.*\n)+.*are zero"):
        frames = batch_frames(*parse_inputs(batch), Sampling(2), skip_unreadable=True)
    assert [len(video) for video in frames] == [0, 2, 0, 0, 0, 0]
