"""One video or image in every form: the same frames."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")

from PIL import Image

from muse_adapter.data.video.sampling import Sampling
from muse_adapter.sentence_transformers.frames import image_frame, video_frames
from tests.support.video_files import grey_frames, grey_video, positions_in

COUNT = 9
FRAMES = np.ascontiguousarray(grey_frames(COUNT))  # (T, height, width, 3)
FOUR = Sampling(4)


class Decoder:
    """What is read of torchcodec's `VideoDecoder`; decodes only what is asked for."""

    metadata = SimpleNamespace(num_frames=COUNT, average_fps=8.0)

    def get_frames_at(self, indices: list[int]) -> Any:
        data = torch.from_numpy(FRAMES[indices]).permute(0, 3, 1, 2)
        return SimpleNamespace(data=data)


class UnknownLength(Decoder):
    metadata = SimpleNamespace(num_frames=None, average_fps=None)


class Failing(Decoder):
    def get_frames_at(self, indices: list[int]) -> Any:
        raise RuntimeError("no such frame")


FORMS: dict[str, Any] = {
    "array": FRAMES,
    "array, channels first": FRAMES.transpose(0, 3, 1, 2),
    "array that is reversed": FRAMES[::-1, :, ::-1].copy()[::-1, :, ::-1],
    "array that is only read": np.frombuffer(FRAMES.tobytes(), np.uint8).reshape(FRAMES.shape),
    "tensor": torch.from_numpy(FRAMES),
    "tensor, floating point": torch.from_numpy(FRAMES) / 255,
    "batch of one": torch.from_numpy(FRAMES)[None],
    "list of arrays": list(FRAMES),
    "tuple of PIL images": tuple(Image.fromarray(frame) for frame in FRAMES),
    "with metadata": {"array": FRAMES, "video_metadata": {"fps": 8.0, "total_num_frames": COUNT}},
    "with empty metadata": {"array": list(FRAMES), "video_metadata": None},
    "torchcodec": Decoder(),
}


@pytest.mark.parametrize("form", FORMS)
def test_video_in_memory(form: str) -> None:
    frames = torch.stack(video_frames(FORMS[form], FOUR))
    assert frames.dtype == torch.uint8
    expected = torch.from_numpy(FRAMES[[0, 3, 5, 8]]).permute(0, 3, 1, 2)
    assert torch.equal(frames, expected)


def test_video_in_a_file(tmp_path: Path) -> None:
    path = grey_video(tmp_path / "clip.mp4", COUNT)
    for given in (path, str(path), {"array": str(path), "video_metadata": None}):
        assert positions_in(torch.stack(video_frames(given, FOUR))) == [0, 3, 5, 8]


@pytest.mark.parametrize(
    ("sampling", "positions"),
    [
        (Sampling(12, fps=4), [0, 2, 4, 6, 8]),
        (Sampling(12, start=0.5), [4, 5, 6, 7, 8]),
        (Sampling(12, start=0.25, end=0.75), [2, 3, 4, 5]),
        (Sampling(2, fps=1), [0, 8]),
    ],
)
def test_by_time_in_memory_and_in_a_file(
    tmp_path: Path, sampling: Sampling, positions: list[int]
) -> None:
    path = grey_video(tmp_path / "clip.mp4", COUNT)  # 8 frames a second
    for form in (path, FORMS["with metadata"], Decoder()):
        assert positions_in(torch.stack(video_frames(form, sampling))) == positions


def test_frames_that_were_sampled_before_keep_their_times() -> None:
    metadata = {"fps": 8.0, "frames_indices": [0, 4, 8]}
    video = {"array": FRAMES[[0, 4, 8]], "video_metadata": metadata}
    frames = torch.stack(video_frames(video, Sampling(12, end=0.75)))
    assert positions_in(frames) == [0, 4]


def test_image(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    expected = torch.from_numpy(picture).permute(2, 0, 1)
    forms = [
        tmp_path / "picture.png",
        str(tmp_path / "picture.png"),
        Image.fromarray(picture).convert("RGBA"),
        picture,
        expected,
        expected / 255,
        picture[:, ::-1].copy()[:, ::-1],
    ]
    for form in forms:
        assert torch.equal(image_frame(form), expected), type(form)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((2, 4, 6, 4), np.uint8), r"3 channels, got shape \(2, 4, 6, 4\)"),
        (np.zeros((2, 3, 4, 4), np.int64), "uint8, or floating point in 0..1, got torch.int64"),
        (np.full((2, 3, 4, 4), 200.0), "values from 200 to 200"),
        (torch.zeros(2, 5, 3, 4, 4), "pass several videos as a list"),
        (torch.zeros(0, 3, 4, 4), "a video without frames"),
        ([], "a video without frames"),
        (["one.png", 3], r"an image: a path, .* got int"),
        (7, "expected a video, got int"),
        ("https://host/clip.mp4", "is an address: download it"),
        ({"array": FRAMES, "video_metadata": {"frames_indices": [1]}}, "1 frames_indices for 9"),
        ({"frames": FRAMES}, 'as "array", got frames'),
        (np.full((2, 4, 4, 3), None), "frames as numbers, got object"),
        (UnknownLength(), "does not tell the number"),
        (Failing(), "its decoder failed: no such frame"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_other_forms_are_refused(video: Any, message: str, tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    if isinstance(video, list) and video:
        video = [str(tmp_path / "one.png"), *video[1:]]
    with pytest.raises(ValueError, match=message):
        video_frames(video, FOUR)


def test_times_need_a_frame_rate() -> None:
    with pytest.raises(ValueError, match="needs the frame rate"):
        video_frames(FRAMES, Sampling(4, fps=1))
    with pytest.raises(ValueError, match="ends before start=9"):
        video_frames(FORMS["with metadata"], Sampling(4, start=9.0))


def test_pictures_that_a_camera_has_turned(tmp_path: Path) -> None:
    turned, orientation = Image.new("RGB", (8, 6)), Image.Exif()
    orientation[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=orientation)
    assert image_frame(tmp_path / "turned.jpg").shape == (3, 8, 6)


def test_pictures_that_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="48 pixels"):
        image_frame(tmp_path / "large.png")


def test_images_of_other_forms_are_refused() -> None:
    for image in (torch.zeros(4, 4), torch.zeros(1, 4, 4), 3):
        with pytest.raises(ValueError):
            image_frame(image)


def test_frames_do_not_share_the_memory_of_floating_point_input() -> None:
    video: Tensor = torch.rand(2, 3, 4, 4)
    frames = video_frames(video, FOUR)
    assert frames[0].dtype == torch.uint8
    torch.testing.assert_close(frames[1], (video[1] * 255).round().to(torch.uint8))
