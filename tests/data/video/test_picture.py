"""Colours and orientation of frames."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

av = pytest.importorskip("av", reason="reading videos needs PyAV: muse-adapter[video]")
np = pytest.importorskip("numpy", reason="making videos needs numpy")

from av.video.reformatter import ColorRange, Colorspace  # noqa: E402

from muse_adapter.data.video import read_frames  # noqa: E402
from tests.support.video_files import need_encoder, write_video  # noqa: E402

# Weights of red and blue in the luma.
STANDARDS = {
    "bt601": (Colorspace.ITU601, 0.299, 0.114),
    "bt709": (Colorspace.ITU709, 0.2126, 0.0722),
    "bt2020": (Colorspace.BT2020, 0.2627, 0.0593),
}
COLOURS = [(220, 40, 30), (20, 200, 60), (40, 60, 210), (250, 250, 250), (5, 5, 5)]


def to_yuv(colour: tuple[int, ...], kr: float, kb: float, full: bool) -> tuple[float, ...]:
    """Convert a colour by the definition of the standards, to levels of 8 bits."""
    r, g, b = (level / 255 for level in colour)
    y = kr * r + (1 - kr - kb) * g + kb * b
    u, v = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    if full:
        return 255 * y, 128 + 255 * u, 128 + 255 * v
    return 16 + 219 * y, 128 + 224 * u, 128 + 224 * v


@pytest.mark.parametrize("depth", [8, 10])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("standard", STANDARDS)
def test_colours(tmp_path: Path, standard: str, full: bool, depth: int) -> None:
    need_encoder("libx264")
    space, kr, kb = STANDARDS[standard]
    pix_fmt = "yuv420p" if depth == 8 else "yuv420p10le"
    path = tmp_path / "v.mp4"
    for colour in COLOURS:
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, pix_fmt
            stream.codec_context.colorspace = space
            colour_range = ColorRange.JPEG if full else ColorRange.MPEG
            stream.codec_context.color_range = colour_range
            frame = av.VideoFrame(64, 64, pix_fmt)
            dtype = np.uint8 if depth == 8 else np.uint16
            for plane, level in zip(frame.planes, to_yuv(colour, kr, kb, full), strict=True):
                count = plane.buffer_size // np.dtype(dtype).itemsize
                plane.update(np.full(count, round(level * 2 ** (depth - 8)), dtype).tobytes())
            frame.colorspace, frame.color_range = space, colour_range
            container.mux(stream.encode(frame))
            container.mux(stream.encode())
        found = read_frames(path, 1)[0][0, :, 32, 32].tolist()
        assert found == pytest.approx(colour, abs=4)


def test_formats_without_yuv(tmp_path: Path) -> None:
    picture = np.full((64, 64, 3), (200, 60, 30), np.uint8)
    for codec, suffix, pix_fmt in (("ffv1", "mkv", "bgr0"), ("png", "mov", "rgba")):
        path = write_video(tmp_path / f"v.{suffix}", [picture], codec, pix_fmt=pix_fmt, options={})
        assert read_frames(path, 1)[0][0, :, 9, 9].tolist() == pytest.approx([200, 60, 30], abs=1)
    grey = write_video(tmp_path / "g.mkv", [picture], "ffv1", pix_fmt="gray", options={})
    levels = read_frames(grey, 1)[0][0, :, 9, 9]
    assert levels.max() == levels.min() and 90 < levels[0] < 115


# Display matrices (a, b, c, d): x' = a x + c y, y' = b x + d y. The corner where the quarter of the
# stored picture at the top left is shown: (right, bottom), and the one at the top right.
ORIENTATIONS = {
    "upright": ((1, 0, 0, 1), (0, 0), (1, 0)),
    "clockwise": ((0, 1, -1, 0), (1, 0), (1, 1)),
    "upside_down": ((-1, 0, 0, -1), (1, 1), (0, 1)),
    "counter_clockwise": ((0, -1, 1, 0), (0, 1), (0, 0)),
    "mirrored": ((-1, 0, 0, 1), (1, 0), (0, 0)),
    "flipped": ((1, 0, 0, -1), (0, 1), (1, 1)),
    "transposed": ((0, 1, 1, 0), (0, 0), (0, 1)),
    "anti_transposed": ((0, -1, -1, 0), (1, 1), (1, 0)),
}


@pytest.mark.parametrize(("matrix", "red", "blue"), ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_display_matrices(
    tmp_path: Path, matrix: tuple[int, ...], red: tuple[int, int], blue: tuple[int, int]
) -> None:
    height, width = 32, 48
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2, 0] = 255  # red at the top left
    picture[: height // 2, width // 2 :, 2] = 255  # blue at the top right
    path = write_video(tmp_path / "v.mp4", [picture] * 2)
    content = bytearray(path.read_bytes())
    # The matrix in the track header (ISO 14496-12, 8.3.2).
    start = content.index(b"tkhd") + 44
    a, b, c, d = (value << 16 for value in matrix)
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)

    frame = read_frames(path, 1)[0][0]
    turned = matrix[0] == 0
    assert frame.shape == (3, width, height) if turned else (3, height, width)
    for channel, (right, bottom) in ((0, red), (2, blue)):
        rows, columns = frame.shape[1] // 2, frame.shape[2] // 2
        quarter = frame[channel, bottom * rows :, right * columns :][4 : rows - 4, 4 : columns - 4]
        assert quarter.float().mean() > 200, "the colour is in another corner"
