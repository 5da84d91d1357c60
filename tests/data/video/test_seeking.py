"""Decoding only what the sampled frames need, against decoding everything."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
import torch

av = pytest.importorskip("av", reason="reading videos needs PyAV: muse-adapter[video]")
np = pytest.importorskip("numpy", reason="making videos needs numpy")

from muse_adapter.data.video import read_frames, reading, sample_positions  # noqa: E402
from muse_adapter.data.video.seeking import Run, needed_runs  # noqa: E402
from muse_adapter.data.video.timeline import Packet, list_frames  # noqa: E402
from tests.support.video_files import moving_frames, write_video  # noqa: E402

COUNT = 90
X264 = {"preset": "medium", "g": "20", "keyint_min": "20", "sc_threshold": "0"}
X265 = "keyint=20:min-keyint=20:scenecut=0:log-level=none:pools=1"

# Encoder, suffix, options.
STREAMS = {
    "h264_b_frames": ("libx264", "mp4", X264),
    "h264_open_gop": ("libx264", "mp4", X264 | {"x264-params": "open-gop=1"}),
    "h264_open_gop_ts": ("libx264", "ts", X264 | {"x264-params": "open-gop=1"}),
    "h264_no_b_frames": ("libx264", "mkv", X264 | {"bf": "0"}),
    "h264_intra_refresh": ("libx264", "ts", X264 | {"x264-params": "intra-refresh=1"}),
    "hevc_open_gop": ("libx265", "mp4", {"preset": "fast", "x265-params": X265 + ":open-gop=1"}),
    "hevc_radl": ("libx265", "mkv", {"preset": "fast", "x265-params": X265 + ":open-gop=0:radl=2"}),
    "vp9_hidden_frames": (
        "libvpx-vp9",
        "webm",
        {"g": "20", "auto-alt-ref": "1", "deadline": "good", "cpu-used": "4"},
    ),
    "vp8_hidden_frames": (
        "libvpx",
        "webm",
        {"g": "20", "auto-alt-ref": "1", "lag-in-frames": "16"},
    ),
    "mpeg2_open_gop": ("mpeg2video", "ts", {"g": "12", "bf": "2"}),
    "mpeg2_program_stream": ("mpeg2video", "mpg", {"g": "12", "bf": "2"}),
    "mpeg4_b_frames": ("mpeg4", "mp4", {"g": "12", "bf": "2"}),
    "mpeg4_avi": ("mpeg4", "avi", {"g": "12", "bf": "2"}),
    "intra_only": ("mjpeg", "avi", {}),
}


def all_frames(path: Path) -> tuple[list[torch.Tensor], list[float]]:
    """Decode everything with PyAV alone: RGB frames, and seconds after the first."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        decoded = list(container.decode(stream))
        start, tick = decoded[0].pts, stream.time_base
        frames = [torch.from_numpy(f.to_ndarray(format="rgb24")).permute(2, 0, 1) for f in decoded]
        return frames, [float((f.pts - start) * tick) for f in decoded]


@pytest.fixture(params=STREAMS.values(), ids=STREAMS.keys(), scope="module")
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encode a stream, once for all tests."""
    codec, suffix, options = request.param
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    return write_video(
        tmp_path_factory.mktemp("stream") / f"v.{suffix}",
        moving_frames(COUNT),
        codec,
        options=options,
        pix_fmt=pix_fmt,
        rate=25,
    )


def read(path: Path, positions: list[int], times: list[float]) -> list[torch.Tensor]:
    """Read single frames by their times."""
    ends = [*times[1:], times[-1] + 1.0]
    return [
        read_frames(path, 1, start=times[i] + 1e-4, end=(times[i] + ends[i]) / 2)[0][0]
        for i in positions
    ]


def test_frames_are_the_same_as_of_decoding_everything(path: Path) -> None:
    frames, _ = all_frames(path)
    assert len(frames) == COUNT
    for num_frames in (1, 2, 3, 12, COUNT):
        found, mask = read_frames(path, num_frames)
        expected = [frames[i] for i in sample_positions(COUNT, num_frames)]
        assert mask.all() and torch.equal(found, torch.stack(expected)), num_frames


def test_each_single_frame_is_the_same(path: Path) -> None:
    frames, times = all_frames(path)
    positions = list(range(15, 48))  # across two key frames at least
    for position, found in zip(positions, read(path, positions, times), strict=True):
        assert torch.equal(found, frames[position]), position


SEEKABLE = [
    name
    for name in STREAMS
    # Their packets do not tell the frames: hidden ones, missing time stamps, no key frames.
    if name not in ("vp8_hidden_frames", "mpeg2_program_stream", "h264_intra_refresh", "hevc_radl")
]


@pytest.mark.parametrize("path", [STREAMS[n] for n in SEEKABLE], ids=SEEKABLE, indirect=True)
def test_not_everything_is_decoded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "decode_all", None)  # calling it would fail
    packets = list_frames(path).packets
    runs = needed_runs(packets, [packets[0].pts, packets[50].pts])
    assert sum(run.last - run.first + 1 for run in runs) < 0.6 * COUNT
    assert read_frames(path, 4)[1].all()


def test_several_threads(tmp_path: Path) -> None:
    video = moving_frames(50, 384, 640)
    path = write_video(tmp_path / "v.mp4", video, "libx264", options=X264, rate=25)
    frames, _ = all_frames(path)
    for num_frames in (2, 5):
        expected = torch.stack([frames[i] for i in sample_positions(50, num_frames)])
        assert torch.equal(read_frames(path, num_frames)[0], expected)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_frame_rate(tmp_path: Path, suffix: str) -> None:
    gaps = np.random.default_rng(0).integers(20, 400, COUNT - 1).tolist()
    stamps = list(accumulate(gaps, initial=0))
    path = write_video(
        tmp_path / f"v.{suffix}", moving_frames(COUNT), "libx264", options=X264, stamps=stamps
    )
    frames, times = all_frames(path)
    assert times == pytest.approx([stamp / 1000 for stamp in stamps], abs=1e-3)
    found, _ = read_frames(path, 12)
    assert torch.equal(found, torch.stack([frames[i] for i in sample_positions(COUNT, 12)]))
    positions = [3, 19, 20, 21, 44, 88]
    assert torch.equal(
        torch.stack(read(path, positions, times)), torch.stack([frames[i] for i in positions])
    )
    found, _ = read_frames(path, 4, start=times[30] + 0.001, end=times[33] + 0.001)
    assert torch.equal(found, torch.stack(frames[30:34]))


def packets(*stamps: int, keys: tuple[int, ...]) -> list[Packet]:
    return [Packet(pts, number in keys, True) for number, pts in enumerate(stamps)]


@pytest.mark.parametrize(
    ("wanted", "runs"),
    [
        pytest.param([0], [Run(0, 0)], id="key_frame"),
        pytest.param([5], [Run(0, 5)], id="predicted"),
        pytest.param([25], [Run(20, 25)], id="second_group"),
        pytest.param([2, 25], [Run(0, 2), Run(20, 25)], id="two_groups"),
        pytest.param([15, 25], [Run(0, 25)], id="gap_too_small_to_skip"),
        pytest.param([39], [Run(20, 41)], id="shown_before_its_key_frame"),
        pytest.param([40, 42], [Run(40, 42)], id="shown_after_its_key_frame"),
    ],
)
def test_needed_runs(wanted: list[int], runs: list[Run]) -> None:
    # Key frames 0, 20 and 40; the frame after the last one is shown before it.
    stamps = [*range(39), 41, 40, 39, 42]
    listed = packets(*stamps, keys=(0, 20, 40))
    assert needed_runs(listed, wanted) == runs
