"""Files with other streams than one plain video."""

from __future__ import annotations

from pathlib import Path

import pytest

av = pytest.importorskip("av", reason="reading videos needs PyAV: muse-adapter[video]")

from muse_adapter.data.video import UnreadableVideo, read_frames  # noqa: E402
from tests.support.video_files import grey_frames, grey_video, positions_in  # noqa: E402


def test_a_stream_without_a_decoder(tmp_path: Path) -> None:
    path = grey_video(tmp_path / "v.avi", 5)
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"QQQQ"))
    with pytest.raises(UnreadableVideo, match=r"v\.avi: PyAV's FFmpeg has no decoder"):
        read_frames(path, 4)


def write_with_cover(path: Path, with_video: bool) -> None:
    """Write a cover picture as the first stream, and maybe a video after it."""
    with av.open(str(path), "w") as container:
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        streams = [(cover, grey_frames(1, 64, 64))]
        if with_video:
            video = container.add_stream("mpeg4", rate=8, options={"qmin": "1", "qmax": "2"})
            video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
            streams.append((video, grey_frames(6)))
        for stream, frames in streams:
            for picture in frames:
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(picture.copy(), format="rgb24"))
                )
            container.mux(stream.encode())


def test_cover_art_is_not_the_video(tmp_path: Path) -> None:
    write_with_cover(tmp_path / "v.mp4", with_video=True)
    frames, mask = read_frames(tmp_path / "v.mp4", 6)
    assert frames.shape[2:] == (32, 48)
    assert positions_in(frames[mask]) == list(range(6))
    write_with_cover(tmp_path / "cover.mp4", with_video=False)
    with pytest.raises(UnreadableVideo, match="no video stream but cover art"):
        read_frames(tmp_path / "cover.mp4", 6)


def test_sizes_change_and_time_stamps_begin_again(tmp_path: Path) -> None:
    small = grey_video(tmp_path / "a.ts", 6, codec="libx264", rate=25)
    large = grey_video(tmp_path / "b.ts", 6, 64, 64, codec="libx264", rate=25)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    frames, mask = read_frames(joined, 12, size=32)
    assert positions_in(frames[mask]) == [*range(6), *range(6)]
    with pytest.raises(UnreadableVideo, match=r"differ in size \(48 x 32 and 64 x 64 pixels\)"):
        read_frames(joined, 12)
