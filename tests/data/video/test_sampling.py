"""Sampling by time, over constant and variable frame rates."""

from __future__ import annotations

from pathlib import Path

import pytest

av = pytest.importorskip("av", reason="reading videos needs PyAV: muse-adapter[video]")

from muse_adapter.data.video import UnreadableVideo, read_frames, timeline  # noqa: E402
from tests.support.video_files import grey_video, positions_in  # noqa: E402

ARGUMENTS = [
    # 24 frames at 8 frames a second: 3 seconds.
    ({}, 4, [0, 8, 15, 23]),
    ({"start": 1.0}, 30, list(range(8, 24))),
    ({"start": 1.0, "end": 2.0}, 30, list(range(8, 16))),
    ({"start": 1.06, "end": 1.07}, 30, [8]),
    ({"end": 1.0}, 3, [0, 4, 7]),
    ({"start": 2.5, "end": 99.0}, 30, [20, 21, 22, 23]),
    ({"fps": 1}, 30, [0, 8, 16]),
    ({"fps": 2}, 30, [0, 4, 8, 12, 16, 20]),
    ({"fps": 2}, 3, [0, 12, 20]),
    ({"fps": 16, "start": 0.5, "end": 0.75}, 30, [4, 4, 5, 5]),
    ({"fps": 0.1}, 30, [0]),
    ({"fps": 1, "start": 0.5}, 30, [4, 12, 20]),
]


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv", "ts"])
@pytest.mark.parametrize(("arguments", "num_frames", "expected"), ARGUMENTS, ids=str)
def test_sampling_by_time(
    tmp_path: Path, suffix: str, arguments: dict, num_frames: int, expected: list[int]
) -> None:
    path = grey_video(tmp_path / f"v.{suffix}", 24)
    frames, mask = read_frames(path, num_frames, **arguments)
    assert positions_in(frames[mask]) == expected


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv", "ts"])
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"fps": 15}, list(range(0, 24, 2))),
        ({"fps": 30}, list(range(24))),
        ({"start": 2 / 30, "end": 5 / 30}, [2, 3, 4]),
    ],
    ids=str,
)
def test_times_that_the_file_rounds(
    tmp_path: Path, suffix: str, arguments: dict, expected: list[int]
) -> None:
    """30 frames a second are not whole milliseconds, which Matroska counts in."""
    path = grey_video(tmp_path / f"v.{suffix}", 24, rate=30)
    frames, mask = read_frames(path, 30, **arguments)
    assert positions_in(frames[mask]) == expected


def test_a_frame_that_is_shown_for_long_is_repeated(tmp_path: Path) -> None:
    path = grey_video(tmp_path / "v.mkv", 5, stamps=[0, 100, 3100, 3200, 4000])
    frames, mask = read_frames(path, 10, fps=1)
    assert positions_in(frames[mask]) == [0, 1, 1, 1, 4]


def test_time_counts_from_the_first_frame(tmp_path: Path) -> None:
    path = grey_video(tmp_path / "v.mp4", 16, stamps=[700 + 125 * i for i in range(16)])
    frames, mask = read_frames(path, 16, start=1.0)
    assert positions_in(frames[mask]) == list(range(8, 16))


def test_negative_times(tmp_path: Path) -> None:
    """In a container that shows what lies before 0, time still counts from the first frame."""
    stamps = [125 * i - 500 for i in range(16)]
    muxer = {"avoid_negative_ts": "disabled"}
    path = grey_video(tmp_path / "v.mkv", 16, stamps=stamps, muxer=muxer)
    assert timeline.list_frames(path).packets[0].pts == -500
    frames, mask = read_frames(path, 16)
    assert positions_in(frames[mask]) == list(range(16))
    frames, mask = read_frames(path, 16, start=1.0)
    assert positions_in(frames[mask]) == list(range(8, 16))


def test_frames_that_an_edit_list_hides_are_not_sampled(tmp_path: Path) -> None:
    # FFmpeg writes negative times to mp4 as an edit list that begins at 0.
    path = grey_video(tmp_path / "v.mp4", 16, stamps=[125 * i - 500 for i in range(16)])
    frames, mask = read_frames(path, 16)
    assert positions_in(frames[mask]) == list(range(4, 16))
    frames, mask = read_frames(path, 16, start=1.0)
    assert positions_in(frames[mask]) == list(range(12, 16))


def test_a_start_beyond_the_video(tmp_path: Path) -> None:
    path = grey_video(tmp_path / "v.mp4", 24)
    with pytest.raises(UnreadableVideo, match=r"v\.mp4: start=5 is not before its end, at 3 sec"):
        read_frames(path, 4, start=5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": -1.0}, r"start must be None or a finite number >= 0, got -1\.0"),
        ({"end": float("nan")}, "end must be .* got nan"),
        ({"fps": float("inf")}, "fps must be .* got inf"),
        ({"fps": 0}, "fps must be above 0"),
        ({"start": "1"}, "start must be .* got '1'"),
        ({"fps": True}, "fps must be .* got True"),
        ({"start": 2.0, "end": 2.0}, r"end must be after start=2\.0, got end=2\.0"),
    ],
    ids=str,
)
def test_wrong_times(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_frames(tmp_path / "v.mp4", 4, **arguments)


def test_times_of_numpy_and_beyond_floating_point(tmp_path: Path) -> None:
    np = pytest.importorskip("numpy")
    path = grey_video(tmp_path / "v.mp4", 24)
    frames, mask = read_frames(path, 30, start=np.int64(1), end=np.float32(2))
    assert positions_in(frames[mask]) == list(range(8, 16))
    with pytest.raises(ValueError, match="fps must be None or a finite number"):
        read_frames(path, 30, fps=10**400)
