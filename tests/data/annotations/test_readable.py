"""Unreadable videos are told by their first frame, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("av", reason="reading videos needs PyAV: muse-adapter[video]")

from muse_adapter.data import read_frames
from muse_adapter.data.annotations import why_unreadable
from tests.support.video_files import damage, edit, grey_video


@pytest.mark.parametrize(
    ("codec", "name"), [("mpeg4", "a.mp4"), ("libx264", "a.mp4"), ("mpeg4", "a.avi")]
)
def test_videos_of_one_frame_and_of_many(codec: str, name: str, tmp_path: Path) -> None:
    for count in (1, 20):  # libx264 holds frames back
        video = grey_video(tmp_path / name, count, codec=codec)
        assert why_unreadable(video) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"", "no video, or its header"), (b"text" * 99, "no video, or its")],
    ids=["missing", "empty", "text"],
)
def test_reason(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    found = why_unreadable(path)
    assert found is not None and str(path) in found and reason in found


def test_header_without_frames(tmp_path: Path) -> None:
    """All that follows the header is missing, as after a download that broke off."""
    video = grey_video(tmp_path / "a.avi", 5, codec="mjpeg", pix_fmt="yuvj420p")

    def cut(content: bytearray) -> None:
        del content[content.index(b"movi") + 4 :]

    found = why_unreadable(edit(video, cut))
    assert found is not None and "no frame could be decoded" in found


def test_a_damaged_packet_is_left_out(tmp_path: Path) -> None:
    """As `read_frames` does: the first packet is damaged, the others are frames of their own."""
    video = damage(grey_video(tmp_path / "a.avi", 5, codec="mjpeg", pix_fmt="yuvj420p"), 0)
    with pytest.warns(UserWarning, match="1 packet is left out"):
        read_frames(video, 4)
    assert why_unreadable(video) is None
