"""Damaged files: what can be decoded is read, and the rest is counted."""

from __future__ import annotations

import itertools
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

av = pytest.importorskip("av", reason="reading videos needs PyAV: muse-adapter[video]")
np = pytest.importorskip("numpy", reason="making videos needs numpy")

from muse_adapter.data.video import (  # noqa: E402
    UnreadableVideo,
    decoding,
    read_frames,
    reading,
    timeline,
)
from tests.support.video_files import damage, edit, grey_video, packets_of, positions_in  # noqa: E402

COUNT = 24
# Groups of 4 frames, the others predicted, although grey levels jump as at a cut.
GROUPS = {"g": "4", "qmin": "1", "qmax": "2", "sc_threshold": "1000000000"}
FILES = {
    "mjpeg_avi": ("mjpeg", "avi", "yuvj420p", {}),
    "mpeg4_avi": ("mpeg4", "avi", "yuv420p", GROUPS),
    "mpeg4_mp4": ("mpeg4", "mp4", "yuv420p", GROUPS),
    "h264_mp4": ("libx264", "mp4", "yuv420p", {"g": "4", "bf": "0", "sc_threshold": "0"}),
}


@pytest.mark.parametrize("numbers", [(3,), (0,), (5, 6, 13), (COUNT - 1,)], ids=str)
@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt", "options"), FILES.values(), ids=FILES.keys()
)
def test_damaged_packets_are_left_out(
    tmp_path: Path, codec: str, suffix: str, pix_fmt: str, options: dict[str, str], numbers: tuple
) -> None:
    path = grey_video(
        tmp_path / f"v.{suffix}", COUNT, codec=codec, pix_fmt=pix_fmt, options=options
    )
    damage(path, *numbers)
    # Of H.264, a damaged key frame at the start is none, and its group has no reference.
    lost = 4 if codec == "libx264" and numbers == (0,) else len(numbers)
    count = f"{lost} packet{'s are' if lost > 1 else ' is'} left out"
    with pytest.warns(UserWarning, match=count) as warned:
        frames, mask = read_frames(path, COUNT)
    assert len(warned) == 1
    found = positions_in(frames[mask])
    # A frame predicted from a damaged one may look like its predecessor, in its group of 4.
    groups = {number // 4 for number in numbers}
    sound = [i for i in range(COUNT) if i // 4 not in groups]
    assert [i for i in found if i // 4 not in groups] == sound


def test_damage_in_large_frames_costs_no_other_frame(tmp_path: Path) -> None:
    path = damage(
        grey_video(tmp_path / "v.avi", 12, 480, 640, codec="mjpeg", pix_fmt="yuvj420p", options={}),
        10,
    )
    with pytest.warns(UserWarning, match="1 packet is left out"):
        frames, mask = read_frames(path, 12, size=32)
    assert positions_in(frames[mask]) == [*range(10), 11]


def test_damage_that_no_sampled_frame_needs_changes_nothing(tmp_path: Path) -> None:
    path = grey_video(tmp_path / "v.avi", COUNT, codec="mjpeg", pix_fmt="yuvj420p", options={})
    before, _ = read_frames(path, 2)
    after, mask = read_frames(damage(path, 12), 2)
    assert mask.all() and (before == after).all()


def test_all_packets_are_damaged(tmp_path: Path) -> None:
    path = damage(
        grey_video(tmp_path / "v.avi", 6, codec="mjpeg", pix_fmt="yuvj420p", options={}), *range(6)
    )
    with pytest.raises(
        UnreadableVideo, match=r"v\.avi: no frame could be decoded, 6 packets are lost"
    ):
        read_frames(path, 4)


def test_the_first_frame_is_no_key_frame(tmp_path: Path) -> None:
    path = grey_video(tmp_path / "v.avi", COUNT, options=GROUPS)

    def cut(content: bytearray) -> None:
        """Make the first packet, a key frame, an unknown chunk, which a reader skips."""
        start = packets_of(path)[0][0]
        at = content.index(b"00dc", start - 8)
        content[at : at + 4] = b"JUNK"
        index = content.index(b"00dc", content.index(b"idx1"))
        content[index : index + 4] = b"JUNK"

    edit(path, cut)
    with pytest.warns(UserWarning, match="3 packets are left out.* before the first key frame"):
        frames, mask = read_frames(path, COUNT)
    # The decoder would show grey where frames 1 to 3 refer to the missing one.
    assert positions_in(frames[mask]) == list(range(4, COUNT))


def test_a_file_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the container, as a failing disk gives, ends the frames and is said."""
    path = grey_video(tmp_path / "v.mkv", COUNT, options=GROUPS)
    opened = av.open

    class BreaksOff:
        """A container of which 12 packets can be read."""

        def __init__(self, container: Any) -> None:
            self.container = container

        def __getattr__(self, name: str) -> Any:
            return getattr(self.container, name)

        def __enter__(self) -> BreaksOff:
            return self

        def __exit__(self, *error: object) -> None:
            self.container.close()

        def demux(self, stream: Any) -> Iterator[Any]:
            yield from itertools.islice(self.container.demux(stream), 12)
            raise av.InvalidDataError(1, "planted")

    monkeypatch.setattr(av, "open", lambda *a, **k: BreaksOff(opened(*a, **k)))
    with pytest.warns(UserWarning, match=r"v\.mkv' breaks off before its end") as warned:
        frames, mask = read_frames(path, COUNT)
    assert len(warned) == 1
    assert positions_in(frames[mask]) == list(range(12))


def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = damage(grey_video(tmp_path / "v.avi", COUNT, options=GROUPS), 5)
    listing = timeline.list_frames(path)
    growing = itertools.count(2)

    def decode(*arguments: Any, **options: Any) -> decoding.Decoded:
        return decoding.Decoded(stamps=[*range(next(growing))], frames={})

    monkeypatch.setattr(reading, "list_frames", lambda path: listing)
    monkeypatch.setattr(reading, "decode_all", decode)
    with pytest.raises(UnreadableVideo, match=r"v\.avi: other frames come each time"):
        read_frames(path, COUNT)


def test_pixels_that_cannot_be_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = damage(grey_video(tmp_path / "v.avi", COUNT, options=GROUPS), 5)

    def refuse(picture: Any, size: int | None) -> None:
        raise av.InvalidDataError(1, "planted")

    monkeypatch.setattr(decoding, "to_tensor", refuse)
    with pytest.raises(UnreadableVideo, match=r"its pixels \(yuv420p\) cannot be converted"):
        read_frames(path, 4)


def test_the_error_survives_the_way_from_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(UnreadableVideo("clip.mp4", "no reason")))
    assert str(error) == "cannot read clip.mp4: no reason"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_a_named_pipe_is_no_video(tmp_path):
    """FFmpeg would wait for its writer for ever."""
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UnreadableVideo, match=r"pipe\.mp4.*: it is a named pipe"):
        read_frames(tmp_path / "pipe.mp4", 2)
