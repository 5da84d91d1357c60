"""Caching tokens: resuming after an interruption, and invalid arguments."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from muse_adapter import CachedTokens, VideoEncoder, cache_tokens
from tests.support.cached_tokens import (
    COUNT,
    FILES,
    MASKS,
    PER_SHARD,
    Videos,
    cache,
    file_names,
    frozen_encoder,
    make_frames,
    other_weights,
)
from tests.support.small_encoders import ROUNDING, small_head
from tests.support.tiny_clips import OpenAIClip, TimmVit

pytest.importorskip("safetensors", reason="cached tokens are safetensors files")
pytestmark = pytest.mark.usefixtures("torch_scan")


def test_an_interrupted_call_resumes(tmp_path: Path) -> None:
    encoder = frozen_encoder()
    with pytest.raises(KeyboardInterrupt):
        cache_tokens(encoder, Videos(stop_at=3), tmp_path, videos_per_shard=PER_SHARD)
    # Video 2 was encoded, but its file was incomplete.
    assert file_names(tmp_path) == FILES - {"tokens-00001.safetensors", "tokens-00002.safetensors"}
    with pytest.raises(FileNotFoundError, match=r"lacks tokens-00001\.safe.* of 3 files: .*again"):
        CachedTokens(tmp_path)
    before = (tmp_path / "tokens-00000.safetensors").stat().st_mtime_ns
    videos = Videos()
    data = cache_tokens(encoder, videos, tmp_path, videos_per_shard=PER_SHARD)
    assert videos.read == [0, 2, 3, 4], (
        "the first video, for the size of frames, and the missing ones"
    )
    assert (tmp_path / "tokens-00000.safetensors").stat().st_mtime_ns == before
    expected = encoder.forward_tokens(make_frames(), MASKS)
    for index in range(COUNT):
        torch.testing.assert_close(data[index][0], expected[index], **ROUNDING[torch.float64])
    done = Videos()
    cache_tokens(encoder, done, tmp_path, videos_per_shard=PER_SHARD)
    assert done.read == [0]


@pytest.mark.parametrize("calls", [("fsync",), ("link", "replace")], ids=["content", "name"])
@pytest.mark.parametrize("after", [0, 2, 3])
def test_no_partial_file_remains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: tuple[str, ...], after: int
) -> None:
    """The disk is full at the first, third or fourth file; existing files are complete."""
    done = []

    def failing(original: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any) -> None:
            if calls == ("fsync",) and stat.S_ISDIR(os.fstat(*arguments).st_mode):
                original(*arguments)
                return
            if len(done) == after:
                raise OSError("no space left on device")
            done.append(original)
            original(*arguments)

        return call

    with monkeypatch.context() as patch:
        for name in calls:
            patch.setattr(os, name, failing(getattr(os, name)))
        with pytest.raises(OSError, match="no space"):
            cache(tmp_path)
    left = file_names(tmp_path)
    assert left <= FILES, "no partial file may remain"
    assert len(left) == after
    assert len(cache(tmp_path)) == COUNT


def test_probe_without_description_is_replaced(tmp_path: Path) -> None:
    """This is the state after a crash between the two renames."""
    cache(tmp_path / "other")
    (tmp_path / "probe.safetensors").write_bytes(b"of another encoder")
    assert len(cache(tmp_path)) == COUNT


FRAMES = make_frames()
WRONG = {
    "trained backbone": (
        lambda: VideoEncoder(OpenAIClip(), small_head()),
        FRAMES,
        {},
        ValueError,
        r"frozen backbone.*VideoEncoder\(backbone, freeze=True\)",
    ),
    "no encoder": (OpenAIClip, FRAMES, {}, TypeError, "must be a VideoEncoder, got OpenAIClip"),
    "no videos": (frozen_encoder, [], {}, ValueError, "at least one video, got none"),
    "generator": (
        frozen_encoder,
        iter(FRAMES),
        {},
        TypeError,
        "map-style data set.* got tuple_iterator",
    ),
    "integers": (
        frozen_encoder,
        FRAMES.byte(),
        {},
        TypeError,
        r"video 0: frames must be floating point",
    ),
    "names": (
        frozen_encoder,
        ["a.mp4"],
        {},
        TypeError,
        r"video 0: expected frames or \(frames, mask\)",
    ),
    "other size": (
        lambda: VideoEncoder(TimmVit(), small_head(16), freeze=True).double(),
        [FRAMES[0], FRAMES[1, ..., :12]],
        {},
        ValueError,
        "video 1: frames are 16x12 pixels, those of the folder 16x16",
    ),
    "mask of another length": (
        frozen_encoder,
        [FRAMES[0], (FRAMES[1], torch.ones(2))],
        {},
        ValueError,
        r"video 1: frame_mask must have shape \(B, T\) = \(1, 3\), got \(1, 2\)",
    ),
    "too large for float16": (
        lambda: other_weights(1e8),
        FRAMES,
        {"dtype": torch.float16},
        ValueError,
        r"video 0: tokens up to \S+ are not finite in torch\.float16",
    ),
    "NaN": (
        frozen_encoder,
        [FRAMES[0], FRAMES[1] * float("nan")],
        {},
        ValueError,
        r"video 1: tokens up to nan are not finite in torch\.float64",
    ),
    "integers stored": (frozen_encoder, FRAMES, {"dtype": torch.int8}, TypeError, "got torch.int8"),
    "empty files": (
        frozen_encoder,
        FRAMES,
        {"videos_per_shard": 0},
        ValueError,
        "at least 1, got 0",
    ),
    "grid": (
        frozen_encoder,
        FRAMES,
        {"grid": (2, 8)},
        ValueError,
        r"\(H, W\) = \(4, 4\), got \(2, 8\)",
    ),
}


@pytest.mark.parametrize(
    ("build", "videos", "options", "error", "message"), WRONG.values(), ids=WRONG.keys()
)
def test_wrong_call(
    tmp_path: Path,
    build: Callable[[], Any],
    videos: Any,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        cache_tokens(build(), videos, tmp_path, **options)


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: cache(tmp_path), lambda: CachedTokens(tmp_path)):
        with pytest.raises(ImportError, match=r"caching tokens needs .*muse-adapter\[hub\]"):
            call()
    assert not list(tmp_path.iterdir())
