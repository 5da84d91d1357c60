"""Frames read from small video files that the tests write with PyAV."""

from __future__ import annotations

import os
import sys
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch

np = pytest.importorskip("numpy", reason="making videos needs numpy")
av = pytest.importorskip("av", reason="reading videos needs PyAV: muse-adapter[video]")

from muse_adapter.data.video import (  # noqa: E402
    UnreadableVideo,
    picture,
    read_frames,
    sample_positions,
)
from tests.support.video_files import (  # noqa: E402
    LEVEL_STEP,
    grey_video,
    positions_in,
    write_video,
)


@pytest.mark.parametrize(
    ("available", "wanted", "expected"),
    [
        pytest.param(3, 5, [0, 1, 2], id="fewer_than_wanted"),
        pytest.param(4, 4, [0, 1, 2, 3], id="as_many_as_wanted"),
        pytest.param(9, 5, [0, 2, 4, 6, 8], id="even_steps"),
        pytest.param(16, 8, [0, 2, 4, 6, 9, 11, 13, 15], id="uneven_steps"),
        pytest.param(8, 1, [3], id="one_from_the_middle"),
        pytest.param(20, 2, [0, 19], id="two"),
    ],
)
def test_sampled_positions(
    tmp_path: Path, available: int, wanted: int, expected: list[int]
) -> None:
    frames, mask = read_frames(grey_video(tmp_path / "grey.mp4", available), wanted)

    assert frames.shape == (wanted, 3, 32, 48) and frames.dtype == torch.uint8
    assert mask.dtype == torch.bool
    assert mask.tolist() == [i < len(expected) for i in range(wanted)]
    assert positions_in(frames[mask]) == expected
    assert not frames[~mask].any(), "frames that do not exist must be zero"


# Numbers of frames in the video and in the sample.
LENGTHS = list(product(range(1, 201), range(1, 41)))


def test_a_reversed_video_gives_the_reversed_sample() -> None:
    for available, wanted in LENGTHS:
        positions = sample_positions(available, wanted)
        mirrored = [available - 1 - position for position in reversed(positions)]
        middle = len(positions) // 2
        if len(positions) % 2 and available % 2 == 0:  # the exact middle is between two frames
            assert abs(positions.pop(middle) - mirrored.pop(middle)) == 1
        assert positions == mirrored, (available, wanted)


def test_the_sample_is_uniform() -> None:
    for available, wanted in LENGTHS:
        case = (available, wanted)
        positions = sample_positions(available, wanted)
        assert len(positions) == min(available, wanted), case
        assert positions[0] >= 0 and positions[-1] < available, case
        steps = {after - before for before, after in pairwise(positions)}
        assert all(step >= 1 for step in steps), case
        assert not steps or max(steps) - min(steps) <= 2, case
        if wanted > 1:
            assert (positions[0], positions[-1]) == (0, available - 1), case


@pytest.mark.parametrize("gop", [1, 12], ids=["intra_only", "predicted_with_b_frames"])
def test_frames_are_in_display_order(tmp_path: Path, gop: int) -> None:
    levels = (20 + LEVEL_STEP * np.arange(12)).astype(np.uint8)
    video = np.broadcast_to(levels[:, None, None, None], (12, 32, 32, 3))
    settings = {"gop_size": gop, "max_b_frames": 2 if gop > 1 else 0}
    frames, _ = read_frames(write_video(tmp_path / "v.mp4", video, **settings), 12)
    assert positions_in(frames) == list(range(12))


def stripes(height: int, width: int) -> np.ndarray:
    """Make two frames with equal red, green and blue stripes along the longer side."""
    colours = np.eye(3, dtype=np.uint8) * 255
    column = colours[np.arange(max(height, width)) * 3 // max(height, width)]
    picture = np.broadcast_to(column[:, None], (max(height, width), min(height, width), 3))
    return np.stack([picture if height > width else picture.transpose(1, 0, 2)] * 2)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        pytest.param(32, 96, 16, id="wide_smaller"),
        pytest.param(96, 32, 16, id="tall_smaller"),
        pytest.param(32, 96, 32, id="wide_crop_only"),
        pytest.param(16, 48, 40, id="wide_larger"),
        pytest.param(98, 34, 33, id="odd_size"),
    ],
)
def test_size_resizes_the_short_side_and_crops_the_centre(
    tmp_path: Path, height: int, width: int, size: int
) -> None:
    video = write_video(tmp_path / "v.mp4", stripes(height, width))
    frames, mask = read_frames(video, 2, size=size)
    assert frames.shape == (2, 3, size, size)
    assert mask.all()
    inner = frames[0, :, size // 4 : -size // 4, size // 4 : -size // 4].float().mean(dim=(1, 2))
    assert inner[1] > 200 and inner[0] < 60 and inner[2] < 60, "the middle third is green"


def test_downscaling_averages_pixels(tmp_path: Path) -> None:
    lines = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    lines[:, ::4] = 255
    frames, _ = read_frames(write_video(tmp_path / "v.mp4", lines), 1, size=8)
    assert 45 < frames.float().mean() < 85  # a quarter of the lines is white
    assert frames.float().std() < 20


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        silence = np.zeros((1, 800), dtype=np.int16)
        frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_cut(path: Path) -> None:
    content = grey_video(path, 12).read_bytes()
    path.write_bytes(content[: content.index(b"moov") - 4])


UNREADABLE = {
    "empty": (lambda path: path.write_bytes(b""), "clip.mp4", "Invalid data"),
    "no_video_at_all": (lambda path: path.write_bytes(b"abc" * 999), "clip.mp4", "Invalid data"),
    "cut_before_its_index": (write_cut, "clip.mp4", "Invalid data"),
    "sound_only": (write_sound, "clip.wav", "no video stream"),
    "folder": (lambda path: path.mkdir(), "clip.mp4", "Is a directory"),
}


@pytest.mark.parametrize(("make", "name", "reason"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_the_error_names_an_unreadable_file_and_the_reason(
    tmp_path: Path, make: object, name: str, reason: str
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(UnreadableVideo, match=f"(?s){name}.*{reason}"):
        read_frames(path, 4)


def test_a_file_with_only_damaged_frames_is_unreadable(tmp_path: Path) -> None:
    path = grey_video(tmp_path / "clip.mp4", 6)
    content = bytearray(path.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    content[start:end] = bytes([0xFF]) * (end - start)
    path.write_bytes(content)
    with pytest.raises(UnreadableVideo, match=r"clip\.mp4: no frame could be decoded"):
        read_frames(path, 4)


@pytest.mark.skipif(os.name == "nt", reason="no colon in names of files")
@pytest.mark.parametrize("name", ["12:30.mp4", "file:x.mp4", "-.mp4", "%05d.mp4", "ü #?.mp4"])
def test_names_that_ffmpeg_might_interpret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    grey_video(tmp_path / "v.mp4", 6).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    frames, mask = read_frames(name, 6)
    assert positions_in(frames[mask]) == list(range(6))


def test_a_truncated_stream_ends_early(tmp_path: Path) -> None:
    path = grey_video(tmp_path / "clip.avi", 20, height=64, width=64)
    content = path.read_bytes()
    start = content.index(b"movi")
    path.write_bytes(content[: start + (content.index(b"idx1") - start) // 2])
    frames, mask = read_frames(path, 4)
    assert mask.all()
    positions = positions_in(frames)
    assert positions[0] == 0 and positions == sorted(set(positions))
    assert 4 <= positions[-1] < 19


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param({"num_frames": 0}, ValueError, "num_frames must be .* got 0", id="no_frames"),
        pytest.param({"num_frames": 2.0}, ValueError, "num_frames .* got 2.0", id="float"),
        pytest.param({"num_frames": True}, ValueError, "num_frames .* got True", id="bool"),
        pytest.param(
            {"num_frames": 2, "size": 0}, ValueError, "size must be .* at least 1, got 0", id="size"
        ),
        pytest.param({"num_frames": 2}, FileNotFoundError, r"nowhere\.mp4", id="no_such_file"),
    ],
)
def test_wrong_arguments(
    tmp_path: Path, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_frames(tmp_path / "nowhere.mp4", **arguments)


def test_the_error_without_pyav_has_the_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"PyAV: pip install 'muse-adapter\[video\]'"):
        read_frames(tmp_path / "clip.mp4", 4)


def test_an_old_pyav_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "__version__", "16.1.0")
    with pytest.raises(ImportError, match=r"needs PyAV 17 or newer.* found 16\.1\.0: pip"):
        read_frames(tmp_path / "clip.mp4", 4)


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_side_data_that_pyav_has_no_name_for(rotation: int) -> None:
    """Then the rotation is known, and mirrors are not."""

    class Frame:
        def __init__(self) -> None:
            self.rotation = rotation

        @property
        def side_data(self) -> dict:
            raise ValueError("31 is not a valid Type")

    image = torch.arange(24).reshape(1, 4, 6)
    expected = torch.rot90(image, rotation // 90, (1, 2))
    assert torch.equal(picture._upright(image, Frame()), expected)
